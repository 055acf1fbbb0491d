"""The random views of one training step, for the whole global batch.

Randomness belongs to the example, not to the device: every replica makes the same draws
from the key and the step (a few numbers per example) and takes its slice, so a resumed
run, on any number of devices, draws the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from invariance_jax.settings.schema import Penalty
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, Key

# What options add is drawn from a child of the key that its split does not yield.
_OPTIONS_STREAM = 4
_MORE_STREAM = 5
_COLUMNS = 2**20  # beyond the numbers of any views


class Side(NamedTuple):
    """The draws of one side of the loss; what is switched off is None.

    Directions end at `alpha_other`, reflected about alpha with an independent sign per
    example: then the cross terms that batch statistics add to the penalty vanish in
    expectation. Full steps end at `alpha_redrawn`: of "total_effect" with one parameter
    drawn anew, of "mixed" with all.
    """

    views: tuple[View, ...]  # one or more, whose representations are averaged
    alpha_other: Array | None = None  # [B, K, P], for the first view's penalty
    signs: Array | None = None  # [B, K, D], onto which its derivatives are projected
    alpha_redrawn: Array | None = None  # [B, K, P], for the first view's penalty
    columns: Array | None = None  # int32 [B], whose ratio "mixed" measures


class Draws(NamedTuple):
    """What is random in the views of one step; every leaf has leading axis B."""

    first: Side  # whose first view is penalized
    second: Side
    more: tuple[View, ...] = ()  # further views, each of every example


def has_penalty(penalty: Penalty) -> bool:
    """Returns whether the first view has a penalty of its own."""
    return penalty.weight > 0 and penalty.kind != "consistency"


def _column_weights(penalty: Penalty, names: tuple[str, ...]) -> list[float]:
    """Returns how often each parameter is chosen, relative to the others."""
    chosen = penalty.parameters or names
    weights = penalty.parameter_weights or (1.0,) * len(chosen)
    weight_of = dict(zip(chosen, weights, strict=True))
    return [weight_of.get(name, 0.0) for name in names]


def make_draw(
    transformation: Transformation,
    penalty: Penalty,
    *,
    batch_size: int,
    sign_features: int,
    average_views: int = 1,
    more: Sequence[Transformation] = (),
) -> Callable[..., Draws]:
    """Returns `(key, step int32 [], sizes) -> Draws` of the global batch, pure.

    Sizes are int32 `[B, 2]` of images of many sizes, else None; sign_features is the D
    of random signs. Each side averages some views; more are what the further views are
    drawn from, one by one. An option that adds draws leaves the others as they are.
    """
    kind, directions = penalty.kind, penalty.directions

    def draw_columns(key: Key, *shape: int) -> Array:
        weights = _column_weights(penalty, transformation.names)
        logits = jnp.log(jnp.asarray(weights, jnp.float32))
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
        if penalty.estimator != "sign":
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
            if second or not has_penalty(penalty):
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
