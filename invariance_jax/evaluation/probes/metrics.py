"""Metrics of predictions: squared error and R^2, accuracy and cross-entropy."""

import jax
import jax.numpy as jnp

from invariance_jax.arguments import check_labels, check_matrix, promote
from invariance_jax.numerics import magnitude, safe_divide
from invariance_jax.types import Array


def mean_squared_error(predictions: Array, targets: Array) -> Array:
    """Returns the mean over examples of the squared error, for each target.

    Args:
      predictions: float `[B, T]`, target units.
      targets: float `[B, T]`, target units.

    Returns:
      `[T]`, squared target units, non-negative, at least float32.

    Raises:
      ValueError: if the two are not matrices of one shape with at least one row.

    Gradients: with respect to both.
    """
    predictions, targets = _promote_pair(predictions, targets)
    error = predictions - targets
    unit = magnitude(error, axis=0)
    return jnp.mean(jnp.square(error / unit), axis=0) * unit[0] * unit[0]


def r_squared(predictions: Array, targets: Array) -> Array:
    """Returns the share of each target's variance that the predictions explain.

    Computes `1 - sum (prediction - target)^2 / sum (target - mean)^2`, the mean that of
    the targets given. A target that is constant has nothing to explain and gets 0,
    whatever the predictions.

    Args:
      predictions: float `[B, T]`, target units.
      targets: float `[B, T]`, target units.

    Returns:
      `[T]`, at most 1; negative where the mean of the targets predicts better; at least
      float32.

    Raises:
      ValueError: if the two are not matrices of one shape with at least one row.

    Gradients: with respect to both; zero for a constant target.
    """
    predictions, targets = _promote_pair(predictions, targets)
    # The first row goes first: then a constant target is exactly 0 and so its variance.
    shifted = targets - targets[:1]
    centred = shifted - jnp.mean(shifted, axis=0, keepdims=True)
    unit = magnitude(centred, axis=0)
    variance = jnp.sum(jnp.square(centred / unit), axis=0)
    residual = jnp.sum(jnp.square((predictions - targets) / unit), axis=0)
    return safe_divide(variance - residual, variance)


def accuracy(logits: Array, labels: Array) -> Array:
    """Returns the share of examples whose largest logit is that of their class.

    Of classes that tie for the largest logit, the first is the prediction.

    Args:
      logits: float `[B, C]`, or any scores that grow with the probability.
      labels: integer `[B]`, classes from 0 to C - 1.

    Returns:
      `[]`, in [0, 1], at least float32; NaN where a logit is.

    Raises:
      ValueError: if the logits are not a matrix, or if the labels are not one integer
        per example or, unless traced, not below C.

    Gradients: none, it is constant between ties.
    """
    _check_logits(logits, labels)
    (floating,) = promote(logits=logits)
    # Of the logits as they are: float32 would make large integers tie.
    correct = jnp.argmax(logits, axis=1) == labels
    # argmax takes a NaN for the largest: a probe that diverged must not look right.
    undefined = jnp.any(jnp.isnan(floating), axis=1)
    return jnp.mean(jnp.where(undefined, jnp.nan, correct.astype(floating.dtype)))


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the mean over examples of the negative log-probability of their class.

    Computes `-(1/B) sum_b log softmax(logits_b)[label_b]`.

    Args:
      logits: float `[B, C]`, any common offset of an example's logits allowed.
      labels: integer `[B]`, classes from 0 to C - 1.

    Returns:
      `[]`, nats, non-negative, at least float32.

    Raises:
      ValueError: if the logits are not a matrix, or if the labels are not one integer
        per example or, unless traced, not below C.

    Gradients: with respect to the logits.
    """
    _check_logits(logits, labels)
    (logits,) = promote(logits=logits)
    log_probabilities = jax.nn.log_softmax(logits, axis=1)
    labels = jnp.asarray(labels).astype(jnp.int32)
    chosen = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    return -jnp.mean(chosen)


def _promote_pair(predictions: Array, targets: Array) -> list[Array]:
    check_matrix("predictions", predictions, expected="[B, T]")
    check_matrix("targets", targets, expected="[B, T]")
    if predictions.shape != targets.shape or targets.shape[0] == 0:
        raise ValueError(
            "predictions and targets must have one shape [B, T] with B >= 1, but have "
            f"{list(predictions.shape)} and {list(targets.shape)}."
        )
    return promote(predictions=predictions, targets=targets)


def _check_logits(logits: Array, labels: Array) -> None:
    check_matrix("logits", logits, expected="[B, C]")
    num_examples, num_classes = logits.shape
    check_labels("labels", labels, num_examples=num_examples, num_classes=num_classes)
