"""The random views of one training step, for the whole global batch.

Randomness belongs to the example, not to the device: every replica makes the same draws
from the key and the step (a few numbers per example) and takes its slice, so a resumed
run, on any number of devices, draws the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, Key

# What options add is drawn from a child of the key that its split does not yield.
_OPTIONS_STREAM = 4
_MORE_STREAM = 5
_COLUMNS = 2**20  # beyond the numbers of any views


class Side(NamedTuple):
    """The draws of one side of the loss; what is switched off is None.

    Attributes:
      views: one or more, whose representations are averaged.
      alpha_other: `[B, K, P]`, ends of the directions of the first view's penalty,
        reflected about alpha with an independent sign per example: then the cross terms
        that batch statistics add to the penalty vanish in expectation.
      signs: `[B, K, D]`, random signs onto which its derivatives are projected.
      alpha_redrawn: `[B, K, P]`, ends of the full steps of the first view's penalty: of
        "total_effect" with one parameter drawn anew, of "mixed" with all.
      columns: int32 `[B]`, the parameter whose ratio "mixed" measures on an example.
    """

    views: tuple[View, ...]
    alpha_other: Array | None = None
    signs: Array | None = None
    alpha_redrawn: Array | None = None
    columns: Array | None = None


class Draws(NamedTuple):
    """What is random in the views of one step; every leaf has leading axis B.

    Attributes:
      first: the side whose first view is penalized.
      second: the other side.
      more: further views, each of every example.
    """

    first: Side
    second: Side
    more: tuple[View, ...] = ()


def make_draw(
    transformation: Transformation,
    *,
    batch_size: int,
    directions: int,
    penalized: bool = True,
    kind: str = "gradient",
    column_weights: tuple[float, ...] = (),
    sign_features: int | None = None,
    average_views: int = 1,
    more: Sequence[Transformation] = (),
) -> Callable[..., Draws]:
    """Returns `(key, step int32 [], sizes) -> Draws` of the global batch, pure.

    Of images of many sizes, sizes are int32 `[B, 2]`, else None.

    An option that adds draws leaves the others as they are.

    Args:
      transformation: what the views are drawn from.
      batch_size: B.
      directions: K of the penalty.
      penalized: whether the first view has a penalty of its own.
      kind: of the penalty: "gradient", "total_effect" or "mixed".
      column_weights: P numbers, how often the latter two choose each parameter.
      sign_features: D of the random signs; None: no signs.
      average_views: views on each side.
      more: what the further views are drawn from, one by one.
    """

    def draw_columns(key: Key, *shape: int) -> Array:
        logits = jnp.log(jnp.asarray(column_weights, jnp.float32))
        return jax.random.categorical(key, logits, shape=(batch_size, *shape))

    def draw_ends(
        drawn: Array, key: Key, columns_key: Key, view: View
    ) -> dict[str, Array]:
        alpha = view.alpha[:, None]
        if kind == "total_effect":
            chosen = draw_columns(columns_key, directions)[..., None]
            one = chosen == jnp.arange(alpha.shape[-1])[None, None]
            return {"alpha_redrawn": jnp.where(one, drawn, alpha)}
        sign = jax.random.rademacher(key, (batch_size, directions, 1), jnp.float32)
        ends = {"alpha_other": alpha + sign * (drawn - alpha)}
        if kind == "mixed":
            ends |= {"alpha_redrawn": drawn, "columns": draw_columns(columns_key)}
        return ends

    def draw_signs(key: Key) -> Array | None:
        if sign_features is None:
            return None
        shape = (batch_size, directions, sign_features)
        return jax.random.rademacher(key, shape, jnp.float32)

    def draw(key: Key, step: Array, sizes: Array | None = None) -> Draws:
        _, views_key = jax.random.split(key)  # the other one orders the examples
        keys = jax.random.split(jax.random.fold_in(views_key, step), 3 + directions)

        def own(number: int) -> Key:
            stream = jax.random.fold_in(key, _OPTIONS_STREAM)
            return jax.random.fold_in(jax.random.fold_in(stream, step), number)

        def side(number: int) -> Side:
            second = number == 1
            sample = transformation.sampler(sizes, batch_size, second=second)
            first = sample(keys[number])
            ahead = range(3 + number, 3 + number + 2 * (average_views - 1), 2)
            views = first, *(sample(own(n)) for n in ahead)
            if second or not penalized:
                return Side(views)
            # One by one: some generators draw otherwise under vmap.
            ends = jax.lax.map(lambda k: sample(k).alpha, keys[3:]).swapaxes(0, 1)
            drawn = draw_ends(ends, keys[2], own(_COLUMNS), first)
            return Side(views, **drawn, signs=draw_signs(own(0)))

        stream = jax.random.fold_in(jax.random.fold_in(key, _MORE_STREAM), step)
        samplers = [one.sampler(sizes, batch_size) for one in more]
        beside = (s(jax.random.fold_in(stream, n)) for n, s in enumerate(samplers))
        return Draws(side(0), side(1), tuple(beside))

    return draw
