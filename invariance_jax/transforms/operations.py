"""A transformation of images as a composition of small random operations.

Each operation has a distribution of parameters, a function of images and parameters,
and a probability with which it acts. What is drawn for one key does not depend on what
is differentiated.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_pair, check_shape, promote
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.transforms.distributions import NO_PARAMETERS, Family, draw
from invariance_jax.types import Array, Key, PyTree

Probability = float | tuple[float, float]
"""Of an operation: one for all views, or those of the first and of the second view."""


class Operation(NamedTuple):
    """A random operation.

    Attributes:
      name: of the operation, and of its family in `differentiate`.
      apply: `(images [B, H, W, C], parameters [B, K]) -> images`, each example alone;
        the columns are those of the family.
      family: the distribution of its parameters; `NO_PARAMETERS`: it has none.
      probability: with which it acts on an example; None: always, and nothing is drawn
        for that. At 0 it never acts, and its derivative is 0.
    """

    name: str
    apply: Callable[[Array, Array], Array]
    family: Family = NO_PARAMETERS
    probability: Probability | None = None


def compose(
    operations: Sequence[Operation],
    *,
    differentiate: Sequence[str],
    prepare: Callable[[PyTree, Any], Array] = jnp.asarray,
    plain: Callable[[PyTree], Array] | None = None,
) -> Transformation:
    """Returns the transformation that applies operations one after the other.

    Alpha holds the parameters of the operations that are differentiated; those of the
    others are held, `view.held[name]`, as is which operations act on which examples,
    `view.held["acts"][name]`. Where one does not act its alpha has no effect and its
    derivative is exactly zero.

    Args:
      operations: in the order in which they are applied.
      differentiate: names of operations with parameters, in any order.
      prepare: `(x, dtype) -> images`, floating `[B, H, W, C]`, in the given dtype or
        a wider one.
      plain: examples to images without random operations; None: there are none.

    Returns:
      A `Transformation`; `sample_for` is None where it would be `sample`.

    Raises:
      ValueError: if a name stands twice, `differentiate` names no operation with
        parameters, or a probability is not in [0, 1].
    """
    names = [operation.name for operation in operations]
    random = [one for one in operations if one.family.names]
    if len({*names}) < len(names) or not {*differentiate} <= {o.name for o in random}:
        raise ValueError(
            f"differentiate is {tuple(differentiate)}; expected names of operations "
            f"with parameters, each once; the operations are {', '.join(names)}."
        )
    chances = _chances(operations)
    held = [one.name for one in random if one.name not in differentiate]
    free = [one for one in random if one.name in differentiate]
    ends = np.cumsum([len(one.family.names) for one in free], dtype=int)

    def sample(
        key: Key, batch_size: int, *, second: bool = False, sizes: Array | None = None
    ) -> View:
        counts = [len(chances), *(one.family.num_uniform for one in random)]
        # One call for all numbers: each would take long to compile.
        unit = jax.random.uniform(key, (batch_size, sum(counts)), jnp.float32)
        gates, *parts = jnp.split(unit, np.cumsum(counts)[:-1], axis=1)
        drawn = {
            one.name: draw(one.family, part, sizes)
            for one, part in zip(random, parts, strict=True)
        }
        alpha = [drawn.pop(one.name) for one in free]
        acts = {
            name: gates[:, column] < chance[second]
            for column, (name, chance) in enumerate(chances.items())
        }
        empty = jnp.zeros((batch_size, 0), jnp.float32)
        return View(jnp.concatenate([empty, *alpha], axis=1), {**drawn, "acts": acts})

    def apply(x: PyTree, view: View) -> Array:
        (alpha,) = promote(alpha=view.alpha)
        images = prepare(x, alpha.dtype)
        shape = (len(images), sum(len(one.family.names) for one in free))
        check_shape("alpha", alpha, shape, expected=f"{list(shape)}, a row per x")
        _check_held(view.held, [*held, "acts"], chances)
        parts = jnp.split(alpha, ends, axis=1)  # behind the last end is nothing
        parameters = {o.name: part for o, part in zip(free, parts, strict=False)}
        parameters |= {name: view.held[name] for name in held}
        acts = view.held["acts"]
        for one in operations:
            if one.probability is None:
                images = one.apply(images, parameters.get(one.name, alpha[:, :0]))
            elif one.name in acts:
                changed = one.apply(images, parameters.get(one.name, alpha[:, :0]))
                images = jnp.where(acts[one.name][:, None, None, None], changed, images)
        return images

    bounds = [np.zeros((0, 2)), *(one.family.bounds for one in free)]
    sized = any(one.family.draw_sized for one in random)
    differ = any(first != second for first, second in chances.values())
    return Transformation(
        names=tuple(name for one in free for name in one.family.names),
        bounds=np.concatenate(bounds),
        sample=sample,
        apply=apply,
        plain=plain,
        sample_for=sample if differ or sized else None,
    )


def _chances(operations: Sequence[Operation]) -> dict[str, tuple[float, float]]:
    """Returns the probabilities of what acts on some views."""
    chances = {
        one.name: check_pair(f"{one.name}_probability", one.probability, low=0, high=1)
        for one in operations
        if one.probability is not None
    }
    return {name: chance for name, chance in chances.items() if max(chance) > 0}


def _check_held(
    held: PyTree, names: Sequence[str], chances: dict[str, tuple[float, float]]
) -> None:
    held = dict(held)
    if {*held} != {*names} or {*held["acts"]} != {*chances}:
        raise ValueError(
            f"view.held must have {sorted(names)}, with 'acts' of {sorted(chances)}, "
            f"as sample draws it; found {sorted(held)}."
        )
