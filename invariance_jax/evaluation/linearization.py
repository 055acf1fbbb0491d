"""How well the first-order change of a representation predicts the true change.

The penalty of Foster, Pukdee, Rainforth (ICLR 2021), section 3, is the square of the
first-order term of n(h) for the full step alpha' - alpha. Here this term is compared
with the change that it approximates, for steps of several lengths.

Also the total effects of single parameters, which are not in the paper. The total
effect of a parameter is the variance that remains when all others are known. It is half
the mean squared change when only this parameter is redrawn (Jansen, 1999). For a
parameter that is uniform on [a, b] it is at most `((b - a) / pi)^2` times the mean
squared derivative (Sobol and Kucherenko, 2009).

Rounding does not count as change: a change of r whose norm is below 8 eps times the
norm of r is 0, with a derivative of 0. So is a first-order change below this, since
rounding hides the true change that it predicts. eps is that of the dtype of r, at least
float32.
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
from invariance_jax.numerics import above_rounding, magnitude, safe_divide, safe_sqrt
from invariance_jax.types import Array


class Changes(NamedTuple):
    """Squared norms of changes of r, each `[len(steps), B]`, at least float32.

    All are in squared representation units. A true or first-order change that is not
    above rounding is 0.

    Attributes:
      true: squared norm of the true change.
      linear: squared norm of its first-order term.
      difference: squared norm of the true change minus its first-order term; the other
        of these two if one of them is 0.
    """

    true: Array
    linear: Array
    difference: Array


class LinearizationError(NamedTuple):
    """Accuracy of the first-order term, one number per step in each attribute.

    Attributes:
      relative_error: mean squared difference over mean squared true change. 0: exact;
        1: no better than predicting no change.
      ratio: mean squared first-order term over mean squared true change, the factor by
        which the penalty over-estimates.
      median_ratio: median over examples of the squared first-order term over the
        squared true change, without the examples whose true change is zero.
      top_share: share of the sum of all squared first-order terms that is due to the
        1 % of the examples with the largest ones.
      cosine: mean over examples of the cosine between first-order term and true change,
        0 where one of them is zero, without the examples where both are.
    """

    relative_error: Array
    ratio: Array
    median_ratio: Array
    top_share: Array
    cosine: Array


def linearize_changes(
    represent: Callable[[Array], Array], alpha: Array, alpha_other: Array, steps: Array
) -> Changes:
    """Returns squared norms of the true and the first-order change of each example.

    Computes, with `d = alpha' - alpha` and J the derivative of the representation r at
    alpha, for each step s: `||r(alpha + s d) - r(alpha)||^2`, `||s J d||^2` and the
    squared norm of the difference of the two changes. Of an example that d does not
    change, as where a gate is off, all three are 0.

    Args:
      represent: `alpha [B, P] -> r [B, D]`, such as n(h) of a view; an example must not
        depend on the others.
      alpha: `[B, P]`, where the derivative is taken.
      alpha_other: `[B, P]`, alpha', the end of the full step.
      steps: a float vector, the lengths s as shares of the full step.

    Returns:
      `Changes`, one row per step.

    Raises:
      ValueError: if shapes disagree.

    Gradients: with respect to alpha, alpha_other and steps.
    Cost: one forward-mode pass, and one forward pass per step.
    """
    check_matrix("alpha", alpha, expected="[B, P]")
    check_same_shape(alpha=alpha, alpha_other=alpha_other)
    check_shape("steps", steps, (None,), expected="a vector")
    alpha, alpha_other = promote(alpha=alpha, alpha_other=alpha_other)
    direction = alpha_other - alpha

    checked = _check_output(represent)
    start, slope = jax.jvp(checked, (alpha,), (direction,))
    size = _squared_norm(start)

    def change(step: Array) -> Changes:
        changes = checked(alpha + step * direction) - start, step * slope
        true, linear = (above_rounding(_squared_norm(c), size) for c in changes)
        difference = _squared_norm(changes[0] - changes[1])
        both = (true > 0) & (linear > 0)
        return Changes(true, linear, jnp.where(both, difference, true + linear))

    (steps,) = promote(steps=steps)
    changes: Changes = jax.lax.map(change, steps.astype(alpha.dtype))
    return changes


class TotalEffects(NamedTuple):
    """Terms of the total effect of one parameter, `[B]`, squared representation units.

    Each is 0 where the change of which it is the square is not above rounding.

    Attributes:
      bound: its mean is an upper bound on the total effect of a uniform parameter.
      effect: its mean is an estimate of the total effect.
      linear: the first-order approximation of `effect`.
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
    """Returns terms of the total effect of one parameter for each example.

    Computes, for the parameter j of an example and the derivative d of r with respect
    to alpha_j: `((b - a) / pi)^2 ||d||^2`, `1/2 ||r(alpha with alpha'_j) -
    r(alpha)||^2` and `1/2 (alpha'_j - alpha_j)^2 ||d||^2`.

    Args:
      represent: `alpha [B, P] -> r [B, D]`, such as n(h) of a view.
      alpha: `[B, P]`, where the derivative is taken.
      alpha_other: `[B, P]`, alpha', an independent draw.
      columns: integer `[B]`, the parameter j of each example.
      widths: `[P]`, b - a of each parameter.
      signs: `[B]`, independent random signs, +1 or -1, of the derivative's directions;
        needed if batch statistics couple the examples. None: all +1.

    Returns:
      `TotalEffects`, at least float32.

    Raises:
      ValueError: if shapes disagree, or if columns are not integers from 0 to P - 1
        (not checked where traced).

    Gradients: with respect to alpha, alpha_other and widths.
    Cost: one forward-mode pass and one forward pass.
    """
    check_matrix("alpha", alpha, expected="[B, P]")
    check_same_shape(alpha=alpha, alpha_other=alpha_other)
    check_shape("columns", columns, alpha.shape[:1], expected="[B]")
    check_shape("widths", widths, alpha.shape[1:], expected="[P]")
    if signs is not None:
        check_shape("signs", signs, alpha.shape[:1], expected="[B]")
    if not isinstance(columns, jax.core.Tracer):
        host, most = np.asarray(columns), alpha.shape[1] - 1
        if host.dtype.kind not in "iu" or (host < 0).any() or (host > most).any():
            raise ValueError(
                f"columns must be integers from 0 to {most}; found {host}."
            )
    alpha, other, widths = promote(alpha=alpha, alpha_other=alpha_other, widths=widths)
    mask = jax.nn.one_hot(columns, alpha.shape[1], dtype=alpha.dtype)
    direction = mask if signs is None else signs[:, None].astype(alpha.dtype) * mask
    checked, step = _check_output(represent), mask * (other - alpha)
    start, slope = jax.jvp(checked, (alpha,), (direction,))
    slopes, size = _squared_norm(slope), _squared_norm(start)
    true = _squared_norm(checked(alpha + step) - start)
    width = jnp.sum(mask * widths[None], axis=1)
    return TotalEffects(
        bound=above_rounding(jnp.square(width / np.pi) * slopes, size),
        effect=above_rounding(true, size) / 2,
        linear=above_rounding(_squared_norm(step) * slopes, size) / 2,
    )


def linearization_error(changes: Changes) -> LinearizationError:
    """Returns how well the first-order term predicts the change, for each step.

    Args:
      changes: `[len(steps), B]` each, of one or more examples.

    Returns:
      `LinearizationError`, `[len(steps)]` each, without unit; 0 where nothing changes.

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
    has_change = true > 0
    ratios = jnp.where(has_change, linear / jnp.where(has_change, true, 1), jnp.nan)
    count = -(-true.shape[1] // 100)  # 1 %, rounded up
    top = jnp.sum(jnp.sort(linear, axis=1)[:, -count:], axis=1)
    # |t - l|^2 = |t|^2 + |l|^2 - 2 t.l
    product = (true + linear - difference) / 2
    cosine = safe_divide(product, safe_sqrt(true) * safe_sqrt(linear))
    has_any_change = (has_change | (linear > 0)).astype(true.dtype)
    # 0, or NaN if anything is NaN, which median and cosine would hide.
    undefined = 0 * mean(true + linear + difference)
    return LinearizationError(
        relative_error=safe_divide(mean(difference), mean(true)),
        ratio=safe_divide(mean(linear), mean(true)),
        median_ratio=jnp.nan_to_num(jnp.nanmedian(ratios, axis=1)) + undefined,
        top_share=safe_divide(top, jnp.sum(linear, axis=1)),
        cosine=safe_divide(mean(cosine), mean(has_any_change)) + undefined,
    )


def _check_output(represent: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns represent with the shape of its output checked, in at least float32."""

    def checked(alpha: Array) -> Array:
        r = represent(alpha)
        expected = "[B, D], one row per row of alpha"
        check_shape("the output of represent", r, (len(alpha), None), expected=expected)
        return promote(represent=r)[0]

    return checked


def _squared_norm(change: Array) -> Array:
    return jnp.sum(jnp.square(change), axis=-1)
