"""The total effect of single parameters on a representation, and its derivative bound.

The total effect of a parameter is the variance that remains where all others are known,
estimated without bias by half the squared change when it is drawn anew (Jansen, 1999).
For a uniform parameter on [a, b] a Poincare inequality bounds it by `((b - a) / pi)^2`
times the mean squared derivative (Sobol and Kucherenko, 2009). Where the bound is far
above it, a penalty on derivatives says little of the variance. Not in Foster et al.
(2021).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import (
    check_matrix,
    check_same_shape,
    check_shape,
    promote,
)
from invariance_jax.types import Array


class TotalEffects(NamedTuple):
    """One parameter of each example, each `[B]` in squared representation units.

    Attributes:
      bound: its mean over alpha bounds the total effect of a uniform parameter.
      effect: its mean over alpha and alpha' is the total effect.
      linear: the first-order estimate of effect at the full step.
    """

    bound: Array
    effect: Array
    linear: Array


def total_effects(
    represent: Callable[[Array], Array],
    alpha: Array,
    alpha_other: Array,
    columns: Array,
    widths: Array,
    *,
    signs: Array | None = None,
) -> TotalEffects:
    """Returns the bound and the estimate of the total effect of one parameter each.

    Computes, for the parameter j of an example and d its derivative of r: `((b - a) /
    pi)^2 ||d||^2`, `1/2 ||r(alpha with alpha'_j) - r(alpha)||^2` and `1/2 (alpha'_j -
    alpha_j)^2 ||d||^2`.

    Args:
      represent: `alpha [B, P] -> r [B, D]`, such as n(h) of a view.
      alpha: `[B, P]`, where the derivative is taken.
      alpha_other: `[B, P]`, alpha', an independent draw.
      columns: integer `[B]`, the parameter j of each example.
      widths: `[P]`, b - a of each parameter.
      signs: `[B]`, independent random signs, +1 or -1, of the directions of the
        derivative, where batch statistics couple the examples. None: all +1.

    Returns:
      `TotalEffects`, at least float32.

    Raises:
      ValueError: if shapes disagree.

    Gradients: with respect to alpha, alpha_other and widths.
    Cost: one forward-mode pass and one forward pass.
    """
    check_matrix("alpha", alpha, expected="[B, P]")
    check_same_shape(alpha=alpha, alpha_other=alpha_other)
    check_shape("columns", columns, alpha.shape[:1], expected="[B]")
    check_shape("widths", widths, alpha.shape[1:], expected="[P]")
    alpha, alpha_other, widths = promote(
        alpha=alpha, alpha_other=alpha_other, widths=widths
    )
    chosen = jax.nn.one_hot(columns, alpha.shape[1], dtype=alpha.dtype)
    direction = chosen if signs is None else signs[:, None].astype(alpha.dtype) * chosen

    def precise(alpha: Array) -> Array:
        r = represent(alpha)
        check_shape(
            "what represent returns",
            r,
            (alpha.shape[0], None),
            expected="[B, D], one row per row of alpha",
        )
        return promote(represent=r)[0]

    start, slope = jax.jvp(precise, (alpha,), (direction,))
    step = chosen * (alpha_other - alpha)
    change = precise(alpha + step) - start
    slopes = jnp.sum(jnp.square(slope), axis=1)
    return TotalEffects(
        bound=jnp.square(chosen @ widths / np.pi) * slopes,
        effect=jnp.sum(jnp.square(change), axis=1) / 2,
        linear=jnp.sum(jnp.square(step), axis=1) * slopes / 2,
    )
