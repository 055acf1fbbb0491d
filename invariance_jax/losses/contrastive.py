"""The contrastive loss of SimCLR (NT-Xent).

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual
Representations (ICML 2020), as used by Foster, Pukdee, Rainforth (ICLR 2021).
"""

import chex
import jax
import jax.numpy as jnp

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
      `[B]`, nats, for the examples of this replica.

    Raises:
      ValueError: if z1 and z2 are not two matrices of one shape, the temperature is a
        Python number that is not positive, or the block size is not positive.

    Gradients: with respect to both projections; zero for a zero projection.
    Cost: one product of this replica's projections with all, twice that backward, and
    once more with blocks. Memory: one array of the similarities, `[2B, 2B]` on one
    replica, or two of those of a block.
    """
    chex.assert_rank(
        [z1, z2], 2, custom_message="z1, z2 must be [B, D].", exception_type=ValueError
    )
    chex.assert_equal_shape(
        [z1, z2],
        custom_message="z1 and z2 must be of one shape [B, D].",
        exception_type=ValueError,
    )
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature must be positive; found {temperature}.")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be positive or None; found {block_size}.")
    anchors = jnp.concatenate([l2_normalize(z1), l2_normalize(z2)])
    everyone, first = anchors, jnp.zeros((), jnp.int32)
    if axis_name is not None:
        everyone = jax.lax.all_gather(anchors, axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(anchors)

    def log_partition(anchor: Array, itself: Array) -> Array:
        # "highest": accelerators otherwise round float32 factors to 8 or 11 bits.
        logits = jnp.matmul(anchor, everyone.T, precision="highest") / temperature
        others = jnp.arange(len(everyone)) != itself
        return jax.nn.logsumexp(jnp.where(others, logits, -jnp.inf))

    rows = anchors, first + jnp.arange(len(anchors))
    if block_size is None:
        partitions = jax.vmap(log_partition)(*rows)
    else:
        again = jax.checkpoint(log_partition)
        partitions = jax.lax.map(lambda row: again(*row), rows, batch_size=block_size)
    partition = jnp.mean(partitions.reshape(2, -1), axis=0)
    positive = jnp.sum(anchors[: len(z1)] * anchors[len(z1) :], axis=1) / temperature
    return partition - positive
