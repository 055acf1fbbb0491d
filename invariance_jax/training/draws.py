"""Random draws for the views of one training step, for the whole global batch.

Randomness belongs to the example, not to the device: every replica makes the same draws
from the key and the step (a few numbers per example) and takes its slice, so a resumed
run, on any number of devices, draws the same numbers.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.settings.schema import Penalty
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, Key

# Options use numbers of their own for `fold_in`, so that they change no other draw.
_OPTIONS_STREAM = 4
_FURTHER_STREAM = 5
_COLUMNS_NUMBER = 2**20  # `option_key` of the columns; the views use smaller numbers


class Side(NamedTuple):
    """The draws of one side of the loss; None for an option that is off.

    All but `views` are for the penalty of the first view. Directions end at
    `alpha_other`. A random sign of each example keeps or reverses its directions: with
    batch statistics this cancels, on average, the terms by which a change of one
    example acts on another. Full steps end at `alpha_redrawn`: "total_effect" redraws
    one parameter, "mixed" all. Ends differ from alpha in `penalty.parameters` only.
    """

    views: tuple[View, ...]  # one or more, whose representations are averaged
    alpha_other: Array | None = None  # [B, K, P], ends of the directions
    signs: Array | None = None  # [B, K, D], onto which the derivatives are projected
    alpha_redrawn: Array | None = None  # [B, K, P], ends of the full steps
    columns: Array | None = None  # int32 [B], parameter whose ratio "mixed" measures


class Draws(NamedTuple):
    """All random draws for the views of one step; every leaf has leading axis B."""

    first: Side  # the side whose first view is penalized
    second: Side
    more: tuple[View, ...] = ()  # the further views of each example


def has_penalty(penalty: Penalty) -> bool:
    """Returns whether there is a penalty that needs only the first view."""
    return penalty.weight > 0 and penalty.kind != "consistency"


def _draw_columns(
    key: Key, penalty: Penalty, names: tuple[str, ...], shape: tuple[int, ...]
) -> Array:
    """Returns random columns of alpha, each as often as its relative weight says."""
    penalized = penalty.parameters or names
    weights = penalty.parameter_weights or (1.0,) * len(penalized)
    weight_of = dict(zip(penalized, weights, strict=True))
    weights = tuple(weight_of.get(name, 0.0) for name in names)
    logits = jnp.log(jnp.asarray(weights, jnp.float32))
    return jax.random.categorical(key, logits, shape=shape)


def make_draw(
    transformation: Transformation,
    penalty: Penalty,
    *,
    batch_size: int,
    sign_features: int,
    average_views: int = 1,
    more: Sequence[Transformation] = (),
) -> Callable[..., Draws]:
    """Returns the pure function `(key, step, sizes) -> Draws` for the global batch.

    `step` is int32 `[]`. `sizes` is int32 `[B, 2]`, height and width of each image;
    None if all have the same size. `sign_features` is the D of the random signs. Each
    side has `average_views` views. `more` holds the transformation of each further
    view. An option that adds draws does not change the other draws.
    """
    kind, directions, names = penalty.kind, penalty.directions, transformation.names
    shape = batch_size, directions

    def draw_ends(
        drawn: Array, key: Key, columns_key: Key, view: View
    ) -> dict[str, Array]:
        alpha = view.alpha[:, None]
        if penalty.parameters:
            is_penalized = np.isin(names, penalty.parameters)
            drawn = jnp.where(is_penalized[None, None], drawn, alpha)
        if kind == "total_effect":
            columns = _draw_columns(columns_key, penalty, names, shape)[..., None]
            is_redrawn = columns == jnp.arange(alpha.shape[-1])[None, None]
            return {"alpha_redrawn": jnp.where(is_redrawn, drawn, alpha)}
        sign = jax.random.rademacher(key, (*shape, 1), jnp.float32)
        ends = {"alpha_other": alpha + sign * (drawn - alpha)}
        if kind == "mixed":
            columns = _draw_columns(columns_key, penalty, names, (batch_size,))
            ends |= {"alpha_redrawn": drawn, "columns": columns}
        return ends

    def draw_signs(key: Key) -> Array | None:
        if penalty.estimator != "sign":
            return None
        return jax.random.rademacher(key, (*shape, sign_features), jnp.float32)

    def draw(key: Key, step: Array, sizes: Array | None = None) -> Draws:
        _, views_key = jax.random.split(key)  # the first orders the examples
        keys = jax.random.split(jax.random.fold_in(views_key, step), 3 + directions)

        def option_key(number: int) -> Key:
            stream = jax.random.fold_in(key, _OPTIONS_STREAM)
            return jax.random.fold_in(jax.random.fold_in(stream, step), number)

        def side(number: int) -> Side:
            second = number == 1
            sample = transformation.sampler(sizes, batch_size, second=second)
            first = sample(keys[number])
            numbers = range(3 + number, 3 + number + 2 * (average_views - 1), 2)
            views = first, *(sample(option_key(n)) for n in numbers)
            if second or not has_penalty(penalty):
                return Side(views)
            # Not vmap: under it some PRNG implementations draw other numbers.
            drawn = jax.lax.map(lambda k: sample(k).alpha, keys[3:]).swapaxes(0, 1)
            ends = draw_ends(drawn, keys[2], option_key(_COLUMNS_NUMBER), first)
            return Side(views, **ends, signs=draw_signs(option_key(0)))

        stream = jax.random.fold_in(jax.random.fold_in(key, _FURTHER_STREAM), step)
        samplers = [transform.sampler(sizes, batch_size) for transform in more]
        further = (s(jax.random.fold_in(stream, n)) for n, s in enumerate(samplers))
        return Draws(side(0), side(1), tuple(further))

    return draw
