"""A transformation of images as a composition of small random operations.

Each operation has a distribution of parameters, a function of images and parameters,
and a probability with which it acts. The draws for a key do not depend on which
operations are differentiated.
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
    """The distribution of an operation's parameters, which have a row per example.

    Attributes:
      names: names of the columns.
      bounds: float, a row per column: lower and upper end of its distribution.
      num_uniform: number of uniform random numbers that one example needs.
      draw: `unit -> parameters`; unit holds these numbers in [0, 1), a row per example.
      draw_sized: `(unit, sizes) -> parameters`, replaces `draw` for images of many
        sizes, int32 `[B, 2]` heights and widths. None: sizes have no effect.
    """

    names: tuple[str, ...]
    bounds: np.ndarray
    num_uniform: int
    draw: Callable[[Array], Array]
    draw_sized: Callable[[Array, Array], Array] | None = None


NO_PARAMETERS = Family((), np.zeros((0, 2)), 0, lambda unit: unit)
"""The family of an operation without parameters."""

Probability = float | tuple[float, float]
"""Probability of an operation: one for all views, or (first view, second view)."""


class Operation(NamedTuple):
    """A random operation on images.

    Attributes:
      name: name of the operation, also in `differentiate`.
      apply: `(images [B, H, W, C], parameters) -> images`, each example alone;
        parameters has a row per example and the columns of the family.
      family: distribution of its parameters; `NO_PARAMETERS` if it has none.
      probability: probability with which it acts on an example. None: it always acts,
        and no gate is drawn. 0: it never acts, and its derivative is 0.
    """

    name: str
    apply: Callable[[Array, Array], Array]
    family: Family = NO_PARAMETERS
    probability: Probability | None = None


def uniform_family(*, bounds: Mapping[str, Sequence[float]]) -> Family:
    """Returns the family of independent, uniformly distributed parameters.

    Args:
      bounds: maps the name of each parameter to its (least, greatest) value.

    Returns:
      A `Family` whose columns have these names, in their order.

    Raises:
      ValueError: if the bounds of a name are not a pair of finite, ordered numbers.
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

    Alpha holds the parameters of the differentiated operations. `view.held[name]` holds
    the parameters of each other operation, and `view.held["acts"][name]`, bool `[B]`,
    on which examples an operation of a probability above 0 acts. Where it does not
    act, its alpha has no effect and its derivative is exactly zero.

    Args:
      operations: the operations, in the order in which they are applied.
      differentiate: names of operations with parameters, in any order.
      prepare: `(x, dtype) -> images`, floating `[B, H, W, C]`, in the given dtype or
        a wider one.
      plain: `x -> images` without random operations. None: there are none.

    Returns:
      A `Transformation`. Its `sample_for` is None if views depend neither on the sizes
      of the images nor on whether they are the first or the second.

    Raises:
      ValueError: if two operations have one name, `differentiate` repeats a name or has
        one that is no operation with parameters, or a probability is not in [0, 1].
    """
    names = [operation.name for operation in operations]
    parametric = [op for op in operations if op.family.names]
    free = [op for op in parametric if op.name in differentiate]
    if len({*names}) < len(names):
        raise ValueError(f"names of operations must differ; found {names}.")
    if sorted(op.name for op in free) != sorted(map(str, differentiate)):
        known = ", ".join(op.name for op in parametric) or "none"
        raise ValueError(
            f"differentiate is {tuple(differentiate)}; expected, each once, some of "
            f"the operations with parameters: {known}."
        )
    composition = _Composition(
        operations,
        prepare,
        probabilities=_probabilities(operations),
        free=free,
        held=[op for op in parametric if op.name not in differentiate],
    )
    bounds = [np.zeros((0, 2)), *(op.family.bounds for op in free)]
    sized = any(op.family.draw_sized for op in parametric)
    differ = any(pair[0] != pair[1] for pair in composition.probabilities.values())
    return Transformation(
        names=tuple(name for op in free for name in op.family.names),
        bounds=np.concatenate(bounds),
        sample=composition.sample,
        apply=composition.apply,
        plain=plain,
        sample_for=composition.sample if differ or sized else None,
    )


@dataclass(frozen=True)
class _Composition:
    """Operations that are applied in order, with functions that draw and apply them."""

    operations: Sequence[Operation]
    prepare: Callable[[PyTree, DTypeLike], Array]
    probabilities: dict[str, tuple[float, float]]  # of the first and the second view
    free: list[Operation]  # parameters in alpha
    held: list[Operation]  # parameters in held

    def sample(
        self,
        key: Key,
        batch_size: int,
        *,
        second: bool = False,
        sizes: Array | None = None,
    ) -> View:
        parametric = [op for op in self.operations if op.family.names]
        num_uniform = [op.family.num_uniform for op in parametric]
        counts = [len(self.probabilities), *num_uniform]
        # One call draws all numbers, as each call takes long to compile.
        unit = jax.random.uniform(key, (batch_size, sum(counts)), jnp.float32)
        gates, *parts = jnp.split(unit, np.cumsum(counts)[:-1], axis=1)
        drawn = {
            op.name: op.family.draw(part)
            if sizes is None or op.family.draw_sized is None
            else op.family.draw_sized(part, sizes)
            for op, part in zip(parametric, parts, strict=True)
        }
        alpha = [drawn.pop(op.name) for op in self.free]
        acts = {
            name: gates[:, column] < pair[second]
            for column, (name, pair) in enumerate(self.probabilities.items())
        }
        empty = jnp.zeros((batch_size, 0), jnp.float32)
        return View(jnp.concatenate([empty, *alpha], axis=1), {**drawn, "acts": acts})

    def apply(self, x: PyTree, view: View) -> Array:
        (alpha,) = promote(alpha=view.alpha)
        images = self.prepare(x, alpha.dtype)
        parameters = self._parameters(View(alpha, view.held), len(images))
        acts = view.held["acts"]
        for op in self.operations:
            if op.probability is None:
                images = op.apply(images, parameters.get(op.name, alpha[:, :0]))
            elif op.name in acts:
                changed = op.apply(images, parameters.get(op.name, alpha[:, :0]))
                images = jnp.where(acts[op.name][:, None, None, None], changed, images)
        return images

    def _parameters(self, view: View, batch_size: int) -> dict[str, Array]:
        """Returns the parameters of each operation, from alpha and held."""
        widths = [len(op.family.names) for op in self.free]
        shape = (batch_size, sum(widths))
        check_shape("alpha", view.alpha, shape, expected=f"{list(shape)}, a row per x")
        held, names = dict(view.held), ["acts", *(op.name for op in self.held)]
        if {*held} != {*names} or {*held["acts"]} != {*self.probabilities}:
            raise ValueError(
                f"view.held must have the keys {sorted(names)}, and 'acts' the keys "
                f"{sorted(self.probabilities)}, as sample draws them; found "
                f"{sorted(held)}."
            )
        # The last part, after the last split point, is empty.
        parts = jnp.split(view.alpha, np.cumsum(widths, dtype=int), axis=1)
        free = {op.name: part for op, part in zip(self.free, parts, strict=False)}
        return free | {op.name: held[op.name] for op in self.held}


def _probabilities(operations: Sequence[Operation]) -> dict[str, tuple[float, float]]:
    """Returns the pairs of probabilities of operations with a gate that may be on."""
    pairs = {
        op.name: check_pair(f"{op.name}_probability", op.probability, low=0, high=1)
        for op in operations
        if op.probability is not None
    }
    return {name: pair for name, pair in pairs.items() if max(pair) > 0}
