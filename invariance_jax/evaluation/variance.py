"""How much of a representation's variance the transformation makes.

Foster, Pukdee, Rainforth (ICLR 2021) measure the variance of the representation given
the example. Deviation: it is also divided by the total variance here, as shrinking
every representation towards one direction lowers the former alone.
"""

from typing import NamedTuple

import jax.numpy as jnp

from invariance_jax.arguments import check_shape, promote
from invariance_jax.numerics import magnitude, safe_divide
from invariance_jax.types import Array


class Variance(NamedTuple):
    """The variances of a representation, each a scalar and at least float32.

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
    """Returns the variance within examples, in total, and the ratio of the two.

    Computes `within = mean_b sum_d Var_m(h[m, b, d])` and
    `total = sum_d Var_{m,b}(h[m, b, d])`, both unbiased (ddof 1), of h as given: no
    normalization. An invariant representation has the ratio 0, one that knows nothing
    of the example about 1 (in expectation at most 1; a sample may lie above).

    Args:
      h: float `[M, B, D]`, M views of each of B examples; M and B 2 or more.

    Returns:
      `Variance`, three scalars.

    Raises:
      ValueError: if h is not `[M, B, D]`, or if M or B is below 2: of one example the
        two variances are the same, whatever the representation.

    Gradients: with respect to h; those of normalized are zero where total is 0.
    """
    h = _promote_views(h, least_examples=2)
    num_views, batch_size, _ = h.shape
    # Two passes. Subtracting one row first makes constant rows exactly zero, where the
    # rounding of their mean would leave noise that the ratio then takes for variance.
    views = h - h[:1]
    rows = h - h[:1, :1]
    unit = magnitude(rows)
    views, rows = views / unit, rows / unit
    views = views - jnp.mean(views, axis=0, keepdims=True)
    rows = rows - jnp.mean(rows, axis=(0, 1), keepdims=True)
    # In two steps: one long float32 sum would lose its last terms.
    within = jnp.mean(jnp.sum(jnp.square(views), axis=(0, 2)) / (num_views - 1))
    by_feature = jnp.sum(jnp.square(rows), axis=(0, 1))
    total = jnp.sum(by_feature / (batch_size * num_views - 1))
    unit = jnp.squeeze(unit)
    return Variance(
        within * unit * unit, total * unit * unit, safe_divide(within, total)
    )


def paired_change(h: Array) -> Array:
    """Returns half the mean squared change between two views of the same example.

    Computes `1/2 mean ||h[2k, b] - h[2k + 1, b]||^2` over the examples b and the
    disjoint pairs of their views. Of independent views its expectation is that of
    `Variance.within`; twice it is what the penalty's first-order term stands for.

    Args:
      h: float `[M, B, D]`, M views of each of B examples; M 2 or more, the last one of
        an odd number is left out.

    Returns:
      `[]`, squared representation units, at least float32.

    Raises:
      ValueError: if h is not `[M, B, D]`, if M is below 2, or if B is 0.

    Gradients: with respect to h.
    """
    h = _promote_views(h, least_examples=1)
    pairs = h.shape[0] // 2
    change = h[0 : 2 * pairs : 2] - h[1 : 2 * pairs : 2]
    unit = magnitude(change)
    squares = jnp.sum(jnp.square(change / unit), axis=-1)
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
