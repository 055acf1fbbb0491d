"""Predictions of a linear probe, and their average over views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from invariance_jax.evaluation.probes import (
    LinearProbe,
    accuracy,
    average_probabilities,
    cross_entropy,
    predict,
)


def test_predict_agrees_with_the_loop(x64):
    h, kernel = np.random.default_rng(0).normal(size=(4, 3)), np.arange(6.0) - 2
    kernel, bias = kernel.reshape(3, 2), np.array([1.0, -2.0])
    expected = np.zeros((4, 2))
    for b, t in np.ndindex(4, 2):
        expected[b, t] = bias[t] + sum(h[b, d] * kernel[d, t] for d in range(3))
    probe = LinearProbe(jnp.asarray(kernel), jnp.asarray(bias))
    result = predict(probe, jnp.asarray(h))
    assert_allclose(result, expected, atol=1e-12)
    assert result.dtype == jnp.float64


@pytest.mark.parametrize(
    ("kernel", "bias", "h", "message"),
    [
        ((3, 2), (2,), (4,), r"h must be \[B, D\]"),
        ((3,), (2,), (4, 3), r"probe.kernel must be \[D, T\]"),
        ((3, 2), (2,), (4, 5), r"h must be \[B, 3\].*\[4, 5\]"),
        ((3, 2), (3,), (4, 3), r"probe.bias \[2\].*\[3\]"),
    ],
)
def test_predict_refuses_shapes(kernel, bias, h, message):
    with pytest.raises(ValueError, match=message):
        predict(LinearProbe(jnp.zeros(kernel), jnp.zeros(bias)), jnp.zeros(h))


def make_logits():
    return np.random.default_rng(0).normal(scale=3, size=(4, 6, 5))


def loop_average(logits):
    """Mean over views of each example's probabilities, one at a time."""
    views, batch, classes = logits.shape
    mean = np.zeros((batch, classes))
    for view, b in np.ndindex(views, batch):
        weights = [np.exp(logit) for logit in logits[view, b]]
        mean[b] += np.array(weights) / sum(weights) / views
    return mean


def test_average_of_probabilities_agrees_with_the_loop(x64):
    logits = make_logits()
    found = average_probabilities(jnp.asarray(logits))
    assert_allclose(found, np.log(loop_average(logits)), rtol=1e-12, atol=1e-12)
    offset = logits + np.array([100.0, -800.0, 0.0, 3.0])[:, None, None]
    same = average_probabilities(jnp.asarray(offset))
    assert_allclose(same, found, atol=1e-10)


def test_average_over_views_has_at_most_their_mean_cross_entropy():
    logits = jnp.asarray(make_logits(), jnp.float32)
    labels = jnp.arange(6) % 5
    single = [float(cross_entropy(view, labels)) for view in logits]
    assert cross_entropy(average_probabilities(logits), labels) < np.mean(single)
    one = average_probabilities(logits[:1])
    assert accuracy(one, labels) == accuracy(logits[0], labels)
    assert_allclose(cross_entropy(one, labels), single[0], rtol=1e-5)


def test_derivatives_of_the_average(x64):
    logits = jnp.asarray(make_logits()[:2, :2])
    function, tolerance = jax.jit(average_probabilities), {"rtol": 1e-5, "atol": 1e-5}
    check_grads(function, (logits,), order=2, modes=["fwd", "rev"], **tolerance)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 5), r"logits must be \[M, B, C\]"),
        ((0, 4, 5), r"M >= 1 views.*\[0, 4, 5\]"),
        ((2, 4, 0), r"C >= 1 classes.*\[2, 4, 0\]"),
    ],
)
def test_average_refuses_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        average_probabilities(jnp.zeros(shape))
