"""Contrastive losses: NT-Xent of SimCLR, InfoNCE of MoCo v3, and DCL.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual
Representations (ICML 2020), as used by Foster, Pukdee, Rainforth (ICLR 2021). Yeh,
Hong, Hsu, Liu, Chen, LeCun: Decoupled Contrastive Learning (ECCV 2022). Chen, Xie, He:
An Empirical Study of Training Self-Supervised Vision Transformers (ICCV 2021).

For an anchor a, its other view p, negatives n, cosine similarity s and temperature T,
DCL is `r = log sum_n exp((s(a, n) - s(a, p)) / T)`; NT-Xent and InfoNCE are `log(1 +
exp(r))`. In this form a small loss, where the negatives are far, stays exact. As the
difference of a `log sum exp` and `s(a, p) / T` it would be lost to rounding.
"""

import functools

import jax
import jax.numpy as jnp

from invariance_jax.arguments import (
    check_integer,
    check_matrix,
    check_number,
    promote_pair,
)
from invariance_jax.numerics import l2_normalize, num_replicas
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
      block_size: number of anchors whose similarities are in memory at a time. The
        backward pass recomputes them. The last block may be smaller. None: all 2B.
      axis_name: the mapped axis over which the batch is spread. Negatives come from all
        replicas. The gradients of the local means, averaged over replicas, give the
        gradient of the mean over the joined batch. In `jax.shard_map`, set
        `check_vma=False`, or take the gradient outside of it. None: one replica.

    Returns:
      `[B]`, nats, non-negative, for the examples of this replica; at least float32.

    Raises:
      ValueError: if z1 and z2 are not two matrices of one shape of real numbers, the
        temperature is not a positive number, or block_size is not a positive integer.

    Gradients: with respect to both projections; zero for a zero projection.
    Cost: one product of this replica's projections with all, two more backward, and
    one more backward with blocks. Memory: one array of similarities, `[2B, 2B]` on one
    replica; with blocks, two arrays of one block.
    """
    ratio = _log_ratios(z1, z2, temperature, block_size, axis_name)
    return jnp.mean(jax.nn.softplus(ratio), axis=0)


def dcl(
    z1: Array,
    z2: Array,
    *,
    temperature: float | Array,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Array:
    """Returns the decoupled contrastive loss of each example, mean over two anchors.

    Computes `log sum_n exp(s(a, n) / T) - s(a, p) / T` over the negatives n, which are
    all projections of other examples: NT-Xent without the positive in the sum, L_DC of
    Yeh et al. (2022). The mean of the result is the loss of the paper.

    Args:
      z1: `[B, D]`, projections of the first views.
      z2: `[B, D]`, projections of the second views, in the same order.
      temperature: T, positive scalar.
      block_size: as in `nt_xent`.
      axis_name: as in `nt_xent`.

    Returns:
      `[B]`, nats, of any sign, for the examples of this replica; at least float32.

    Raises:
      ValueError: as `nt_xent`, or if there is only one example, without negatives.

    Gradients: with respect to both projections; zero for a zero projection.
    Cost: that of `nt_xent`.
    """
    check_matrix("z1", z1, expected="[B, D]")
    if len(z1) * num_replicas(axis_name=axis_name) < 2:
        raise ValueError(
            f"z1 and z2 must hold 2 or more examples, for negatives; found {len(z1)}."
        )
    return jnp.mean(_log_ratios(z1, z2, temperature, block_size, axis_name), axis=0)


def info_nce(
    q: Array,
    k: Array,
    *,
    temperature: float | Array,
    block_size: int | None = None,
    axis_name: str | None = None,
) -> Array:
    """Returns the cross-entropy of finding the key of each query among all keys.

    Computes `-log(exp(s(q_i, k_i) / T) / sum_j exp(s(q_i, k_j) / T))` with cosine
    similarity s. MoCo v3, Chen, Xie, He (2021), multiplies it by 2 T, adds the same
    with the views exchanged, and stops gradients of keys: pass
    `jax.lax.stop_gradient(k)`.

    Args:
      q: `[B, D]`, queries, from one view.
      k: `[B, D]`, keys, from the other view, in the same order.
      temperature: T, positive scalar.
      block_size: as in `nt_xent`.
      axis_name: as in `nt_xent`; keys come from all replicas.

    Returns:
      `[B]`, nats, non-negative, for the examples of this replica; at least float32.

    Raises:
      ValueError: as `nt_xent`.

    Gradients: with respect to both; zero for a zero query.
    Cost: one product of this replica's queries with all keys, two more backward.
    """
    q, k = _normalized(temperature, q=q, k=k)
    all_keys, first = _gather(k, axis_name)
    positive = jnp.sum(q * k, axis=1)
    excluded = (first + jnp.arange(len(q)))[:, None]
    ratio = _log_ratio(q, positive, all_keys, excluded, temperature, block_size)
    return jax.nn.softplus(ratio)


def _log_ratios(
    z1: Array,
    z2: Array,
    temperature: float | Array,
    block_size: int | None,
    axis_name: str | None,
) -> Array:
    """Returns r of both anchors of each example, `[2, B]`."""
    z1, z2 = _normalized(temperature, z1=z1, z2=z2)
    anchors, positive = jnp.concatenate([z1, z2]), jnp.sum(z1 * z2, axis=1)
    all_rows, first = _gather(anchors, axis_name)
    own = jnp.arange(len(anchors))
    # Row numbers of each anchor and of its other view.
    excluded = first + jnp.stack([own, jnp.roll(own, len(z1))], axis=1)
    positive = jnp.tile(positive, 2)
    ratios = _log_ratio(anchors, positive, all_rows, excluded, temperature, block_size)
    return ratios.reshape(2, len(z1))


def _normalized(temperature: float | Array, **pair: Array) -> list[Array]:
    """Returns two matrices of one shape, each row divided by its norm."""
    check_number("temperature", temperature, low=0, above=True)
    return [l2_normalize(rows) for rows in promote_pair(**pair)]


def _gather(rows: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Returns the rows of all replicas, and the number of this replica's first row."""
    if axis_name is None:
        return rows, jnp.zeros((), jnp.int32)
    all_rows = jax.lax.all_gather(rows, axis_name, tiled=True)
    return all_rows, jax.lax.axis_index(axis_name) * len(rows)


def _log_ratio(
    anchors: Array,
    positive: Array,
    all_rows: Array,
    excluded: Array,
    temperature: float | Array,
    block_size: int | None,
) -> Array:
    """Returns r of each anchor, `[A]`; -inf without negatives.

    `positive`, `[A]`, is its similarity to its other view. Its negatives are all rows
    except those numbered in `excluded`, `[A, 1]` or `[A, 2]`.
    """
    if len(all_rows) == excluded.shape[1]:
        return jnp.full(len(anchors), -jnp.inf, anchors.dtype)
    temperature = jnp.asarray(temperature, anchors.dtype)

    def log_ratio(anchor: Array, positive: Array, excluded: Array) -> Array:
        # "highest": accelerators otherwise round float32 factors to 8 or 11 bits.
        similarity = jnp.matmul(anchor, all_rows.T, precision="highest")
        index = jnp.arange(len(all_rows))
        negative = functools.reduce(jnp.logical_and, [index != n for n in excluded])
        difference = (similarity - positive) / temperature
        return jax.nn.logsumexp(jnp.where(negative, difference, -jnp.inf))

    rows = anchors, positive, excluded
    if block_size is None:
        return jax.vmap(log_ratio)(*rows)
    block_size = check_integer("block_size", block_size)
    recomputed = jax.checkpoint(log_ratio)
    return jax.lax.map(lambda row: recomputed(*row), rows, batch_size=block_size)
