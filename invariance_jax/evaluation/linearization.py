"""How well the first-order change of a representation predicts the true one.

The penalty of Foster, Pukdee, Rainforth (ICLR 2021), section 3, is the square of the
first-order term of n(h) at the full step alpha' - alpha; here it is compared with the
change that it stands for, over the size of the step.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from invariance_jax.numerics import safe_divide, safe_sqrt
from invariance_jax.types import Array


class Changes(NamedTuple):
    """Squared norms of changes of the representation, each `[len(steps), B]`.

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
    chex.assert_rank(
        [alpha, steps],
        [2, 1],
        custom_message="alpha must be [B, P], steps a vector",
        exception_type=ValueError,
    )
    chex.assert_equal_shape(
        [alpha, alpha_other],
        custom_message="alpha_other must have the shape of alpha",
        exception_type=ValueError,
    )
    direction = alpha_other - alpha
    start, slope = jax.jvp(represent, (alpha,), (direction,))
    chex.assert_shape(
        start,
        (alpha.shape[0], None),
        custom_message="represent must return [B, D], one row per row of alpha",
        exception_type=ValueError,
    )

    def change(step: Array) -> Changes:
        true = represent(alpha + step * direction) - start
        linear = step * slope
        return Changes(_squared(true), _squared(linear), _squared(true - linear))

    changes: Changes = jax.lax.map(change, steps.astype(alpha.dtype))
    return changes


def linearization_error(changes: Changes) -> LinearizationError:
    """Returns how well the first-order term predicts the change, for each step.

    Args:
      changes: those of one or more examples, `[len(steps), B]` each.

    Returns:
      `LinearizationError`, vectors with an entry per step; 0 where nothing changes.

    Raises:
      ValueError: if the shapes disagree, or there is no example.
    """
    chex.assert_equal_shape(
        [*changes], custom_message="changes", exception_type=ValueError
    )
    if changes.true.ndim != 2 or changes.true.shape[1] == 0:
        raise ValueError(
            "changes must be [len(steps), B] with B >= 1 examples; found "
            f"{list(changes.true.shape)}."
        )
    true, linear, difference = changes
    moves = true > 0
    ratios = jnp.where(moves, linear / jnp.where(moves, true, 1), jnp.nan)
    count = -(-true.shape[1] // 100)  # 1 %, rounded up
    top = jnp.sum(jnp.sort(linear, axis=1)[:, -count:], axis=1)
    # |t - l|^2 = |t|^2 + |l|^2 - 2 t.l
    product = (true + linear - difference) / 2
    cosine = safe_divide(product, safe_sqrt(true) * safe_sqrt(linear))
    either = (moves | (linear > 0)).astype(true.dtype)
    return LinearizationError(
        relative_error=safe_divide(_mean(difference), _mean(true)),
        ratio=safe_divide(_mean(linear), _mean(true)),
        median_ratio=jnp.nan_to_num(jnp.nanmedian(ratios, axis=1)),
        top_share=safe_divide(top, jnp.sum(linear, axis=1)),
        cosine=safe_divide(_mean(cosine), _mean(either)),
    )


def _squared(change: Array) -> Array:
    return jnp.sum(jnp.square(change), axis=-1)


def _mean(values: Array) -> Array:
    return jnp.mean(values, axis=1)
