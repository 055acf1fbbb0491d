"""How well the first-order change of a representation predicts the true one.

The penalty of Foster, Pukdee, Rainforth (ICLR 2021), section 3, is the square of the
first-order term of n(h) at the full step alpha' - alpha; here it is compared with the
change that it stands for, over the size of the step.

Also of single parameters, not in the paper: the total effect of one is the variance
that remains where all others are known, half the mean squared change when it is drawn
anew (Jansen, 1999). If it is uniform on [a, b], that is at most `((b - a) / pi)^2`
times the mean squared derivative (Sobol and Kucherenko, 2009).
"""

from collections.abc import Callable
from functools import partial
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
from invariance_jax.numerics import magnitude, safe_divide, safe_sqrt
from invariance_jax.types import Array


class Changes(NamedTuple):
    """Squared norms of changes of r, each `[len(steps), B]`, at least float32.

    Attributes:
      true: of the change itself; squared representation units.
      linear: of its first-order term.
      difference: of one minus the other.
    """

    true: Array
    linear: Array
    difference: Array


class LinearizationError(NamedTuple):
    """What the first-order term is worth, a number per step.

    Attributes:
      relative_error: mean squared difference over mean squared true change; 0 is exact,
        at 1 no prediction would do as well.
      ratio: mean squared first-order term over mean squared true change: the factor by
        which the penalty over-estimates.
      median_ratio: median over examples of the ratio of the two, of the examples that
        change.
      top_share: share of the summed squared first-order term that the 1 % of the
        examples with the largest ones carry.
      cosine: mean over examples of the cosine between the two, of the examples of which
        one is not zero.
    """

    relative_error: Array
    ratio: Array
    median_ratio: Array
    top_share: Array
    cosine: Array


def linearize_changes(
    represent: Callable[[Array], Array], alpha: Array, alpha_other: Array, steps: Array
) -> Changes:
    """Returns the squared norms of the true and the first-order change per example.

    Computes, with `d = alpha' - alpha` and J the derivative of the representation r at
    alpha, for each step s: `||r(alpha + s d) - r(alpha)||^2`, `||s J d||^2` and the
    same of their difference.

    Args:
      represent: `alpha [B, P] -> r [B, D]`, such as n(h) of a view; an example must not
        depend on the others.
      alpha: `[B, P]`, where the derivative is taken.
      alpha_other: `[B, P]`, alpha', the end of the full step.
      steps: a float vector, the lengths s as shares of the full step.

    Returns:
      `Changes`.

    Raises:
      ValueError: if shapes disagree.

    Gradients: with respect to alpha, alpha_other and steps.
    Cost: one forward-mode pass, and a forward pass per step.
    """
    check_matrix("alpha", alpha, expected="[B, P]")
    check_same_shape(alpha=alpha, alpha_other=alpha_other)
    check_shape("steps", steps, (None,), expected="a vector")
    alpha, alpha_other = promote(alpha=alpha, alpha_other=alpha_other)
    direction = alpha_other - alpha

    precise = _checked(represent)
    start, slope = jax.jvp(precise, (alpha,), (direction,))

    def change(step: Array) -> Changes:
        true = precise(alpha + step * direction) - start
        linear = step * slope
        return Changes(_squared(true), _squared(linear), _squared(true - linear))

    (steps,) = promote(steps=steps)
    changes: Changes = jax.lax.map(change, steps.astype(alpha.dtype))
    return changes


class TotalEffects(NamedTuple):
    """One parameter of each example, each `[B]` in squared representation units.

    Attributes:
      bound: its mean bounds the total effect of a uniform parameter.
      effect: its mean is the total effect.
      linear: the first-order estimate of effect.
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
    alpha, other, widths = promote(alpha=alpha, alpha_other=alpha_other, widths=widths)
    chosen = jax.nn.one_hot(columns, alpha.shape[1], dtype=alpha.dtype)
    direction = chosen if signs is None else signs[:, None].astype(alpha.dtype) * chosen
    precise, step = _checked(represent), chosen * (other - alpha)
    start, slope = jax.jvp(precise, (alpha,), (direction,))
    slopes = _squared(slope)
    return TotalEffects(
        bound=jnp.square(chosen @ widths / np.pi) * slopes,
        effect=_squared(precise(alpha + step) - start) / 2,
        linear=_squared(step) * slopes / 2,
    )


def linearization_error(changes: Changes) -> LinearizationError:
    """Returns how well the first-order term predicts the change, for each step.

    Args:
      changes: those of one or more examples, `[len(steps), B]` each.

    Returns:
      `LinearizationError`, vectors with an entry per step; 0 where nothing changes.

    Raises:
      ValueError: if the shapes disagree, or there is no example.
    """
    check_same_shape(**changes._asdict())
    changes = Changes(*promote(**changes._asdict()))
    if changes.true.ndim != 2 or changes.true.shape[1] == 0:
        raise ValueError(
            "changes must be [len(steps), B] with B >= 1 examples; found "
            f"{list(changes.true.shape)}."
        )
    mean, unit = partial(jnp.mean, axis=1), magnitude(jnp.stack(changes), axis=(0, 2))
    true, linear, difference = (squares / unit[0] for squares in changes)
    moves = true > 0
    ratios = jnp.where(moves, linear / jnp.where(moves, true, 1), jnp.nan)
    count = -(-true.shape[1] // 100)  # 1 %, rounded up
    top = jnp.sum(jnp.sort(linear, axis=1)[:, -count:], axis=1)
    # |t - l|^2 = |t|^2 + |l|^2 - 2 t.l
    product = (true + linear - difference) / 2
    cosine = safe_divide(product, safe_sqrt(true) * safe_sqrt(linear))
    either = (moves | (linear > 0)).astype(true.dtype)
    return LinearizationError(
        relative_error=safe_divide(mean(difference), mean(true)),
        ratio=safe_divide(mean(linear), mean(true)),
        median_ratio=jnp.nan_to_num(jnp.nanmedian(ratios, axis=1)),
        top_share=safe_divide(top, jnp.sum(linear, axis=1)),
        cosine=safe_divide(mean(cosine), mean(either)),
    )


def _checked(represent: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns represent with its shape checked, in at least float32."""

    def precise(alpha: Array) -> Array:
        r = represent(alpha)
        check_shape(
            "what represent returns",
            r,
            (alpha.shape[0], None),
            expected="[B, D], one row per row of alpha",
        )
        return promote(represent=r)[0]

    return precise


def _squared(change: Array) -> Array:
    return jnp.sum(jnp.square(change), axis=-1)
