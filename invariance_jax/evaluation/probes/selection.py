"""Probes whose penalty is chosen on held-out examples.

An encoder that shrinks its features, or makes few of them large, changes what one
weight of the penalty means to a probe: encoders are compared fairly where each has its
own.
"""

import jax
import jax.numpy as jnp

from invariance_jax.arguments import (
    check_integer,
    check_matrix,
    check_number,
    promote,
)
from invariance_jax.evaluation.probes.linear import LinearProbe, exact_dot, predict
from invariance_jax.evaluation.probes.logistic import fit_logistic
from invariance_jax.evaluation.probes.metrics import cross_entropy, mean_squared_error
from invariance_jax.evaluation.probes.ridge import fit_ridge
from invariance_jax.numerics import magnitude
from invariance_jax.types import Array


def fit_ridge_selected(
    h: Array, y: Array, *, l2: tuple[float, ...], num_held_out: int
) -> tuple[LinearProbe, Array]:
    """Returns the ridge probe of each target at its best l2, and that l2.

    Of each target alone, minimizes `mean_b (h_b kernel + bias - y_b)^2 + l2
    sum(kernel^2)` over features with mean 0 and variance 1. Every l2 is fitted without
    the last num_held_out examples, with their mean and variance left out too; the one
    with the least squared error on them is fitted again on all examples. A feature that
    is constant in the examples of a fit is left out of it.

    Args:
      h: float `[B, D]`, representations.
      y: float `[B, T]`, regression targets.
      l2: weights of the penalty on the kernel to choose from, 0 or more.
      num_held_out: examples that choose, 1 to B - 1.

    Returns:
      `(probe, l2)`: a `LinearProbe` of the features as given, not standardized, and the
      l2 of each target, `[T]`.

    Raises:
      ValueError: if h or y is not a matrix, their lengths differ, l2 is empty, or
        num_held_out is out of range.

    Gradients: not meant for them, as for `fit_ridge`.
    Cost: that of `fit_ridge` twice, whatever the number of weights.
    """
    check_matrix("h", h, expected="[B, D], representations")
    check_matrix("y", y, expected="[B, T], targets")
    if h.shape[0] != y.shape[0]:
        raise ValueError(
            f"h and y must have one row per example; found {h.shape[0]} and "
            f"{y.shape[0]}."
        )
    count = _num_fitted(h, l2, num_held_out)
    h, y = promote(h=h, y=y)
    unit = magnitude(y, axis=0)
    y, weights = y / unit, jnp.asarray(l2, h.dtype)
    kernels, biases = _fit_each(h[:count], y[:count], weights)
    errors = jax.vmap(
        lambda kernel, bias: mean_squared_error(
            exact_dot(h[count:], kernel) + bias[None], y[count:]
        )
    )(kernels, biases)
    best = jnp.argmin(errors, axis=0)
    kernels, biases = _fit_each(h, y, weights)
    columns = jnp.arange(y.shape[1])
    kernel, bias = kernels[best, :, columns].T, biases[best, columns]
    return LinearProbe(kernel * unit, bias * unit[0]), weights[best]


def fit_logistic_selected(
    h: Array,
    labels: Array,
    *,
    num_classes: int,
    l2: tuple[float, ...],
    num_held_out: int,
) -> tuple[LinearProbe, float]:
    """Returns the logistic probe at its best l2, and that l2.

    Every l2 is fitted without the last num_held_out examples; the one with the least
    cross-entropy on them is fitted again on all examples. Features are taken as they
    are.

    Args:
      h: float `[B, D]`, representations.
      labels: integer `[B]`, classes.
      num_classes: C.
      l2: weights of the penalty on the kernel to choose from, 0 or more.
      num_held_out: examples that choose, 1 to B - 1.

    Returns:
      `(probe, l2)`.

    Raises:
      ValueError: as `fit_logistic`, or if l2 is empty or num_held_out out of range.

    Gradients: not meant for them, as for `fit_logistic`.
    Cost: one fit more than there are weights.
    """
    check_matrix("h", h, expected="[B, D], representations")
    count = _num_fitted(h, l2, num_held_out)
    (h,) = promote(h=h)

    def error(weight: float) -> float:
        probe = fit_logistic(
            h[:count], labels[:count], num_classes=num_classes, l2=weight
        )
        return float(cross_entropy(predict(probe, h[count:]), labels[count:]))

    best = min(l2, key=error)
    return fit_logistic(h, labels, num_classes=num_classes, l2=best), best


def _num_fitted(h: Array, l2: tuple[float, ...], num_held_out: int) -> int:
    """Returns how many examples are left to fit on."""
    if not l2:
        raise ValueError("l2 must hold a weight to choose from; found none.")
    for weight in l2:
        check_number("l2", weight, low=0)
    num_examples = h.shape[0]
    return num_examples - check_integer(
        "num_held_out", num_held_out, most=num_examples - 1
    )


@jax.jit
def _fit_each(h: Array, y: Array, l2: Array) -> LinearProbe:
    """Returns the probes of each l2, kernel `[len(l2), D, T]`."""
    # The first row goes first: then a constant feature is exactly 0.
    first = h[:1]
    mean = jnp.mean(h - first, axis=0, keepdims=True)
    unit = magnitude(h - first, axis=0)
    deviation = unit * jnp.std((h - first) / unit, axis=0, keepdims=True)
    scale = jnp.where(deviation == 0, 1, deviation)
    standardized = (h - first - mean) / scale

    def fit(weight: Array) -> LinearProbe:
        # `fit_ridge` has the mean over the targets in its objective.
        probe = fit_ridge(standardized, y, l2=weight / y.shape[1])
        kernel = probe.kernel / scale.T
        return LinearProbe(kernel, probe.bias - exact_dot(first + mean, kernel)[0])

    # Only the weight is mapped, so that all share one eigendecomposition.
    return jax.vmap(fit)(l2)
