"""Predictions of a linear probe, and their average over views."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from invariance_jax.evaluation.probes import (
    LinearProbe,
    accuracy,
    average_probabilities,
    cross_entropy,
    fit_ridge,
    predict,
)

TARGETS = 3


def make_data(batch: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(batch * 100 + features)
    h = generator.normal(size=(batch, features)) + 2
    y = generator.normal(size=(batch, TARGETS)) - 1
    return h, y


def test_predict_agrees_with_the_loop(x64: None) -> None:
    h, kernel = make_data(4, 3)[0], np.arange(6.0).reshape(3, 2)
    bias = np.array([1.0, -2.0])
    expected = np.zeros((4, 2))
    for b in range(4):
        for t in range(2):
            expected[b, t] = bias[t] + sum(h[b, d] * kernel[d, t] for d in range(3))
    probe = LinearProbe(jnp.asarray(kernel), jnp.asarray(bias))
    result = predict(probe, jnp.asarray(h))
    np.testing.assert_allclose(result, expected, atol=1e-12)
    assert result.dtype == jnp.float64
    stacked = jnp.stack([jnp.asarray(h), 2 * jnp.asarray(h)])
    mapped = jax.jit(jax.vmap(predict, (None, 0)))(probe, stacked)
    np.testing.assert_allclose(mapped[0], expected, atol=1e-12)


def test_predict_is_affine_in_the_features(x64: None) -> None:
    h, y = (jnp.asarray(array) for array in make_data(8, 3))
    probe = fit_ridge(h, y, l2=0.1)
    mean = predict(probe, jnp.mean(h, axis=0, keepdims=True))[0]
    np.testing.assert_allclose(mean, jnp.mean(predict(probe, h), axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "bias", "h", "message"),
    [
        ((3, 2), (2,), (4,), r"h must be \[B, D\]"),
        ((3,), (2,), (4, 3), r"probe.kernel must be \[D, T\]"),
        ((3, 2), (2,), (4, 5), r"h must be \[B, 3\].*\[4, 5\]"),
        ((3, 2), (3,), (4, 3), r"probe.bias \[2\].*\[3\]"),
    ],
)
def test_predict_refuses_shapes(kernel: Any, bias: Any, h: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(LinearProbe(jnp.zeros(kernel), jnp.zeros(bias)), jnp.zeros(h))


def make_logits() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=3, size=(4, 6, 5))


def loop_average(logits: np.ndarray) -> np.ndarray:
    """Mean over views of each example's probabilities, one at a time."""
    views, batch, classes = logits.shape
    mean = np.zeros((batch, classes))
    for view in range(views):
        for b in range(batch):
            weights = [np.exp(logit) for logit in logits[view, b]]
            mean[b] += np.array(weights) / sum(weights) / views
    return mean


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_average_of_probabilities_agrees_with_the_loop(x64: None, dtype: str) -> None:
    logits = jnp.asarray(make_logits(), dtype)
    expected = np.log(loop_average(make_logits()))
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    for result in (
        average_probabilities(logits),
        jax.jit(average_probabilities)(logits),
        jax.vmap(average_probabilities)(logits[None])[0],
    ):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def test_average_of_one_view_keeps_its_metrics() -> None:
    logits = jnp.asarray(make_logits(), jnp.float32)[:1]
    labels = jnp.arange(6) % 5
    averaged = average_probabilities(logits)
    assert accuracy(averaged, labels) == accuracy(logits[0], labels)
    np.testing.assert_allclose(
        cross_entropy(averaged, labels), cross_entropy(logits[0], labels), rtol=1e-5
    )


def test_average_over_views_has_at_most_their_mean_cross_entropy() -> None:
    logits = jnp.asarray(make_logits(), jnp.float32)
    labels = jnp.arange(6) % 5
    single = [float(cross_entropy(view, labels)) for view in logits]
    assert cross_entropy(average_probabilities(logits), labels) < np.mean(single)


def test_average_does_not_depend_on_the_offset_of_a_view(x64: None) -> None:
    logits = make_logits()
    offset = logits + np.array([100.0, -800.0, 0.0, 3.0])[:, None, None]
    np.testing.assert_allclose(
        average_probabilities(jnp.asarray(offset)),
        average_probabilities(jnp.asarray(logits)),
        atol=1e-10,
    )


def test_derivatives_of_the_average(x64: None) -> None:
    check_grads(
        jax.jit(average_probabilities),
        (jnp.asarray(make_logits()[:2, :2]),),
        order=2,
        modes=["fwd", "rev"],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 5), r"logits must be \[M, B, C\]"),
        ((0, 4, 5), r"M >= 1 views.*\[0, 4, 5\]"),
        ((2, 4, 0), r"C >= 1 classes.*\[2, 4, 0\]"),
    ],
)
def test_average_refuses_shapes(shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_probabilities(jnp.zeros(shape))
