"""Probes whose penalty weight is selected on held-out examples.

An encoder with small features, or with a few large ones, gives the same penalty weight
another effect. To compare encoders fairly, each gets a weight of its own.
"""

import jax
import jax.numpy as jnp

from invariance_jax.arguments import check_integer, check_matrix, check_number, promote
from invariance_jax.evaluation.probes.linear import LinearProbe, exact_dot, predict
from invariance_jax.evaluation.probes.logistic import fit_logistic
from invariance_jax.evaluation.probes.metrics import cross_entropy, mean_squared_error
from invariance_jax.evaluation.probes.ridge import fit_ridge
from invariance_jax.numerics import magnitude
from invariance_jax.types import Array


def fit_ridge_selected(
    h: Array, y: Array, *, l2: tuple[float, ...], num_held_out: int
) -> tuple[LinearProbe, Array]:
    """Returns the ridge probe with the best l2 for each target, and these l2.

    Minimizes, for each target separately, `mean_b (h_b kernel + bias - y_b)^2 + l2
    sum(kernel^2)`, with h standardized to mean 0 and variance 1. A probe is first
    fitted at each l2, and h standardized, without the last num_held_out examples. A
    second fit, at the l2 with the least squared error on these, uses all examples. A
    feature that is constant over the examples of a fit gets coefficient 0 in it.

    Args:
      h: float `[B, D]`, representations.
      y: float `[B, T]`, regression targets.
      l2: candidate weights of the penalty on the kernel, each 0 or more.
      num_held_out: number of held-out examples that select l2, 1 to B - 1.

    Returns:
      `(probe, l2)`: a `LinearProbe` for the features as given (not standardized), and
      the selected l2 of each target, `[T]`.

    Raises:
      ValueError: if h or y is not a matrix, if their lengths differ, if l2 is empty or
        holds a negative number, or if num_held_out is out of range.

    Gradients: not intended, as for `fit_ridge`.
    Cost: twice that of `fit_ridge`, whatever the number of candidates.
    """
    check_matrix("h", h, expected="[B, D], representations")
    check_matrix("y", y, expected="[B, T], targets")
    if h.shape[0] != y.shape[0]:
        raise ValueError(
            f"h and y must have one row per example; found {h.shape[0]} and "
            f"{y.shape[0]}."
        )
    split = _num_training(h, l2, num_held_out)
    h, y = promote(h=h, y=y)
    unit = magnitude(y, axis=0)
    y, weights = y / unit, jnp.asarray(l2, h.dtype)
    probes = _fit_each(h[:split], y[:split], weights)
    predictions = jax.vmap(predict, (0, None))(probes, h[split:])
    errors = jax.vmap(mean_squared_error, (0, None))(predictions, y[split:])
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
    """Returns the logistic probe with the best l2, and that l2.

    A probe is first fitted at each l2 without the last num_held_out examples. A second
    fit, at the l2 with the least cross-entropy on these, uses all examples. Features
    are used as given, not standardized.

    Args:
      h: float `[B, D]`, representations.
      labels: integer `[B]`, classes from 0 to C - 1.
      num_classes: C, 2 or more.
      l2: candidate weights of the penalty on the kernel, each 0 or more.
      num_held_out: number of held-out examples that select l2, 1 to B - 1.

    Returns:
      `(probe, l2)`: a `LinearProbe`, kernel `[D, C]` and bias `[C]`, and the selected
      l2.

    Raises:
      ValueError: for the reasons given in `fit_logistic`, or if l2 is empty or
        num_held_out is out of range.

    Gradients: not intended, as for `fit_logistic`.
    Cost: one fit of `fit_logistic` per candidate, and one more.
    """
    check_matrix("h", h, expected="[B, D], representations")
    split = _num_training(h, l2, num_held_out)
    (h,) = promote(h=h)

    def error(weight: float) -> float:
        probe = fit_logistic(
            h[:split], labels[:split], num_classes=num_classes, l2=weight
        )
        return float(cross_entropy(predict(probe, h[split:]), labels[split:]))

    best = min(l2, key=error)
    return fit_logistic(h, labels, num_classes=num_classes, l2=best), best


def _num_training(h: Array, l2: tuple[float, ...], num_held_out: int) -> int:
    """Returns the number of examples that are not held out."""
    if not l2:
        raise ValueError("l2 must hold a weight to choose from; found none.")
    for weight in l2:
        check_number("l2", weight, low=0)
    return len(h) - check_integer("num_held_out", num_held_out, most=len(h) - 1)


@jax.jit
def _fit_each(h: Array, y: Array, l2: Array) -> LinearProbe:
    """Returns the probes of all l2, kernel `[len(l2), D, T]`, bias `[len(l2), T]`."""
    # Subtract the first row first: then a constant feature is exactly 0.
    first = h[:1]
    mean = jnp.mean(h - first, axis=0, keepdims=True)
    unit = magnitude(h - first, axis=0)
    deviation = unit * jnp.std((h - first) / unit, axis=0, keepdims=True)
    scale = jnp.where(deviation == 0, 1, deviation)
    standardized = (h - first - mean) / scale

    def fit(weight: Array) -> LinearProbe:
        # The objective of `fit_ridge` is a mean over the targets.
        probe = fit_ridge(standardized, y, l2=weight / y.shape[1])
        kernel = probe.kernel / scale.T
        return LinearProbe(kernel, probe.bias - exact_dot(first + mean, kernel)[0])

    # Only l2 is mapped, so that all fits share one eigendecomposition.
    return jax.vmap(fit)(l2)
