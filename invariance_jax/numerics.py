"""Square root, norm and division that stay finite through reverse over forward mode.

Each hides the singular input behind a `where` on both sides of the operation ("double
where"), so that no derivative of any order sees an infinity. Conventions: functions
keep the dtype of their input; the value at the singular point is 0 (square root, norm)
or 0 (division by 0), with zero derivatives there.
"""

import jax
import jax.numpy as jnp

from invariance_jax.types import Array


def safe_sqrt(x: Array) -> Array:
    """Returns the square root of x, 0 with zero derivatives where x is 0 or negative.

    NaN stays NaN, so that a network that has diverged is seen in its loss.

    Args:
      x: any shape, values of any sign.

    Returns:
      The shape of x, non-negative.

    Gradients: with respect to x; zero at and below 0.
    """
    singular = x <= 0  # false for NaN
    return jnp.where(singular, 0, jnp.sqrt(jnp.where(singular, 1, x)))


def safe_norm(x: Array, *, axis: int = -1, keepdims: bool = False) -> Array:
    """Returns the Euclidean norm of x along an axis, with zero derivatives at 0.

    Args:
      x: any shape.
      axis: the axis that is summed.
      keepdims: whether the summed axis stays, with length 1.

    Returns:
      The shape of x without (or with 1 at) the axis, non-negative.

    Gradients: with respect to x; zero at the zero vector.
    """
    return safe_sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims))


def safe_divide(numerator: Array, denominator: Array) -> Array:
    """Returns numerator / denominator, 0 with zero derivatives where that divides by 0.

    Args:
      numerator: any shape.
      denominator: a shape that broadcasts with the numerator.

    Returns:
      The broadcast shape.

    Gradients: with respect to both; zero where the denominator is 0.
    """
    defined = denominator != 0
    return jnp.where(defined, numerator / jnp.where(defined, denominator, 1), 0)


def l2_normalize(x: Array, *, axis: int = -1) -> Array:
    """Returns x divided by its Euclidean norm along an axis, n(x) of the paper.

    Args:
      x: any shape.
      axis: the axis along which the result has length 1.

    Returns:
      The shape of x; a zero vector stays zero.

    Gradients: with respect to x; zero at the zero vector.
    """
    return safe_divide(x, safe_norm(x, axis=axis, keepdims=True))


@jax.custom_jvp
def hold_in_first_derivative(x: Array) -> Array:
    """Returns x, as a constant to the innermost derivative and to no other.

    Under `jax.jvp` (or `jax.linearize`) the tangent of the result is zero, while a
    derivative taken around that `jvp` sees the identity. The invariance penalty uses it
    to hold batch statistics along alpha and still train through them.

    Args:
      x: any shape.

    Returns:
      x.

    Gradients: zero in the first differentiation that reaches it, the identity after.
    """
    return x


@hold_in_first_derivative.defjvp
def _hold_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    return x, jnp.zeros_like(x)
