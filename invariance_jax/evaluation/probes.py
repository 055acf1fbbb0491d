"""Linear probes on frozen representations, in closed form, and their metrics.

The protocol of Foster, Pukdee, Rainforth (ICLR 2021): linear regression on unnormalized
features, the bias without a penalty. Deviation: the authors run 500 steps of L-BFGS,
which may stop before the minimum; the closed form here may score lower on the same
features. Everything works on the dtype it is given; matrix products are made in full
precision on every device. A Gram matrix squares the condition number of the features,
so fit in float64 where features are nearly collinear.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.numerics import safe_divide
from invariance_jax.types import Array

_EXACT = jax.lax.Precision.HIGHEST


class LinearProbe(NamedTuple):
    """A linear map of representations.

    Attributes:
      kernel: `[D, T]`, target units per representation unit.
      bias: `[T]`, target units.
    """

    kernel: Array
    bias: Array


def fit_ridge(h: Array, y: Array, *, l2: float | Array) -> LinearProbe:
    """Returns the linear probe of least penalized squared error.

    Minimizes `mean_{b,t} (h kernel + bias - y)^2 + l2 sum(kernel^2)` over kernel and
    bias: of centred h, y and `G = h' h / B`, `kernel = (G + T l2 I)^-1 h' y / B` (tall,
    D <= B) or the same through `h h' / B` (wide, D > B). One eigendecomposition, of
    size n = min(B, D), serves all targets.

    Directions of an eigenvalue s with `s + T l2 <= n eps max(s)`, eps that of the dtype
    (1.2e-7 for float32, 2.2e-16 for float64), cannot be told from rounding and get
    coefficient 0. With l2 = 0 this is the solution of minimum norm of a singular
    system; an l2 above that cut-off drops nothing.

    Args:
      h: float `[B, D]`, representations.
      y: float `[B, T]`, regression targets.
      l2: weight of the penalty on the kernel, 0 or more; may be traced.

    Returns:
      `LinearProbe`, the common dtype of h and y, at least float32.

    Raises:
      ValueError: if h or y is not a matrix, if their lengths differ or are 0, or if l2
        is not a number or, unless traced, is negative.

    Gradients: not meant for them: undefined where eigenvalues of `G` coincide.
    Cost: `B D min(B, D)` for the Gram matrix, `min(B, D)^3` for its eigenvectors; one
      copy of h.
    """
    _check_matrix("h", h, "[B, D], representations")
    _check_matrix("y", y, "[B, T], targets")
    if h.shape[0] != y.shape[0] or h.shape[0] == 0:
        raise ValueError(
            "h and y must have one row per example, at least one, but have "
            f"{h.shape[0]} and {y.shape[0]} rows."
        )
    _check_l2(l2)
    dtype = jnp.promote_types(jnp.promote_types(h.dtype, y.dtype), jnp.float32)
    solution = _solve_ridge(h.astype(dtype), y.astype(dtype), jnp.asarray(l2, dtype))
    return LinearProbe(*solution)


@jax.jit  # One fused copy of h; eagerly, each of the steps below would make its own.
def _solve_ridge(h: Array, y: Array, l2: Array) -> LinearProbe:
    batch_size, num_features = h.shape
    h_mean = jnp.mean(h, axis=0, keepdims=True)
    y_mean = jnp.mean(y, axis=0, keepdims=True)
    h, y = h - h_mean, y - y_mean
    # A common scale keeps the squares of tiny or huge features inside the float range.
    largest = jnp.max(jnp.abs(h), initial=0)
    scale = jnp.where(largest == 0, 1, largest)
    h = h / scale
    ridge = y.shape[1] * (l2 / scale) / scale
    if num_features <= batch_size:
        values, vectors = _eigh(_dot(h.T, h) / batch_size)
        weights = _invert(values, ridge)
        rotated = _dot(vectors.T, _dot(h.T, y) / batch_size)
        kernel = _dot(vectors, weights[:, None] * rotated)
    else:
        values, vectors = _eigh(_dot(h, h.T) / batch_size)
        weights = _invert(values, ridge)
        rotated = _dot(vectors.T, y / batch_size)
        kernel = _dot(h.T, _dot(vectors, weights[:, None] * rotated))
    kernel = kernel / scale
    return LinearProbe(kernel, (y_mean - _dot(h_mean, kernel))[0])


def _eigh(gram: Array) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(gram)
    return jnp.maximum(values, 0), vectors  # Rounding makes zeros negative.


def _invert(values: Array, ridge: Array) -> Array:
    """Returns 1 / (values + ridge), 0 where that is below the cut-off."""
    cutoff = values.shape[0] * np.finfo(values.dtype).eps * jnp.max(values, initial=0)
    regularized = values + ridge
    # Written so that a NaN passes: it must not look like a dropped direction.
    dropped = regularized <= cutoff
    return jnp.where(dropped, 0, 1 / jnp.where(dropped, 1, regularized))


def predict(probe: LinearProbe, h: Array) -> Array:
    """Returns `h kernel + bias`, the predictions of a linear probe.

    Args:
      probe: kernel `[D, T]`, bias `[T]`.
      h: float `[B, D]`, representations.

    Returns:
      `[B, T]`, target units.

    Raises:
      ValueError: if the shapes of the kernel, the bias and h do not fit.

    Gradients: with respect to probe and h.
    """
    _check_matrix("h", h, "[B, D], representations")
    _check_matrix("probe.kernel", probe.kernel, "[D, T]")
    num_features, num_targets = probe.kernel.shape
    if h.shape[1] != num_features or probe.bias.shape != (num_targets,):
        raise ValueError(
            f"h must be [B, {num_features}] and probe.bias [{num_targets}] for a "
            f"kernel [{num_features}, {num_targets}], but they are {list(h.shape)} "
            f"and {list(probe.bias.shape)}."
        )
    return _dot(h, probe.kernel) + probe.bias[None]


def mean_squared_error(predictions: Array, targets: Array) -> Array:
    """Returns the mean over examples of the squared error, for each target.

    Args:
      predictions: float `[B, T]`, target units.
      targets: float `[B, T]`, target units.

    Returns:
      `[T]`, squared target units, non-negative.

    Raises:
      ValueError: if the two are not matrices of one shape with at least one row.

    Gradients: with respect to both.
    """
    _check_pair(predictions, targets)
    return jnp.mean(jnp.square(predictions - targets), axis=0)


def r_squared(predictions: Array, targets: Array) -> Array:
    """Returns the share of each target's variance that the predictions explain.

    Computes `1 - sum (prediction - target)^2 / sum (target - mean)^2`, the mean that of
    the targets given. A target that is constant has nothing to explain and gets 0,
    whatever the predictions.

    Args:
      predictions: float `[B, T]`, target units.
      targets: float `[B, T]`, target units.

    Returns:
      `[T]`, at most 1; negative where the mean of the targets predicts better.

    Raises:
      ValueError: if the two are not matrices of one shape with at least one row.

    Gradients: with respect to both; zero for a constant target.
    """
    _check_pair(predictions, targets)
    residual = jnp.sum(jnp.square(predictions - targets), axis=0)
    # The first row goes first: then a constant target is exactly 0 and so its variance.
    shifted = targets - targets[:1]
    centred = shifted - jnp.mean(shifted, axis=0, keepdims=True)
    variance = jnp.sum(jnp.square(centred), axis=0)
    return safe_divide(variance - residual, variance)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_EXACT)


def _check_matrix(name: str, array: Array, expected: str) -> None:
    chex.assert_rank(
        array,
        2,
        custom_message=f"{name} must be {expected}",
        exception_type=ValueError,
    )


def _check_pair(predictions: Array, targets: Array) -> None:
    _check_matrix("predictions", predictions, "[B, T]")
    _check_matrix("targets", targets, "[B, T]")
    if predictions.shape != targets.shape or targets.shape[0] == 0:
        raise ValueError(
            "predictions and targets must have one shape [B, T] with B >= 1, but have "
            f"{list(predictions.shape)} and {list(targets.shape)}."
        )


def _check_l2(l2: float | Array) -> None:
    if jnp.ndim(l2) != 0:
        raise ValueError(f"l2 must be a number, but has shape {jnp.shape(l2)}.")
    if not isinstance(l2, jax.core.Tracer) and not l2 >= 0:
        raise ValueError(f"l2 must be 0 or more, not {l2}.")
