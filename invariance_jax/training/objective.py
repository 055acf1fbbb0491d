"""The training objective: the method's loss of two views plus the invariance penalty.

Foster, Pukdee, Rainforth (ICLR 2021): NT-Xent of two views plus the gradient penalty of
the first view. `encode` returns representations and their penalty, `couple` the loss of
the whole batch. The code is that of one replica; collectives only behind `axis_name`.
Deviations, all off by default: a penalty of the projection z or of a block of the
encoder; a penalty along some parameters of the transformation only; a penalty without a
derivative along some or all of them; sides that average several views; further views.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from invariance_jax.evaluation import total_effects
from invariance_jax.losses import consistency, invariance_penalty, total_effect
from invariance_jax.numerics import batch_mean, l2_normalize
from invariance_jax.settings.schema import Penalty
from invariance_jax.training.draws import Draws, Side, has_penalty
from invariance_jax.training.methods import Method, projection
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, PyTree

Variables = dict[str, PyTree]
"""Parameters or batch statistics by part: {"encoder": ..., "heads": ...}."""


class Encoded(NamedTuple):
    """One side of the loss after the encoder."""

    h: Array  # [B, D], representation, the mean over the views of this side
    point: Array  # [B, features], penalized output of the first view: h, z or a block
    penalty: Array | None  # [B], penalty of the first view; None: it has none
    outputs: PyTree = None  # outputs of the heads; None: not computed yet


class Terms(NamedTuple):
    """The terms of the loss, and the outputs from which it was computed."""

    method: Array  # [B], loss of the method
    penalty: Array  # [B], 0 without a penalty
    limited: Array  # [], mean penalty over all replicas, at most penalty.batch_limit
    outputs: tuple[PyTree, PyTree]  # outputs of the heads for both sides


@dataclass(frozen=True)
class Objective:
    """The loss of a batch as a function of the parameters.

    The penalized modules share the variables of encoder and heads. Only their
    derivative along alpha may differ: they apply `penalty.batch_statistics`.
    """

    encoder: nn.Module  # images -> h
    penalized: nn.Module  # the encoder for the view that is penalized
    method: Method  # heads and loss
    penalized_heads: nn.Module  # the heads for the view that is penalized
    transformation: Transformation  # makes the views of both sides
    penalty: Penalty  # settings of the penalty
    axis_name: str | None = None  # mapped axis of the batch; None: one replica
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
        """Returns `(loss, (terms, stats))` for the examples of this replica.

        The mean of its gradient over replicas is the gradient of the joined batch.
        Every forward pass updates the running statistics. `target` holds the target
        network's outputs of both sides, (None, None) if the method has no target
        network; `weight` is the penalty's weight in this step.
        """
        sides, stats = self.encode(params, stats, x, draws)
        return self.couple(params, stats, weight, sides, target, memory)

    def encode(
        self, params: Variables, stats: Variables, x: Array, draws: Draws
    ) -> tuple[tuple[Encoded, ...], Variables]:
        """Returns the encoded sides and further views, and the running statistics."""
        sides, encoder = [], self.encoder
        for side in (draws.first, draws.second):
            (alpha, held), *other_views = side.views
            is_penalized = side is draws.first and has_penalty(self.penalty)
            at = self.penalty.at if is_penalized or self._is_consistency() else "h"
            represent = self._representation(params, stats, x, held, is_penalized, at)
            if is_penalized:
                penalty, point, aux = self._first_view_penalty(represent, side)
                h, outputs, stats = aux
            else:
                penalty, (point, (h, outputs, stats)) = None, represent(alpha)
            for view in other_views:
                images = self.transformation.apply(x, view)
                view_h, stats, _ = _apply(encoder, "encoder", params, stats, images)
                h = h + view_h
            h = h / len(side.views) if other_views else h
            sides.append(Encoded(h, point, penalty, None if other_views else outputs))
        if draws.more:
            assert self.more is not None
            further = [self.more.apply(x, view) for view in draws.more]
            all_h, stats = _apply_each(encoder, "encoder", params, stats, further)
            sides += [Encoded(h, h, None) for h in all_h]
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
        """Returns `(loss, (terms, stats))` of encoded sides, all examples at once."""
        outputs, stats = self._head_outputs(params, stats, sides)
        losses = self.losses(outputs, target, memory)
        penalty = self._penalty_per_example(sides[0], sides[1])
        limited = batch_mean(penalty, axis_name=self.axis_name)
        if self.penalty.batch_limit is not None:
            limited = jnp.minimum(limited, self.penalty.batch_limit)
        loss = jnp.mean(losses) + weight * limited
        return loss, (Terms(losses, penalty, limited, (outputs[0], outputs[1])), stats)

    def target_outputs(
        self, params: Variables, stats: Variables, x: Array, draws: Draws
    ) -> tuple[tuple[PyTree, PyTree], Variables]:
        """Returns a target network's outputs of both sides, and its statistics."""
        draws = draws._replace(more=())
        sides, stats = self.without_penalty().encode(params, stats, x, draws)
        (own, other), stats = self._head_outputs(params, stats, sides)
        return (own, other), stats

    def losses(
        self, outputs: list[PyTree], target: tuple[PyTree, PyTree], memory: PyTree
    ) -> Array:
        """Returns the loss of each example, the mean over pairs of its views.

        The first pair is both sides. Each further view makes one more pair: it replaces
        the first and the second side in turn. A joint loss takes all views at once.
        """
        if self.method.joint is not None:
            return self.method.joint(outputs, axis_name=self.axis_name)
        assert self.method.loss is not None, "there is a loss or a joint one"
        own, other, *further = outputs
        pairs = [(own, other)]
        for number, view in enumerate(further):
            pairs.append((own, view) if number % 2 else (view, other))
        losses = [
            self.method.loss(*pair, *target, memory, axis_name=self.axis_name)
            for pair in pairs
        ]
        return sum(losses[1:], losses[0]) / len(losses) if further else losses[0]

    def without_penalty(self) -> "Objective":
        """Returns this objective without its penalty."""
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
        """Returns alpha -> (the output named `at`, (h, outputs, statistics)).

        The outputs of the heads are None unless `at` is "z".
        """
        encoder = self.penalized if penalized else self.encoder
        heads = self.penalized_heads if penalized else self.method.heads

        def represent(alpha: Array) -> tuple[Array, tuple[Array, PyTree, Variables]]:
            images = self.transformation.apply(x, View(alpha, held))
            at_block = at not in ("h", "z")
            h, updated, blocks = _apply(
                encoder, "encoder", params, stats, images, blocks=at_block
            )
            if at != "z":
                return block_output(blocks, at) if at_block else h, (h, None, updated)
            outputs, updated, _ = _apply(heads, "heads", params, updated, h)
            return projection(outputs), (h, outputs, updated)

        return represent

    def _first_view_penalty(
        self, represent: Callable[[Array], PyTree], side: Side
    ) -> tuple[Array, ...]:
        """Returns the penalty of a side's first view, and the outputs of represent."""
        alpha, options = side.views[0].alpha, {"has_aux": True, **self._options()}
        other, redrawn, signs = map(
            _directions_first, (side.alpha_other, side.alpha_redrawn, side.signs)
        )
        if other is None:
            assert redrawn is not None
            return total_effect(represent, alpha, redrawn, **options)
        options |= {"alpha_redrawn": redrawn, "signs": signs}
        return invariance_penalty(represent, alpha, other, **options)

    def measure_effects(
        self, params: Variables, stats: Variables, x: Array, side: Side
    ) -> Array:
        """Returns sums over examples of bound and effect of each parameter, `[2, P]`.

        An example contributes to one parameter, that of `side.columns`.
        """
        alpha, held = side.views[0]
        assert side.alpha_other is not None and side.alpha_redrawn is not None
        assert side.columns is not None
        other, redrawn = side.alpha_other[:, 0], side.alpha_redrawn[:, 0]
        represent = self._representation(params, stats, x, held, True, self.penalty.at)

        def normalized(alpha: Array) -> Array:
            point = represent(alpha)[0]
            return l2_normalize(point) if self.penalty.normalization == "l2" else point

        low, high = jnp.asarray(self.transformation.bounds.T, alpha.dtype)
        effects = total_effects(
            normalized,
            alpha,
            redrawn,
            side.columns,
            high - low,
            signs=jnp.sign(jnp.sum((other - alpha) * (redrawn - alpha), axis=1)),
        )
        one_hot = jax.nn.one_hot(side.columns, alpha.shape[1], dtype=alpha.dtype)
        each = jnp.stack([effects.bound, effects.effect])[..., None] * one_hot[None]
        sums = jnp.sum(each, axis=1)
        return sums if self.axis_name is None else jax.lax.psum(sums, self.axis_name)

    def split_by_ratio(self, draws: Draws, effects: Array | None) -> Draws:
        """Returns draws of "mixed" whose directions and full steps share no parameter.

        Directions keep the parameters whose ratio of bound to effect is less than
        `largest_ratio`, full steps the others, which include those not measured yet
        and those whose effect is 0, as it is not above rounding.
        Draws are unchanged if effects is None.
        """
        if effects is None:
            return draws
        bound, effect = effects
        is_smooth = bound < self.penalty.largest_ratio * effect

        side = draws.first
        assert side.alpha_other is not None and side.alpha_redrawn is not None
        alpha = side.views[0].alpha[:, None]
        first = side._replace(
            alpha_other=jnp.where(is_smooth[None, None], side.alpha_other, alpha),
            alpha_redrawn=jnp.where(is_smooth[None, None], alpha, side.alpha_redrawn),
        )
        return draws._replace(first=first)

    def _head_outputs(
        self, params: Variables, stats: Variables, sides: tuple[Encoded, ...]
    ) -> tuple[list[PyTree], Variables]:
        """Returns the outputs of the heads for all sides, and the statistics."""
        heads, all_outputs = self.method.heads, []
        for side in sides[:2]:
            outputs = side.outputs
            if outputs is None:
                outputs, stats, _ = _apply(heads, "heads", params, stats, side.h)
            all_outputs.append(outputs)
        if further := [side.h for side in sides[2:]]:
            more, stats = _apply_each(heads, "heads", params, stats, further)
            all_outputs += more
        return all_outputs, stats

    def _penalty_per_example(self, first: Encoded, second: Encoded) -> Array:
        """Returns the penalty of each example, 0 if the objective has no penalty."""
        if self._is_consistency():
            return consistency(first.point, second.point, **self._options())
        if first.penalty is None:
            return jnp.zeros(len(first.point), first.point.dtype)
        return first.penalty

    def _is_consistency(self) -> bool:
        return self.penalty.weight > 0 and self.penalty.kind == "consistency"

    def _options(self) -> dict[str, Any]:
        """Returns the keyword arguments that every kind of penalty takes."""
        return {
            "normalization": self.penalty.normalization,
            "example_limit": self.penalty.example_limit,
            "limit_shape": self.penalty.limit_shape,
            "axis_name": self.axis_name,
        }


def _directions_first(drawn: Array | None) -> Array | None:
    """Returns draws `[B, K, ...]` as `[K, B, ...]`, or `[B, ...]` if K = 1."""
    if drawn is None:
        return None
    drawn = jnp.moveaxis(drawn, 1, 0)
    return drawn[0] if len(drawn) == 1 else drawn


def is_block(module: nn.Module, method: str) -> bool:
    """Returns whether a submodule call is that of a direct child of the encoder."""
    return len(module.path) == 1 and method == "__call__"


def block_output(intermediates: PyTree, name: str) -> Array:
    """Returns the output of a block, the mean over its positions, `[B, features]`.

    "layer3" is the last of "layer3_0", "layer3_1" and so on. Raises KeyError with the
    available names.
    """
    blocks = [n for n in intermediates if n == name or n.startswith(f"{name}_")]
    if not blocks:
        raise KeyError(", ".join(intermediates))
    last = max(blocks, key=lambda block: (len(block), block))
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
    """Returns a part's outputs in training mode, all statistics, captured blocks."""
    outputs, updated = module.apply(
        {"params": params[part], "batch_stats": stats[part]},
        inputs,
        train=True,
        mutable=["batch_stats"],
        capture_intermediates=is_block if blocks else False,
    )
    stats = {**stats, part: updated.get("batch_stats", {})}
    return outputs, stats, updated.get("intermediates", {})


def _apply_each(
    module: nn.Module,
    part: str,
    params: Variables,
    stats: Variables,
    inputs: list[Array],
) -> tuple[list[PyTree], Variables]:
    """Returns a part's outputs for each of several batches, and all statistics.

    It is one forward pass for all of them: each batch is normalized by its own
    statistics, and the running statistics move once, towards the mean of these.
    """
    apply = partial(_apply, module, part, params, stats)
    joined, updated, _ = jax.vmap(apply)(jnp.stack(inputs))
    numbers = range(len(inputs))
    outputs = [jax.tree.map(operator.itemgetter(n), joined) for n in numbers]

    def mean(leaf: Array) -> Array:
        return jnp.mean(leaf, axis=0).astype(leaf.dtype)  # integers count steps

    return outputs, {**stats, part: jax.tree.map(mean, updated[part])}
