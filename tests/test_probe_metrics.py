"""Metrics of predictions: squared error, R^2, accuracy, cross-entropy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from invariance_jax.evaluation.probes import (
    LinearProbe,
    accuracy,
    cross_entropy,
    fit_ridge,
    mean_squared_error,
    predict,
    r_squared,
)

TARGETS = 3


def make_data(batch: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(batch * 100 + features)
    h = generator.normal(size=(batch, features)) + 2
    y = generator.normal(size=(batch, TARGETS)) - 1
    return h, y


def loop_metrics(
    predictions: np.ndarray, targets: np.ndarray
) -> tuple[list[float], list[float]]:
    """Mean squared error and R^2 of each target, sums written out."""
    errors, explained = [], []
    for t in range(targets.shape[1]):
        mean = sum(targets[:, t]) / len(targets)
        residual = sum(
            (p - y) ** 2 for p, y in zip(predictions.T[t], targets.T[t], strict=True)
        )
        variance = sum((y - mean) ** 2 for y in targets[:, t])
        errors.append(residual / len(targets))
        explained.append(1 - residual / variance)
    return errors, explained


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_metrics_agree_with_the_loop(x64: None, dtype: str) -> None:
    targets = make_data(9, 2)[1]
    predictions = targets + 0.3 * np.cos(np.arange(27.0)).reshape(9, 3)
    arrays = jnp.asarray(predictions, dtype), jnp.asarray(targets, dtype)
    errors, explained = loop_metrics(predictions, targets)
    tolerance = {"float32": 1e-5, "float64": 1e-12}[dtype]
    for metric, expected in ((mean_squared_error, errors), (r_squared, explained)):
        for result in (
            metric(*arrays),
            jax.jit(metric)(*arrays),
            jax.vmap(metric)(arrays[0][None], arrays[1][None])[0],
        ):
            assert result.shape == (TARGETS,) and result.dtype == dtype
            np.testing.assert_allclose(result, expected, rtol=tolerance)


def test_exact_predictions_have_no_error_and_explain_everything() -> None:
    targets = jnp.asarray(make_data(9, 2)[1], jnp.float32)
    np.testing.assert_array_equal(mean_squared_error(targets, targets), 0)
    np.testing.assert_array_equal(r_squared(targets, targets), 1)


def test_the_mean_of_the_targets_explains_nothing(x64: None) -> None:
    targets = jnp.asarray(make_data(9, 2)[1])
    mean = jnp.broadcast_to(jnp.mean(targets, axis=0, keepdims=True), targets.shape)
    np.testing.assert_allclose(r_squared(mean, targets), 0, atol=1e-12)
    np.testing.assert_allclose(
        mean_squared_error(mean, targets), jnp.var(targets, axis=0), rtol=1e-12
    )


def test_r_squared_does_not_depend_on_units(x64: None) -> None:
    targets = jnp.asarray(make_data(9, 2)[1])
    predictions = targets + 0.1 * targets**2
    np.testing.assert_allclose(
        r_squared(4 * predictions - 9, 4 * targets - 9),
        r_squared(predictions, targets),
        rtol=1e-10,
    )


def test_a_constant_target_has_an_r_squared_of_zero() -> None:
    # The mean of seven times 0.1 in float32 is not 0.1.
    targets = jnp.full((7, 2), 0.1, jnp.float32)
    np.testing.assert_array_equal(r_squared(targets, targets), 0)
    np.testing.assert_array_equal(r_squared(targets + 1, targets), 0)
    for argument in (0, 1):
        gradient = jax.grad(lambda *a: jnp.sum(r_squared(*a)), argument)
        np.testing.assert_array_equal(gradient(targets + 1, targets), 0)


def test_derivatives_of_predictions_and_metrics(x64: None) -> None:
    h, y = (jnp.asarray(array) for array in make_data(4, 2))
    probe = fit_ridge(h, y, l2=0.1)

    def metrics(probe: LinearProbe, h: jax.Array, y: jax.Array) -> jax.Array:
        predictions = predict(probe, h)
        return jnp.stack(
            [mean_squared_error(predictions, y), r_squared(predictions, y)]
        )

    check_grads(
        jax.jit(metrics),
        (probe, h, y),
        order=2,
        modes=["fwd", "rev"],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("metric", [mean_squared_error, r_squared])
@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ((4,), (4, 1), r"predictions must be \[B, T\]"),
        ((4, 1), (4,), r"targets must be \[B, T\]"),
        ((4, 1), (4, 2), r"one shape.*\[4, 1\] and \[4, 2\]"),
        ((3, 2), (4, 2), r"one shape.*\[3, 2\] and \[4, 2\]"),
        ((0, 2), (0, 2), r"B >= 1"),
    ],
)
def test_metrics_refuse_shapes(
    metric: Any, predictions: Any, targets: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(jnp.zeros(predictions), jnp.zeros(targets))


def make_logits() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(scale=2, size=(20, 4)), generator.integers(0, 4, 20)


def loop_classification(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Accuracy and mean cross-entropy, one example at a time."""
    correct, loss = 0, 0.0
    for row, label in zip(logits, labels, strict=True):
        best = max(range(len(row)), key=lambda c: row[c])
        correct += best == label
        loss -= np.log(np.exp(row[label]) / sum(np.exp(logit) for logit in row))
    return correct / len(labels), loss / len(labels)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_classification_metrics_agree_with_the_loop(x64: None, dtype: str) -> None:
    logits, labels = make_logits()
    arrays = jnp.asarray(logits, dtype), jnp.asarray(labels, jnp.uint8)
    expected = loop_classification(logits, labels)
    assert 0 < expected[0] < 1
    tolerance = {"float32": 1e-6, "float64": 1e-12}[dtype]
    for metric, value in zip((accuracy, cross_entropy), expected, strict=True):
        for result in (
            metric(*arrays),
            jax.jit(metric)(*arrays),
            jax.vmap(metric)(arrays[0][None], arrays[1][None])[0],
        ):
            assert result.shape == () and result.dtype == dtype
            np.testing.assert_allclose(result, value, rtol=tolerance)


def test_equal_logits_have_the_cross_entropy_of_guessing(x64: None) -> None:
    labels = jnp.asarray([0, 3, 6])
    loss = cross_entropy(jnp.full((3, 7), 2.5), labels)
    np.testing.assert_allclose(loss, np.log(7), rtol=1e-12)


def test_first_of_tied_logits_is_the_prediction() -> None:
    logits = jnp.asarray([[1.0, 2.0, 2.0]])
    assert accuracy(logits, jnp.asarray([1])) == 1
    assert accuracy(logits, jnp.asarray([2])) == 0


def test_large_logits_have_a_finite_cross_entropy() -> None:
    logits = jnp.asarray([[1e4, 0.0], [-1e4, 0.0]])
    assert cross_entropy(logits, jnp.asarray([0, 1])) == 0
    assert cross_entropy(logits, jnp.asarray([1, 1])) == 5e3


def test_an_offset_of_an_example_changes_no_classification_metric(x64: None) -> None:
    logits, labels = make_logits()
    offset = jnp.asarray(logits + np.arange(20.0)[:, None])
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    assert accuracy(offset, labels) == accuracy(logits, labels)
    np.testing.assert_allclose(
        cross_entropy(offset, labels), cross_entropy(logits, labels), rtol=1e-12
    )


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
def test_a_logit_that_is_not_a_number_is_not_hidden(metric: Any) -> None:
    logits, labels = make_logits()
    logits[3, 1] = np.nan
    assert jnp.isnan(metric(jnp.asarray(logits, jnp.float32), jnp.asarray(labels)))


def test_half_precision_logits_are_averaged_in_float32() -> None:
    logits, labels = make_logits()
    half = jnp.asarray(logits, jnp.bfloat16)
    for metric in (accuracy, cross_entropy):
        assert metric(half, jnp.asarray(labels)).dtype == jnp.float32


def test_derivatives_of_the_cross_entropy(x64: None) -> None:
    logits, labels = make_logits()
    check_grads(
        jax.jit(lambda logits: cross_entropy(logits, jnp.asarray(labels[:4]))),
        (jnp.asarray(logits[:4]),),
        order=2,
        modes=["fwd", "rev"],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((4,), [0, 1, 0, 1], r"logits must be \[B, C\]"),
        ((4, 2), [0, 1, 0], r"there are 4, at least one; found shape \[3\]"),
        ((4, 2), [[0], [1], [0], [1]], r"found shape \[4, 1\]"),
        ((0, 2), [], "at least one"),
        ((2, 2), [0.0, 1.0], "labels must have an integer dtype, not float32"),
        ((2, 2), [0, 2], "from 0 to 1 for 2 classes, but are from 0 to 2"),
        ((2, 2), [-1, 1], "from 0 to 1 for 2 classes, but are from -1 to 1"),
    ],
)
def test_classification_metrics_refuse(
    metric: Any, logits: Any, labels: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(jnp.zeros(logits), jnp.asarray(labels))
