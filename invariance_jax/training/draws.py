"""The random numbers of one training step, for the whole global batch.

Randomness belongs to the example, not to the device: every replica makes the same draws
from `fold_in(key, step)` (a few numbers per example) and takes its slice, so a resumed
run, on any number of devices, draws the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, Key

_FEISTEL_ROUNDS = 6


class Draws(NamedTuple):
    """What is random in one step; every leaf has leading axis B.

    Attributes:
      indices: int32 `[B]`, the examples.
      first: the view whose representation is penalized.
      second: the other view.
      alpha_other: `[B, K, P]`, ends of the penalty's directions, reflected about alpha
        with an independent sign per example: then the cross terms that batch statistics
        add to the penalty vanish in expectation.
    """

    indices: Array
    first: View
    second: View
    alpha_other: Array


def make_draw(
    transformation: Transformation,
    *,
    num_examples: int,
    batch_size: int,
    directions: int,
) -> Callable[[Key, Array], Draws]:
    """Returns `draw(key, step)`, the draws of a step for the global batch.

    An epoch is num_examples // batch_size steps over a random permutation; the
    remainder of the permutation is left out, another one in each epoch.

    Args:
      transformation: what the views are drawn from.
      num_examples: N, size of the training set.
      batch_size: B, at most N.
      directions: K of the penalty.

    Returns:
      `(key, step int32 []) -> Draws`, pure.
    """
    steps_per_epoch = num_examples // batch_size

    def draw(key: Key, step: Array) -> Draws:
        order_key, views_key = jax.random.split(key)
        epoch, within = step // steps_per_epoch, step % steps_per_epoch
        positions = within * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        indices = shuffle(
            jax.random.fold_in(order_key, epoch), positions, num_examples=num_examples
        )
        keys = jax.random.split(jax.random.fold_in(views_key, step), 3 + directions)
        first = transformation.sample(keys[0], batch_size)
        second = transformation.sample(keys[1], batch_size)
        sign = jax.random.rademacher(keys[2], (batch_size, directions, 1), jnp.float32)
        drawn = [transformation.sample(k, batch_size).alpha for k in keys[3:]]
        alpha = first.alpha[:, None]
        return Draws(
            indices, first, second, alpha + sign * (jnp.stack(drawn, axis=1) - alpha)
        )

    return draw


def shuffle(key: Key, positions: Array, *, num_examples: int) -> Array:
    """Returns where a random permutation of range(num_examples) sends the positions.

    A Feistel network permutes the smallest power of 4 that is large enough, and is
    applied again to what falls outside (cycle walking). Unlike sorting random numbers
    it needs no array of num_examples, so it is cheap inside a step.

    Args:
      key: chooses the permutation.
      positions: int32 `[B]`, in [0, num_examples).
      num_examples: N, at most 2**30.

    Returns:
      int32 `[B]`, in [0, N), different for different positions.
    """
    half_bits = max(1, (max(num_examples - 1, 1).bit_length() + 1) // 2)
    mask = jnp.uint32(2**half_bits - 1)
    round_keys = jax.random.bits(key, (_FEISTEL_ROUNDS,), jnp.uint32)

    def permute(values: Array) -> Array:
        left, right = values >> half_bits, values & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << half_bits) | right

    def walk(values: Array) -> Array:
        return jnp.where(values >= num_examples, permute(values), values)

    values = permute(positions.astype(jnp.uint32))
    values = jax.lax.while_loop(lambda v: jnp.any(v >= num_examples), walk, values)
    return values.astype(jnp.int32)


def _mix(x: Array) -> Array:
    """Returns the 32-bit finalizer of MurmurHash3: every output bit depends on all."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
