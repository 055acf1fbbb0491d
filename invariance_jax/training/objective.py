"""The training objective: the method's loss of two views plus the invariance penalty.

Foster, Pukdee, Rainforth (ICLR 2021): NT-Xent of two views, and the gradient penalty of
the first one. `encode` gives representations and their penalty, `couple` the loss of
the batch. One replica; collectives only behind `axis_name`. Deviations, all off by
default: the penalty of the projection z or a block of the encoder, along some
parameters of the transformation, or without a derivative along some or all of them; and
sides that average several views.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.evaluation import total_effects
from invariance_jax.losses import consistency, invariance_penalty, total_effect
from invariance_jax.numerics import batch_mean, l2_normalize
from invariance_jax.settings.schema import Penalty
from invariance_jax.training.draws import Draws, Side, has_penalty
from invariance_jax.training.methods import Method, projection
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, PyTree

Variables = dict[str, PyTree]
"""{"encoder": ..., "heads": ...}."""


class Encoded(NamedTuple):
    """One side of the loss, encoded."""

    h: Array  # [B, D], its representation, the mean over its views
    point: Array  # [B, D], where the penalty acts, of its first view: h, z or a block
    penalty: Array | None  # [B], of its first view, if it has one of its own
    outputs: PyTree = None  # of the heads, if they are made already


class Terms(NamedTuple):
    """What the loss is made of."""

    method: Array  # [B], the loss of the method
    penalty: Array  # [B]; 0 without one
    limited: Array  # [], the mean of the penalty over all replicas, at most its limit
    outputs: tuple[PyTree, PyTree]  # of the heads, of both sides


@dataclass(frozen=True)
class Objective:
    """The loss of a batch as a function of the parameters.

    Two modules share the variables of encoder and heads and differ in the form that the
    penalty differentiates along alpha: batch statistics coupled or held.
    """

    encoder: nn.Module  # images -> h
    penalized: nn.Module  # the encoder in that form
    method: Method  # heads and loss
    penalized_heads: nn.Module  # the heads in that form
    transformation: Transformation  # makes views of x
    penalty: Penalty  # how much of which penalty
    axis_name: str | None = None  # over which the batch is spread; None: one replica
    more: Transformation | None = None  # makes the further views; None: there are none

    def __call__(
        self,
        params: Variables,
        stats: Variables,
        weight: Array,
        x: Array,
        draws: Draws,
        target: tuple[PyTree, PyTree],
        memory: PyTree,
    ) -> tuple[Array, tuple[Terms, Variables]]:
        """Returns `(loss, (terms, stats))` of the examples of this replica.

        The mean over replicas of its gradient is that of the joined batch; every
        forward pass moves the running statistics. The target is what its network makes
        of both sides, or (None, None); the weight is that of the penalty.
        """
        sides, stats = self.encode(params, stats, x, draws)
        return self.couple(params, stats, weight, sides, target, memory)

    def encode(
        self, params: Variables, stats: Variables, x: Array, draws: Draws
    ) -> tuple[tuple[Encoded, ...], Variables]:
        """Returns both sides and further views, encoded, and the running statistics."""
        sides, encoder = [], self.encoder
        for side in (draws.first, draws.second):
            (alpha, held), *more = side.views
            takes = side is draws.first and has_penalty(self.penalty)
            at = self.penalty.at if takes or self._is_consistency() else "h"
            represent = self._representation(params, stats, x, held, takes, at)
            if takes:
                penalty, point, aux = self._penalized(represent, side)
                h, outputs, stats = aux
            else:
                penalty, (point, (h, outputs, stats)) = None, represent(alpha)
            for view in more:
                images = self.transformation.apply(x, view)
                view_h, stats, _ = _apply(encoder, "encoder", params, stats, images)
                h = h + view_h
            h = h / len(side.views) if more else h
            sides.append(Encoded(h, point, penalty, None if more else outputs))
        for view in draws.more:
            assert self.more is not None
            images = self.more.apply(x, view)
            h, stats, _ = _apply(encoder, "encoder", params, stats, images)
            sides.append(Encoded(h, h, None))
        return tuple(sides), stats

    def couple(
        self,
        params: Variables,
        stats: Variables,
        weight: Array,
        sides: tuple[Encoded, ...],
        target: tuple[PyTree, PyTree],
        memory: PyTree,
    ) -> tuple[Array, tuple[Terms, Variables]]:
        """Returns the loss of sides that are encoded; it sees the whole batch."""
        outputs, stats = self._outputs(params, stats, sides)
        losses = self._losses(outputs, target, memory)
        penalty = self._penalty(sides[0], sides[1])
        limited = batch_mean(penalty, axis_name=self.axis_name)
        if self.penalty.batch_limit is not None:
            limited = jnp.minimum(limited, self.penalty.batch_limit)
        loss = jnp.mean(losses) + weight * limited
        return loss, (Terms(losses, penalty, limited, (outputs[0], outputs[1])), stats)

    def target_outputs(
        self, params: Variables, stats: Variables, x: Array, draws: Draws
    ) -> tuple[tuple[PyTree, PyTree], Variables]:
        """Returns what a target network makes of both sides, and its statistics."""
        sides, stats = self.plain().encode(params, stats, x, draws._replace(more=()))
        (own, other), stats = self._outputs(params, stats, sides)
        return (own, other), stats

    def plain(self) -> "Objective":
        """Returns the objective without a penalty."""
        return replace(self, penalty=replace(self.penalty, weight=0.0))

    def _representation(
        self,
        params: Variables,
        stats: Variables,
        x: Array,
        held: PyTree,
        penalized: bool,
        at: str,
    ) -> Callable[[Array], tuple[Array, tuple[Array, PyTree, Variables]]]:
        """Returns alpha -> (where the penalty acts, (h, outputs, statistics)).

        The outputs of the heads are None unless the penalty acts on z.
        """
        encoder = self.penalized if penalized else self.encoder
        heads = self.penalized_heads if penalized else self.method.heads

        def represent(alpha: Array) -> tuple[Array, tuple[Array, PyTree, Variables]]:
            images = self.transformation.apply(x, View(alpha, held))
            within = at not in ("h", "z")
            h, moved, blocks = _apply(
                encoder, "encoder", params, stats, images, blocks=within
            )
            if at != "z":
                return block_output(blocks, at) if within else h, (h, None, moved)
            outputs, moved, _ = _apply(heads, "heads", params, moved, h)
            return projection(outputs), (h, outputs, moved)

        return represent

    def _penalized(
        self, represent: Callable[[Array], PyTree], side: Side
    ) -> tuple[Array, ...]:
        """Returns the penalty of the first view of a side, where it acts, and aux."""
        alpha, settings = side.views[0].alpha, {"has_aux": True, **self._measure()}
        redrawn = self._ends(alpha, side.alpha_redrawn)
        other = self._ends(alpha, side.alpha_other)
        if other is None:
            assert redrawn is not None
            return total_effect(represent, alpha, redrawn, **settings)
        settings |= {"alpha_redrawn": redrawn, "signs": _by_direction(side.signs)}
        return invariance_penalty(represent, alpha, other, **settings)

    def _ends(self, alpha: Array, drawn: Array | None) -> Array | None:
        """Returns ends along the parameters of the penalty, `[B, P]` or `[K, B, P]`."""
        ends = _by_direction(drawn)
        if ends is None:
            return None
        if self.penalty.parameters:
            along = np.isin(self.transformation.names, self.penalty.parameters)
            ends = jnp.where(along[None, None], ends, alpha[None])
        return ends[0] if len(ends) == 1 else ends

    def measure_effects(
        self, params: Variables, stats: Variables, x: Array, side: Side
    ) -> Array:
        """Returns sums of bound and effect `[2, P]`; an example is of one parameter."""
        alpha, held = side.views[0]
        assert side.alpha_other is not None and side.alpha_redrawn is not None
        assert side.columns is not None
        other, redrawn = side.alpha_other[:, 0], side.alpha_redrawn[:, 0]
        represent = self._representation(params, stats, x, held, True, self.penalty.at)

        def changing(alpha: Array) -> Array:
            point = represent(alpha)[0]
            return l2_normalize(point) if self.penalty.normalization == "l2" else point

        low, high = jnp.asarray(self.transformation.bounds.T, alpha.dtype)
        found = total_effects(
            changing,
            alpha,
            redrawn,
            side.columns,
            high - low,
            signs=jnp.sign(jnp.sum((other - alpha) * (redrawn - alpha), axis=1)),
        )
        of_column = jax.nn.one_hot(side.columns, alpha.shape[1], dtype=alpha.dtype)
        each = jnp.stack([found.bound, found.effect])[..., None] * of_column[None]
        sums = jnp.sum(each, axis=1)
        return sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name)

    def split_by_ratio(self, draws: Draws, effects: Array | None) -> Draws:
        """Returns draws of "mixed" whose directions and full steps share no parameter.

        Directions are along the parameters of a small ratio of bound and effect, as far
        as one has been seen. None: all draws stay.
        """
        if effects is None:
            return draws
        bound, effect = effects
        smooth = bound < self.penalty.largest_ratio * effect

        side = draws.first
        assert side.alpha_other is not None and side.alpha_redrawn is not None
        alpha = side.views[0].alpha[:, None]
        first = side._replace(
            alpha_other=jnp.where(smooth[None, None], side.alpha_other, alpha),
            alpha_redrawn=jnp.where(smooth[None, None], alpha, side.alpha_redrawn),
        )
        return draws._replace(first=first)

    def _outputs(
        self, params: Variables, stats: Variables, sides: tuple[Encoded, ...]
    ) -> tuple[list[PyTree], Variables]:
        """Returns the outputs of the heads of all sides, and the statistics."""
        found = []
        for side in sides:
            outputs = side.outputs
            if outputs is None:
                heads = self.method.heads
                outputs, stats, _ = _apply(heads, "heads", params, stats, side.h)
            found.append(outputs)
        return found, stats

    def _losses(
        self, outputs: list[PyTree], target: tuple[PyTree, PyTree], memory: PyTree
    ) -> Array:
        """Returns the loss of each example: the mean over pairs of its views.

        One is that of both sides; in the others a further view stands in for one of
        the two, in turn.
        """
        if self.method.joint is not None:
            return self.method.joint(outputs, axis_name=self.axis_name)
        own, other, *more = outputs
        pairs = [(own, other)]
        for number, one in enumerate(more):
            pairs.append((own, one) if number % 2 else (one, other))
        losses = [
            self.method.loss(*pair, *target, memory, axis_name=self.axis_name)
            for pair in pairs
        ]
        return sum(losses[1:], losses[0]) / len(losses) if more else losses[0]

    def _penalty(self, one: Encoded, two: Encoded) -> Array:
        """Returns the penalty of each example, 0 without one."""
        if self._is_consistency():
            return consistency(one.point, two.point, **self._measure())
        if one.penalty is None:
            return jnp.zeros(len(one.point), one.point.dtype)
        return one.penalty

    def _is_consistency(self) -> bool:
        return self.penalty.weight > 0 and self.penalty.kind == "consistency"

    def _measure(self) -> dict[str, Any]:
        """Returns what every kind of penalty asks for."""
        return {
            "normalization": self.penalty.normalization,
            "example_limit": self.penalty.example_limit,
            "limit_shape": self.penalty.limit_shape,
            "axis_name": self.axis_name,
        }


def _by_direction(drawn: Array | None) -> Array | None:
    """Returns draws `[B, K, ...]` as `[K, B, ...]`."""
    return None if drawn is None else jnp.moveaxis(drawn, 1, 0)


def is_block(module: nn.Module, method: str) -> bool:
    """Returns whether a call within an encoder is that of one of its blocks."""
    return len(module.path) == 1 and method == "__call__"


def block_output(intermediates: PyTree, name: str) -> Array:
    """Returns the output of a block, the mean over its places, `[B, D]`.

    "layer3" is the last of "layer3_0", "layer3_1" and so on. Raises KeyError with the
    names that there are.
    """
    found = [one for one in intermediates if one == name or one.startswith(f"{name}_")]
    if not found:
        raise KeyError(", ".join(intermediates))
    last = max(found, key=lambda one: (len(one), one))
    (output,) = intermediates[last]["__call__"]
    output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
    return jnp.mean(output, axis=tuple(range(1, output.ndim - 1)))


def _apply(
    module: nn.Module,
    part: str,
    params: Variables,
    stats: Variables,
    inputs: Array,
    *,
    blocks: bool = False,
) -> tuple[PyTree, Variables, PyTree]:
    """Returns a part's output in training, all statistics, and blocks if asked."""
    outputs, updated = module.apply(
        {"params": params[part], "batch_stats": stats[part]},
        inputs,
        train=True,
        mutable=["batch_stats"],
        capture_intermediates=is_block if blocks else False,
    )
    stats = {**stats, part: updated.get("batch_stats", {})}
    return outputs, stats, updated.get("intermediates", {})
