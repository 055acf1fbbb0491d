"""Predictions of a linear probe, and their metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.evaluation.probes import (
    LinearProbe,
    accuracy,
    cross_entropy,
    mean_squared_error,
    predict,
    r_squared,
)

TARGETS = 3


def make_targets(batch=9):
    generator = np.random.default_rng(batch)
    return generator.normal(size=(batch, TARGETS)) - 1


def loop_metrics(predictions, targets):
    """Mean squared error and R^2 of each target, sums written out."""
    errors, explained = [], []
    for predicted, true in zip(predictions.T, targets.T, strict=True):
        mean = sum(true) / len(true)
        residual = sum((p - y) ** 2 for p, y in zip(predicted, true, strict=True))
        errors.append(residual / len(true))
        explained.append(1 - residual / sum((y - mean) ** 2 for y in true))
    return errors, explained


def test_metrics_agree_with_the_loop(x64):
    targets = make_targets()
    predictions = targets + 0.3 * np.cos(np.arange(27.0)).reshape(9, 3)
    expected = loop_metrics(predictions, targets)
    for metric, values in zip((mean_squared_error, r_squared), expected, strict=True):
        assert_allclose(metric(*map(jnp.asarray, (predictions, targets))), values)


def test_r_squared_is_1_of_exact_predictions_and_0_of_the_mean(x64):
    targets = jnp.asarray(make_targets())
    assert_array_equal(mean_squared_error(targets, targets), np.zeros(TARGETS))
    assert_array_equal(r_squared(targets, targets), np.ones(TARGETS))
    mean = jnp.broadcast_to(jnp.mean(targets, axis=0, keepdims=True), targets.shape)
    assert_allclose(r_squared(mean, targets), 0, atol=1e-12)
    other = targets + 0.1 * targets**2  # and does not depend on units
    expected = r_squared(other, targets)
    assert_allclose(r_squared(4 * other - 9, 4 * targets - 9), expected, rtol=1e-10)


def test_a_constant_target_has_an_r_squared_of_zero():
    # The mean of seven times 0.1 in float32 is not 0.1.
    targets = jnp.full((7, 2), 0.1, jnp.float32)
    assert_array_equal(r_squared(targets, targets), 0)
    assert_array_equal(r_squared(targets + 1, targets), 0)
    for argument in (0, 1):
        gradient = jax.grad(lambda *a: jnp.sum(r_squared(*a)), argument)
        assert_array_equal(gradient(targets + 1, targets), 0)


def test_derivatives(x64):
    y, labels = jnp.asarray(make_targets(4)), jnp.array([0, 2, 1, 1])

    @jax.jit
    def metrics(y, predictions):
        errors = mean_squared_error(predictions, y), r_squared(predictions, y)
        return *errors, cross_entropy(predictions, labels)

    check_grads(metrics, (y, jnp.sin(3 * y)), order=2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", [mean_squared_error, r_squared])
@pytest.mark.parametrize(
    "predictions, targets, message",
    [
        ((4,), (4, 1), r"predictions must be \[B, T\]"),
        ((4, 1), (4,), r"targets must be \[B, T\]"),
        ((3, 2), (4, 2), r"one shape.*\[3, 2\] and \[4, 2\]"),
        ((0, 2), (0, 2), r"B >= 1"),
    ],
)
def test_metrics_refuse_shapes(metric, predictions, targets, message):
    with pytest.raises(ValueError, match=message):
        metric(jnp.zeros(predictions), jnp.zeros(targets))


def make_logits():
    generator = np.random.default_rng(0)
    return generator.normal(scale=2, size=(20, 4)), generator.integers(0, 4, 20)


def loop_classification(logits, labels):
    """Accuracy and mean cross-entropy, one example at a time."""
    correct, loss = 0, 0.0
    for row, label in zip(logits, labels, strict=True):
        best = max(range(len(row)), key=lambda c: row[c])
        correct += best == label
        loss -= np.log(np.exp(row[label]) / sum(np.exp(logit) for logit in row))
    return correct / len(labels), loss / len(labels)


def test_classification_metrics_agree_with_the_loop(x64):
    logits, labels = make_logits()
    arrays = jnp.asarray(logits), jnp.asarray(labels, jnp.uint8)
    expected = loop_classification(logits, labels)
    assert 0 < expected[0] < 1
    for metric, value in zip((accuracy, cross_entropy), expected, strict=True):
        assert metric(*arrays).shape == ()
        assert_allclose(metric(*arrays), value, rtol=1e-12)


def test_tied_and_large_logits():
    tied = jnp.asarray([[1.0, 2.0, 2.0]])  # the first is the prediction
    assert [accuracy(tied, jnp.asarray([label])) for label in (1, 2)] == [1, 0]
    large = jnp.asarray([[1e4, 0.0], [-1e4, 0.0]])
    assert cross_entropy(large, jnp.asarray([0, 1])) == 0
    assert cross_entropy(large, jnp.asarray([1, 1])) == 5e3


@pytest.mark.parametrize("logits", [[[1, 2**32]], [[1.0, 1 + 1e-12]]])
def test_logits_of_64_bits_are_compared_as_they_are(logits):
    logits = np.array(logits)
    assert [accuracy(logits, np.array([label])) for label in (1, 0)] == [1, 0]


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
def test_a_logit_that_is_not_a_number_is_not_hidden(metric):
    logits, labels = make_logits()
    logits[3, 1] = np.nan
    assert jnp.isnan(metric(jnp.asarray(logits, jnp.float32), jnp.asarray(labels)))


@pytest.mark.parametrize("metric", [accuracy, cross_entropy])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ((4,), [0, 1, 0, 1], r"logits must be \[B, C\]"),
        ((4, 2), [0, 1, 0], r"each of 4 examples, at least one; found shape \[3\]"),
        ((4, 2), [[0], [1], [0], [1]], r"found shape \[4, 1\]"),
        ((0, 2), [], "at least one"),
        ((2, 2), [0.0, 1.0], "labels must have an integer dtype, not float32"),
        ((2, 2), [0, 2], "from 0 to 1 for 2 classes, but are from 0 to 2"),
        ((2, 2), [-1, 1], "from 0 to 1 for 2 classes, but are from -1 to 1"),
    ],
)
def test_classification_metrics_refuse(metric, logits, labels, message):
    with pytest.raises(ValueError, match=message):
        metric(jnp.zeros(logits), jnp.asarray(labels))


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
