"""The share of a representation's variance that the transformation causes.

Foster, Pukdee, Rainforth (ICLR 2021) measure the variance of the representation given
the example. Deviation: here it is also divided by the total variance. An encoder that
maps all examples close to one direction has a small variance given the example, but not
a small ratio.

Rounding does not count as change: a variance over the views of one example, or a
squared change between two of them, is 0 if its root is below 8 eps times the norm of h.
The variance must also be below 8 eps times the total variance, as in a collapse all
variance is rounding. eps is that of the dtype of h, at least float32: the rounding of
an encoder that computes in bfloat16 counts as change.
"""

from typing import NamedTuple

import jax.numpy as jnp

from invariance_jax.arguments import check_shape, promote
from invariance_jax.numerics import above_rounding, magnitude, safe_divide
from invariance_jax.types import Array


class Variance(NamedTuple):
    """Variances of a representation, scalars in at least float32.

    Attributes:
      within: mean over examples of the variance over the views of the example, summed
        over features; squared representation units.
      total: variance over all views of all examples, summed over features; squared
        representation units.
      normalized: within / total, without a unit; 0 where total is 0.
    """

    within: Array
    total: Array
    normalized: Array


def invariance(h: Array) -> Variance:
    """Returns the variance within examples, the total variance, and their ratio.

    Computes `within = mean_b sum_d Var_m(h[m, b, d])` and
    `total = sum_d Var_{m,b}(h[m, b, d])`, both with ddof 1, of h as given, which is not
    normalized here. The ratio is 0 for an invariant representation, and about 1 for one
    that is independent of the example. The expectation of within is at most that of
    total; the ratio of a sample may be above 1.

    Args:
      h: float `[M, B, D]`, M views of each of B examples; M and B 2 or more.

    Returns:
      `Variance`, three scalars.

    Raises:
      ValueError: if h is not `[M, B, D]`, or if M or B is below 2 (for one example both
        variances are equal, whatever the representation).

    Gradients: with respect to h; those of normalized are zero where total is 0.
    """
    h = _promote_views(h, least_examples=2)
    num_views, batch_size, _ = h.shape
    # Two passes. Subtracting one row first makes constant rows exactly zero. Otherwise
    # the rounding error of their mean would appear as variance in the ratio.
    views = h - h[:1]
    rows = h - h[:1, :1]
    unit = magnitude(rows)
    size = jnp.sum(jnp.square(h[0] / unit[0]), axis=-1)
    views, rows = views / unit, rows / unit
    views = views - jnp.mean(views, axis=0, keepdims=True)
    rows = rows - jnp.mean(rows, axis=(0, 1), keepdims=True)
    # Summed in two steps: one long float32 sum would lose its last terms.
    by_example = jnp.sum(jnp.square(views), axis=(0, 2)) / (num_views - 1)
    by_feature = jnp.sum(jnp.square(rows), axis=(0, 1))
    total = jnp.sum(by_feature / (batch_size * num_views - 1))
    # A collapse is no invariance: only what is far below total counts as rounding.
    share = 8 * jnp.finfo(h.dtype).eps  # type: ignore[no-untyped-call]
    within = jnp.mean(above_rounding(by_example, jnp.minimum(size, total / share)))
    unit = jnp.squeeze(unit)
    return Variance(
        within * unit * unit, total * unit * unit, safe_divide(within, total)
    )


def paired_change(h: Array) -> Array:
    """Returns half the mean squared change between two views of the same example.

    Computes `1/2 mean ||h[2k, b] - h[2k + 1, b]||^2` over the examples b and the
    disjoint pairs k of their views. For independent views it has the expectation of
    `Variance.within`. The penalty's first-order term approximates twice this value.

    Args:
      h: float `[M, B, D]`, M views of each of B examples; M 2 or more. If M is odd, the
        last view is left out.

    Returns:
      `[]`, squared representation units, non-negative, at least float32.

    Raises:
      ValueError: if h is not `[M, B, D]`, if M is below 2, or if B is 0.

    Gradients: with respect to h.
    """
    h = _promote_views(h, least_examples=1)
    pairs = h.shape[0] // 2
    start = h[0 : 2 * pairs : 2]
    change = start - h[1 : 2 * pairs : 2]
    unit = magnitude(change)
    squares, size = (jnp.sum(jnp.square(r / unit), axis=-1) for r in (change, start))
    squares = above_rounding(squares, size)
    unit = jnp.squeeze(unit)
    return jnp.mean(squares) / 2 * unit * unit


def _promote_views(h: Array, *, least_examples: int) -> Array:
    check_shape(
        "h", h, (None, None, None), expected="[M, B, D], M views of each example"
    )
    num_views, batch_size, _ = h.shape
    if num_views < 2 or batch_size < least_examples:
        raise ValueError(
            f"h must hold M >= 2 views of B >= {least_examples} examples for a "
            f"variance over views; found M = {num_views}, B = {batch_size}."
        )
    return promote(h=h)[0]
