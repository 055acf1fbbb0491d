"""Square root, norm and division with finite derivatives in reverse over forward mode.

Each guards a singular input by a `where` before and after the operation ("double
where"), so no derivative of any order is infinite. Conventions: the value at the
singular point is 0 (square root, norm, division by 0), with zero derivatives there.
Square root and division keep the dtype of their input. Norm and normalization compute
and return at least float32, and scale entries so that squares stay in range.

Also a clip to [0, 1], changes above rounding, and statistics of a batch that is spread
over the replicas of the mapped axis `axis_name`; None is one replica.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from invariance_jax.arguments import promote
from invariance_jax.types import Array


def num_replicas(*, axis_name: str | None = None) -> int:
    """Returns the number of replicas of the mapped axis; 1 without an axis."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def batch_mean(
    x: Array, *, keepdims: bool = False, axis_name: str | None = None
) -> Array:
    """Returns the mean of x `[B, ...]` over the examples of all replicas."""
    mean = jnp.mean(x, axis=0, keepdims=keepdims)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def magnitude(
    x: Array, *, axis: int | Sequence[int] | None = None, axis_name: str | None = None
) -> Array:
    """Returns a power of two near the largest absolute entry, 1 where all are 0.

    Dividing by it is exact, and brings the squares of tiny or huge entries into the
    range of the dtype. It is constant for derivatives, and keeps the axes over which
    the largest entry is taken, with length 1.
    """
    info = jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]
    x = jnp.abs(jax.lax.stop_gradient(x))
    largest = jnp.max(x, axis=axis, keepdims=True, initial=0)
    # Within these ends 1 / magnitude is finite and not subnormal.
    bounded = jnp.clip(largest, info.tiny, 1 / (4 * info.tiny))
    power = jax.lax.reduce_precision(bounded, info.nexp, 0)
    power = jnp.where(largest == 0, 1, power)
    return power if axis_name is None else jax.lax.pmax(power, axis_name)


def safe_sqrt(x: Array) -> Array:
    """Returns the square root of x, 0 with zero derivatives where x is 0 or negative.

    NaN stays NaN, so that the loss of a network that has diverged shows it.
    """
    singular = x <= 0  # false for NaN
    return jnp.where(singular, 0, jnp.sqrt(jnp.where(singular, 1, x)))


def safe_norm(x: Array, *, axis: int = -1) -> Array:
    """Returns the Euclidean norm of x along an axis, with zero derivatives at 0."""
    (x,) = promote(x=x)
    size = magnitude(x, axis=axis)
    squares = jnp.sum(jnp.square(x / size), axis=axis, keepdims=True)
    return jnp.squeeze(size * safe_sqrt(squares), axis)


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """Returns the quotient; 0 with zero derivatives for a denominator of 0."""
    defined = denominator != 0
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), 0)


def l2_normalize(x: Array, *, axis: int = -1) -> Array:
    """Returns x divided by its Euclidean norm along an axis, n(x) of the paper."""
    (x,) = promote(x=x)
    x = x / magnitude(x, axis=axis)  # changes neither the result nor its derivatives
    squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return safe_divide(x, safe_sqrt(squares))


def clip_to_unit(x: Array) -> Array:
    """Returns x clipped to [0, 1], with zero derivatives at and beyond both ends.

    The derivative of `jnp.clip` is 1/2 at the ends, and takes five times as long.
    """
    zero = jnp.zeros((), x.dtype)
    return jax.lax.clamp(zero, x, zero + 1)


def above_rounding(change: Array, start: Array) -> Array:
    """Returns squared norms of changes, 0 where rounding alone can cause the change.

    A change is 0 if its norm is below 8 eps times the norm of what changes, whose
    squares are `start`; eps is the spacing of the dtype at 1. NaN and infinity stay.
    """
    limit = 8 * jnp.finfo(change.dtype).eps  # type: ignore[no-untyped-call]
    return jnp.where(change < limit**2 * start, 0, change)


@jax.custom_jvp
def hold_in_first_derivative(x: Array) -> Array:
    """Returns x, which is a constant for the innermost derivative only.

    Under `jax.jvp` (or `jax.linearize`) the tangent of the result is zero. A derivative
    taken around that `jvp` treats the function as the identity. The invariance penalty
    uses it to keep batch statistics constant along alpha and still train through them.
    """
    return x


@hold_in_first_derivative.defjvp
def _hold_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    return x, jnp.zeros_like(x)
