"""A transformation of images as a composition of small random operations.

Each operation has a distribution of parameters, a function of images and parameters,
and a probability with which it acts. What is drawn for one key does not depend on what
is differentiated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from invariance_jax.arguments import check_pair, check_shape, promote
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, Key, PyTree


class Family(NamedTuple):
    """Parameters that go together, the columns of an array with a row per example.

    Attributes:
      names: of the columns.
      bounds: a row per column, the ends of its distribution.
      num_uniform: uniform numbers that one example takes.
      draw: the parameters as a function of these numbers in [0, 1), a row per example.
      draw_sized: the same of images of many sizes, of the numbers and of int32 `[B, 2]`
        heights and widths; None where they change nothing.
    """

    names: tuple[str, ...]
    bounds: np.ndarray
    num_uniform: int
    draw: Callable[[Array], Array]
    draw_sized: Callable[[Array, Array], Array] | None = None


NO_PARAMETERS = Family((), np.zeros((0, 2)), 0, lambda unit: unit)
"""That of an operation without parameters."""

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


def uniform_family(*, bounds: Mapping[str, Sequence[float]]) -> Family:
    """Returns the uniform distribution of some parameters.

    Args:
      bounds: the name of each and its ends, (least, greatest).

    Returns:
      `Family`, of columns with these names, in their order.

    Raises:
      ValueError: if there is not a pair of finite, ordered ends for each name.
    """
    for name, pair in bounds.items():
        if len(pair) != 2 or not -math.inf < pair[0] <= pair[1] < math.inf:
            raise ValueError(
                f"bounds of {name!r} must be (least, greatest), finite; found {pair}."
            )
    rows = np.array([*bounds.values()], np.float64)

    def draw(unit: Array) -> Array:
        low, high = jnp.asarray(rows.T, jnp.float32)[:, None]
        return low + (high - low) * unit

    return Family(tuple(bounds), rows, len(rows), draw)


def compose(
    operations: Sequence[Operation],
    *,
    differentiate: Sequence[str],
    prepare: Callable[[PyTree, DTypeLike], Array] = jnp.asarray,
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
    free = [one for one in random if one.name in differentiate]
    if len({*names}) < len(names):
        raise ValueError(f"names of operations must differ; found {names}.")
    if sorted(one.name for one in free) != sorted(map(str, differentiate)):
        known = ", ".join(one.name for one in random) or "none"
        raise ValueError(
            f"differentiate is {tuple(differentiate)}; expected, each once, some of "
            f"the operations with parameters: {known}."
        )
    made = _Composition(
        operations,
        prepare,
        chances=_chances(operations),
        free=free,
        held=[one for one in random if one.name not in differentiate],
    )
    bounds = [np.zeros((0, 2)), *(one.family.bounds for one in free)]
    sized = any(one.family.draw_sized for one in random)
    differ = any(first != second for first, second in made.chances.values())
    return Transformation(
        names=tuple(name for one in free for name in one.family.names),
        bounds=np.concatenate(bounds),
        sample=made.sample,
        apply=made.apply,
        plain=plain,
        sample_for=made.sample if differ or sized else None,
    )


@dataclass(frozen=True)
class _Composition:
    """Operations, those whose parameters are free or held, and their probabilities."""

    operations: Sequence[Operation]
    prepare: Callable[[PyTree, DTypeLike], Array]
    chances: dict[str, tuple[float, float]]
    free: list[Operation]
    held: list[Operation]

    def sample(
        self,
        key: Key,
        batch_size: int,
        *,
        second: bool = False,
        sizes: Array | None = None,
    ) -> View:
        random = [one for one in self.operations if one.family.names]
        counts = [len(self.chances), *(one.family.num_uniform for one in random)]
        # One call for all numbers: each would take long to compile.
        unit = jax.random.uniform(key, (batch_size, sum(counts)), jnp.float32)
        gates, *parts = jnp.split(unit, np.cumsum(counts)[:-1], axis=1)
        drawn = {
            one.name: one.family.draw(part)
            if sizes is None or one.family.draw_sized is None
            else one.family.draw_sized(part, sizes)
            for one, part in zip(random, parts, strict=True)
        }
        alpha = [drawn.pop(one.name) for one in self.free]
        acts = {
            name: gates[:, column] < chance[second]
            for column, (name, chance) in enumerate(self.chances.items())
        }
        empty = jnp.zeros((batch_size, 0), jnp.float32)
        return View(jnp.concatenate([empty, *alpha], axis=1), {**drawn, "acts": acts})

    def apply(self, x: PyTree, view: View) -> Array:
        (alpha,) = promote(alpha=view.alpha)
        images = self.prepare(x, alpha.dtype)
        parameters = self._parameters(View(alpha, view.held), len(images))
        acts = view.held["acts"]
        for one in self.operations:
            if one.probability is None:
                images = one.apply(images, parameters.get(one.name, alpha[:, :0]))
            elif one.name in acts:
                changed = one.apply(images, parameters.get(one.name, alpha[:, :0]))
                images = jnp.where(acts[one.name][:, None, None, None], changed, images)
        return images

    def _parameters(self, view: View, batch_size: int) -> dict[str, Array]:
        """Returns the parameters of each operation, from alpha and held."""
        widths = [len(one.family.names) for one in self.free]
        shape = (batch_size, sum(widths))
        check_shape("alpha", view.alpha, shape, expected=f"{list(shape)}, a row per x")
        held, names = dict(view.held), ["acts", *(one.name for one in self.held)]
        if {*held} != {*names} or {*held["acts"]} != {*self.chances}:
            raise ValueError(
                f"view.held must have {sorted(names)}, with 'acts' of "
                f"{sorted(self.chances)}, as sample draws it; found {sorted(held)}."
            )
        # Behind the last end is nothing.
        parts = jnp.split(view.alpha, np.cumsum(widths, dtype=int), axis=1)
        free = {o.name: part for o, part in zip(self.free, parts, strict=False)}
        return free | {one.name: held[one.name] for one in self.held}


def _chances(operations: Sequence[Operation]) -> dict[str, tuple[float, float]]:
    """Returns the probabilities of what acts on some views."""
    chances = {
        one.name: check_pair(f"{one.name}_probability", one.probability, low=0, high=1)
        for one in operations
        if one.probability is not None
    }
    return {name: chance for name, chance in chances.items() if max(chance) > 0}
