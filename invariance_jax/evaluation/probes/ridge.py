"""Ridge regression in closed form.

The Gram matrix squares the condition number of the features, so use float64 where
features are nearly collinear.
"""

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_matrix, check_number, promote
from invariance_jax.evaluation.probes.linear import LinearProbe, exact_dot
from invariance_jax.numerics import magnitude
from invariance_jax.types import Array


def fit_ridge(h: Array, y: Array, *, l2: float | Array) -> LinearProbe:
    """Returns the linear probe of least penalized squared error.

    Minimizes `mean_{b,t} (h kernel + bias - y)^2 + l2 sum(kernel^2)` over kernel and
    bias. With h and y centred and `G = h' h / B`, where h' is the transpose, `kernel =
    (G + T l2 I)^-1 h' y / B` if D <= B; if D > B, the same is computed from `h h' / B`.
    One eigendecomposition, of size n = min(B, D), serves all targets.

    A direction with eigenvalue s and `s + T l2 <= n eps max(s)`, with the eps of the
    dtype (1.2e-7 for float32, 2.2e-16 for float64), cannot be told from rounding error
    and gets coefficient 0. So for a singular system, l2 = 0 returns the solution of
    minimum norm; if T l2 is above that cut-off, no direction is dropped.

    Args:
      h: `[B, D]`, representations.
      y: `[B, T]`, regression targets.
      l2: weight of the penalty on the kernel, 0 or more; may be traced.

    Returns:
      `LinearProbe`, kernel `[D, T]` and bias `[T]`, the common dtype of h and y, at
      least float32.

    Raises:
      ValueError: if h or y is not a matrix, if their lengths differ or are 0, or if l2
        is not a number or is negative (not checked where traced).

    Gradients: not intended; undefined where eigenvalues of `G` coincide.
    Cost: `B D min(B, D)` for the Gram matrix, `min(B, D)^3` for its eigenvectors;
      memory for one copy of h.
    """
    check_matrix("h", h, expected="[B, D], representations")
    check_matrix("y", y, expected="[B, T], targets")
    if h.shape[0] != y.shape[0] or h.shape[0] == 0:
        raise ValueError(
            "h and y must have one row per example, at least one, but have "
            f"{h.shape[0]} and {y.shape[0]} rows."
        )
    check_number("l2", l2, low=0)
    h, y = promote(h=h, y=y)
    return LinearProbe(*_solve_ridge(h, y, jnp.asarray(l2, h.dtype)))


@jax.jit  # One fused copy of h; without jit, each step below would make its own.
def _solve_ridge(h: Array, y: Array, l2: Array) -> LinearProbe:
    batch_size, num_features = h.shape
    h_mean = jnp.mean(h, axis=0, keepdims=True)
    y_mean = jnp.mean(y, axis=0, keepdims=True)
    h, y = h - h_mean, y - y_mean
    # A common scale keeps the squares of tiny or huge features inside the float range.
    scale = jnp.squeeze(magnitude(h))
    h = h / scale
    ridge = y.shape[1] * (l2 / scale) / scale
    is_tall = num_features <= batch_size
    rows, right_side = (h.T, exact_dot(h.T, y)) if is_tall else (h, y)
    values, vectors = jnp.linalg.eigh(exact_dot(rows, rows.T) / batch_size)
    # Rounding can make zero eigenvalues negative.
    weights = _inverse(jnp.maximum(values, 0), ridge)
    rotated = exact_dot(vectors.T, right_side / batch_size)
    kernel = exact_dot(vectors, weights[:, None] * rotated)
    kernel = (kernel if is_tall else exact_dot(h.T, kernel)) / scale
    return LinearProbe(kernel, (y_mean - exact_dot(h_mean, kernel))[0])


def _inverse(values: Array, ridge: Array) -> Array:
    """Returns 1 / (values + ridge), or 0 where the sum is at or below the cut-off."""
    cutoff = values.shape[0] * np.finfo(values.dtype).eps * jnp.max(values, initial=0)
    regularized = values + ridge
    # Written so that NaN is kept: it must not look like a dropped direction.
    is_dropped = regularized <= cutoff
    return jnp.where(is_dropped, 0, 1 / jnp.where(is_dropped, 1, regularized))
