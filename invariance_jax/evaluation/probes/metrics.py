"""Metrics of predictions: squared error, R^2, accuracy and cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_labels, check_matrix, promote
from invariance_jax.numerics import magnitude, safe_divide
from invariance_jax.types import Array


def mean_squared_error(predictions: Array, targets: Array) -> Array:
    """Returns the mean squared error over the examples, for each target.

    Args:
      predictions: float `[B, T]`, target units.
      targets: float `[B, T]`, target units.

    Returns:
      `[T]`, squared target units, non-negative, at least float32.

    Raises:
      ValueError: if they are not matrices of the same shape with at least one row.

    Gradients: with respect to both.
    """
    predictions, targets = _promote_pair(predictions, targets)
    error = predictions - targets
    unit = magnitude(error, axis=0)
    return jnp.mean(jnp.square(error / unit), axis=0) * unit[0] * unit[0]


def r_squared(predictions: Array, targets: Array) -> Array:
    """Returns the share of each target's variance that the predictions explain.

    Computes `1 - sum (prediction - target)^2 / sum (target - mean)^2` with the mean of
    the given targets. A constant target has no variance to explain and gets 0, whatever
    the predictions.

    Args:
      predictions: float `[B, T]`, target units.
      targets: float `[B, T]`, target units.

    Returns:
      `[T]`, without unit, at most 1; negative where the mean of the targets predicts
      better; at least float32.

    Raises:
      ValueError: if they are not matrices of the same shape with at least one row.

    Gradients: with respect to both; zero for a constant target.
    """
    predictions, targets = _promote_pair(predictions, targets)
    # Subtract the first row first: a constant target and its variance are exactly 0.
    shifted = targets - targets[:1]
    centred = shifted - jnp.mean(shifted, axis=0, keepdims=True)
    unit = magnitude(centred, axis=0)
    variance = jnp.sum(jnp.square(centred / unit), axis=0)
    residual = jnp.sum(jnp.square((predictions - targets) / unit), axis=0)
    return safe_divide(variance - residual, variance)


def accuracy(logits: Array, labels: Array) -> Array:
    """Returns the share of examples whose class has the largest logit.

    If several classes tie for the largest logit, the first is the prediction.

    Args:
      logits: float or integer `[B, C]`, any scores that increase with the probability.
      labels: integer `[B]`, classes from 0 to C - 1.

    Returns:
      `[]`, in [0, 1], at least float32; NaN if a logit is NaN.

    Raises:
      ValueError: if the logits are not a matrix, or if the labels are not one integer
        from 0 to C - 1 per example (range not checked where traced).

    Gradients: none, as the result is piecewise constant.
    """
    _check_logits(logits, labels)
    (floating,) = promote(logits=logits)
    # In the dtype as given: in float32, large integers and near float64 would tie.
    argmax = jnp.argmax if isinstance(logits, jax.Array) else np.argmax
    correct = argmax(logits, axis=1) == labels
    # argmax treats NaN as the largest: a probe that diverged must not seem correct.
    undefined = jnp.any(jnp.isnan(floating), axis=1)
    return jnp.mean(jnp.where(undefined, jnp.nan, correct.astype(floating.dtype)))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the mean over examples of the negative log-probability of their class.

    Computes `-(1/B) sum_b log softmax(logits_b)[label_b]`.

    Args:
      logits: float `[B, C]`; an offset common to all classes has no effect.
      labels: integer `[B]`, classes from 0 to C - 1.

    Returns:
      `[]`, nats, non-negative, at least float32.

    Raises:
      ValueError: if the logits are not a matrix, or if the labels are not one integer
        from 0 to C - 1 per example (range not checked where traced).

    Gradients: with respect to the logits.
    """
    _check_logits(logits, labels)
    (logits,) = promote(logits=logits)
    log_probabilities = jax.nn.log_softmax(logits, axis=1)
    labels = jnp.asarray(labels).astype(jnp.int32)
    log_likelihood = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    return -jnp.mean(log_likelihood)


def _promote_pair(predictions: Array, targets: Array) -> list[Array]:
    check_matrix("predictions", predictions, expected="[B, T]")
    check_matrix("targets", targets, expected="[B, T]")
    if predictions.shape != targets.shape or targets.shape[0] == 0:
        raise ValueError(
            "predictions and targets must have one shape [B, T] with B >= 1; found "
            f"{list(predictions.shape)} and {list(targets.shape)}."
        )
    return promote(predictions=predictions, targets=targets)


def _check_logits(logits: Array, labels: Array) -> None:
    check_matrix("logits", logits, expected="[B, C]")
    num_examples, num_classes = logits.shape
    check_labels("labels", labels, num_examples=num_examples, num_classes=num_classes)
