"""The random numbers of one training step, for the whole global batch.

Randomness belongs to the example, not to the device: every replica makes the same draws
from `fold_in(key, step)` (a few numbers per example) and takes its slice, so a resumed
run, on any number of devices, draws the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, Key

_FEISTEL_ROUNDS = 6
# What options add is drawn from a child of the key that its split does not yield.
_OPTIONS_STREAM = 4


class Side(NamedTuple):
    """The draws of one side of the contrastive loss.

    Attributes:
      views: one or more, whose representations are averaged.
      alpha_other: `[B, K, P]`, ends of the directions of the first view's penalty.
      signs: `[B, K, D]`, onto which its derivatives are projected.
    """

    views: tuple[View, ...]
    alpha_other: Array | None
    signs: Array | None


class Draws(NamedTuple):
    """What is random in one step; every leaf has leading axis B.

    What is switched off is not drawn: None, or no view.

    Attributes:
      indices: int32 `[B]`, the examples.
      first: the view whose representation is penalized.
      second: the other view, penalized too if `penalty.views` is 2.
      alpha_other: `[B, K, P]`, ends of the penalty's directions, reflected about alpha
        with an independent sign per example: then the cross terms that batch statistics
        add to the penalty vanish in expectation.
      signs: `[B, K, D]`, random signs in the space of the representation.
      second_other: `[B, K, P]`, as alpha_other, of the second view.
      second_signs: `[B, K, D]`, as signs, of the second view.
      first_more: further views on the side of the first one, to be averaged.
      second_more: further views on the side of the second one.
    """

    indices: Array
    first: View
    second: View
    alpha_other: Array | None
    signs: Array | None = None
    second_other: Array | None = None
    second_signs: Array | None = None
    first_more: tuple[View, ...] = ()
    second_more: tuple[View, ...] = ()

    @property
    def sides(self) -> tuple[Side, Side]:
        """Returns the same by side."""
        return (
            Side((self.first, *self.first_more), self.alpha_other, self.signs),
            Side(
                (self.second, *self.second_more), self.second_other, self.second_signs
            ),
        )


def make_draw(
    transformation: Transformation,
    *,
    num_examples: int,
    batch_size: int,
    directions: int,
    penalized_views: int = 1,
    sign_features: int | None = None,
    average_views: int = 1,
) -> Callable[[Key, Array], Draws]:
    """Returns `draw(key, step)`, the draws of a step for the global batch.

    An epoch is num_examples // batch_size steps over a random permutation; the
    remainder of the permutation is left out, another one in each epoch. An option that
    adds draws leaves the others as they are.

    Args:
      transformation: what the views are drawn from.
      num_examples: N, size of the training set.
      batch_size: B, at most N.
      directions: K of the penalty.
      penalized_views: views for which directions are drawn, 0, 1 or 2.
      sign_features: D of the random signs; None: no signs.
      average_views: views on each side.

    Returns:
      `(key, step int32 []) -> Draws`, pure.
    """
    steps_per_epoch = num_examples // batch_size

    def sample(key: Key) -> View:
        return transformation.sample(key, batch_size)

    def draw_ends(keys: Key, view: View) -> Array:
        sign = jax.random.rademacher(keys[0], (batch_size, directions, 1), jnp.float32)
        drawn = [sample(k).alpha for k in keys[1:]]
        alpha = view.alpha[:, None]
        return alpha + sign * (jnp.stack(drawn, axis=1) - alpha)

    def draw_signs(key: Key) -> Array | None:
        if sign_features is None:
            return None
        shape = (batch_size, directions, sign_features)
        return jax.random.rademacher(key, shape, jnp.float32)

    def draw(key: Key, step: Array) -> Draws:
        order_key, views_key = jax.random.split(key)
        epoch, within = step // steps_per_epoch, step % steps_per_epoch
        positions = within * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        indices = shuffle(
            jax.random.fold_in(order_key, epoch), positions, num_examples=num_examples
        )
        keys = jax.random.split(jax.random.fold_in(views_key, step), 3 + directions)
        first, second = sample(keys[0]), sample(keys[1])

        def own(number: int) -> Key:
            stream = jax.random.fold_in(key, _OPTIONS_STREAM)
            return jax.random.fold_in(jax.random.fold_in(stream, step), number)

        drawn: dict[str, Any] = {"alpha_other": None}
        if penalized_views > 0:
            drawn["alpha_other"] = draw_ends(keys[2:], first)
            drawn["signs"] = draw_signs(own(0))
        if penalized_views > 1:
            second_keys = jax.random.split(own(1), 1 + directions)
            drawn["second_other"] = draw_ends(second_keys, second)
            drawn["second_signs"] = draw_signs(own(2))
        for start, name in ((3, "first_more"), (4, "second_more")):
            more = range(start, start + 2 * (average_views - 1), 2)
            drawn[name] = tuple(sample(own(number)) for number in more)
        return Draws(indices, first, second, **drawn)

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
