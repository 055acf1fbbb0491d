"""Contrastive losses: NT-Xent of SimCLR, and DCL, which has no positive in the sum.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual
Representations (ICML 2020), as used by Foster, Pukdee, Rainforth (ICLR 2021). Yeh,
Hong, Hsu, Liu, Chen, LeCun: Decoupled Contrastive Learning (ECCV 2022).

Of an anchor a with its other view p and the negatives n, cosine similarity s and
temperature T, DCL is `r = log sum_n exp((s(a, n) - s(a, p)) / T)` and NT-Xent is `log(1
+ exp(r))`. So nothing cancels where the negatives are far: `log sum - s(a, p) / T`
would lose the loss of a well trained batch, and its gradient, to rounding.
"""

import jax
import jax.numpy as jnp

from invariance_jax.arguments import (
    check_integer,
    check_matrix,
    check_number,
    check_same_shape,
    promote,
)
from invariance_jax.numerics import l2_normalize
from invariance_jax.types import Array


def nt_xent(
    z1: Array,
    z2: Array,
    *,
    temperature: float | Array,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Array:
    """Returns the contrastive loss of each example, the mean over its two anchors.

    Computes, for each of the 2B projections, the cross-entropy of finding its other
    view among all projections but itself, with cosine similarity divided by the
    temperature as logits. The mean of the result is the loss of the papers.

    Args:
      z1: `[B, D]`, projections of the first views.
      z2: `[B, D]`, projections of the second views, in the same order.
      temperature: positive scalar.
      block_size: anchors whose similarities are held at a time, in the backward pass
        too, which computes them again; the last block may be smaller. None: all 2B.
      axis_name: the mapped axis over which the batch is spread; negatives come from all
        replicas, and the mean over replicas of the gradients of the local means is the
        gradient of the mean over the joined batch. None: one replica.

    Returns:
      `[B]`, nats, non-negative, for the examples of this replica; at least float32.

    Raises:
      ValueError: if z1 and z2 are not two matrices of one shape of real numbers, the
        temperature is not a positive number, or the block size no positive integer.

    Gradients: with respect to both projections; zero for a zero projection.
    Cost: one product of this replica's projections with all, twice that backward, and
    once more with blocks. Memory: one array of the similarities, `[2B, 2B]` on one
    replica, or two of those of a block.
    """
    ratio = _log_ratio(z1, z2, temperature, block_size, axis_name)
    return jnp.mean(jax.nn.softplus(ratio), axis=0)


def dcl(
    z1: Array,
    z2: Array,
    *,
    temperature: float | Array,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Array:
    """Returns the decoupled contrastive loss of each example, the mean of two anchors.

    Computes `log sum_n exp(s(a, n) / T) - s(a, p) / T` over the negatives n, which are
    all projections but those of the example itself: NT-Xent without the positive in the
    sum, L_DC of Yeh et al. (2022). The mean of the result is the loss of the paper.

    Args:
      z1: `[B, D]`, projections of the first views.
      z2: `[B, D]`, projections of the second views, in the same order.
      temperature: T, positive scalar.
      block_size: as of `nt_xent`.
      axis_name: as of `nt_xent`.

    Returns:
      `[B]`, nats, of any sign, for the examples of this replica; at least float32.

    Raises:
      ValueError: as `nt_xent`, or if there is one example, which has no negatives.

    Gradients: with respect to both projections; zero for a zero projection.
    Cost: that of `nt_xent`.
    """
    replicas = 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if len(z1) * replicas < 2:
        raise ValueError(
            f"z1 and z2 must hold 2 or more examples, for negatives; found {len(z1)}."
        )
    ratio = _log_ratio(z1, z2, temperature, block_size, axis_name)
    return jnp.mean(ratio, axis=0)


def _log_ratio(
    z1: Array,
    z2: Array,
    temperature: float | Array,
    block_size: int | None,
    axis_name: str | None,
) -> Array:
    """Returns r of each anchor, `[2, B]`; -inf without negatives."""
    check_matrix("z1", z1, expected="[B, D]")
    check_same_shape(z1=z1, z2=z2)
    check_number("temperature", temperature, low=0, above=True)
    z1, z2 = promote(z1=z1, z2=z2)
    z1, z2 = l2_normalize(z1), l2_normalize(z2)
    batch_size, anchors = len(z1), jnp.concatenate([z1, z2])
    positive = jnp.tile(jnp.sum(z1 * z2, axis=1), 2)
    everyone, first = anchors, jnp.zeros((), jnp.int32)
    if axis_name is not None:
        everyone = jax.lax.all_gather(anchors, axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(anchors)
    if len(everyone) == 2:
        return jnp.full((2, 1), -jnp.inf, z1.dtype)
    own = jnp.arange(len(anchors))
    # The own place of an anchor among everyone, and that of its other view.
    places = first + jnp.stack([own, jnp.roll(own, batch_size)], axis=1)
    temperature = jnp.asarray(temperature, z1.dtype)

    def log_ratio(anchor: Array, positive: Array, places: Array) -> Array:
        # "highest": accelerators otherwise round float32 factors to 8 or 11 bits.
        similarity = jnp.matmul(anchor, everyone.T, precision="highest")
        index = jnp.arange(len(everyone))
        negative = (index != places[0]) & (index != places[1])
        difference = (similarity - positive) / temperature
        return jax.nn.logsumexp(jnp.where(negative, difference, -jnp.inf))

    rows = anchors, positive, places
    if block_size is None:
        ratios = jax.vmap(log_ratio)(*rows)
    else:
        block_size = check_integer("block_size", block_size)
        again = jax.checkpoint(log_ratio)
        ratios = jax.lax.map(lambda row: again(*row), rows, batch_size=block_size)
    return ratios.reshape(2, batch_size)
