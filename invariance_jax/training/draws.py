"""The random views of one training step, for the whole global batch.

Randomness belongs to the example, not to the device: every replica makes the same draws
from the key and the step (a few numbers per example) and takes its slice, so a resumed
run, on any number of devices, draws the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, Key

# What options add is drawn from a child of the key that its split does not yield.
_OPTIONS_STREAM = 4


class Side(NamedTuple):
    """The draws of one side of the loss; what is switched off is None.

    Attributes:
      views: one or more, whose representations are averaged.
      alpha_other: `[B, K, P]`, ends of the directions of the first view's penalty,
        reflected about alpha with an independent sign per example: then the cross terms
        that batch statistics add to the penalty vanish in expectation.
      signs: `[B, K, D]`, random signs onto which its derivatives are projected.
    """

    views: tuple[View, ...]
    alpha_other: Array | None = None
    signs: Array | None = None


class Draws(NamedTuple):
    """What is random in the views of one step; every leaf has leading axis B.

    Attributes:
      first: the side whose first view is penalized.
      second: the other side, penalized too if `penalty.views` is 2.
    """

    first: Side
    second: Side


def make_draw(
    transformation: Transformation,
    *,
    batch_size: int,
    directions: int,
    derivatives: int = 1,
    sign_features: int | None = None,
    average_views: int = 1,
) -> Callable[..., Draws]:
    """Returns `(key, step int32 [], sizes) -> Draws` of the global batch, pure.

    Of images of many sizes, sizes are int32 `[B, 2]`, else None.

    An option that adds draws leaves the others as they are.

    Args:
      transformation: what the views are drawn from.
      batch_size: B.
      directions: K of the penalty.
      derivatives: sides whose derivative is taken, 0, 1 or 2.
      sign_features: D of the random signs; None: no signs.
      average_views: views on each side.
    """

    def draw_ends(sample: Callable[[Key], View], keys: Key, view: View) -> Array:
        sign = jax.random.rademacher(keys[0], (batch_size, directions, 1), jnp.float32)
        drawn = [sample(k).alpha for k in keys[1:]]
        alpha = view.alpha[:, None]
        return alpha + sign * (jnp.stack(drawn, axis=1) - alpha)

    def draw_signs(key: Key) -> Array | None:
        if sign_features is None:
            return None
        shape = (batch_size, directions, sign_features)
        return jax.random.rademacher(key, shape, jnp.float32)

    def draw(key: Key, step: Array, sizes: Array | None = None) -> Draws:
        sample = transformation.sampler(sizes, batch_size)
        _, views_key = jax.random.split(key)  # the other one orders the examples
        keys = jax.random.split(jax.random.fold_in(views_key, step), 3 + directions)

        def own(number: int) -> Key:
            stream = jax.random.fold_in(key, _OPTIONS_STREAM)
            return jax.random.fold_in(jax.random.fold_in(stream, step), number)

        def side(number: int) -> Side:
            first = sample(keys[number])
            more = range(3 + number, 3 + number + 2 * (average_views - 1), 2)
            views = first, *(sample(own(n)) for n in more)
            if number >= derivatives:
                return Side(views)
            ends = jax.random.split(own(1), 1 + directions) if number else keys[2:]
            alpha_other = draw_ends(sample, ends, first)
            return Side(views, alpha_other, draw_signs(own(2 * number)))

        return Draws(side(0), side(1))

    return draw
