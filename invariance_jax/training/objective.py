"""The training objective: the contrastive loss plus the weighted invariance penalty.

Foster, Pukdee, Rainforth (ICLR 2021): NT-Xent of two views, and the gradient penalty of
the first one. One replica; collectives only behind `axis_name`. Deviations, all off by
default: the penalty of both views, of the projection z, along some parameters of the
transformation, of a share of the examples, or without a derivative; and sides that
average several views.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.losses import consistency, invariance_penalty, nt_xent
from invariance_jax.training.draws import Draws, Side
from invariance_jax.training.fractions import every_nth, interleave, one_in
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array


class Networks(NamedTuple):
    """The flax modules of a step.

    Attributes:
      encoder: images -> h.
      penalized: the encoder in the form that the penalty differentiates along alpha:
        the same variables, batch statistics coupled or held.
      head: h -> z.
      penalized_head: the head in that form.
      rest: the encoder for the examples of a penalized view that are not penalized
        themselves; None: all are.
    """

    encoder: Any
    penalized: Any
    head: Any
    penalized_head: Any
    rest: Any = None


class Terms(NamedTuple):
    """What the loss is made of.

    Attributes:
      contrastive: `[B]`, nats.
      penalty: `[B]`, or of the examples that are penalized; 0 without one.
      limited: `[]`, the mean of the penalty over all replicas, at most its limit.
    """

    contrastive: Array
    penalty: Array
    limited: Array


class Encoded(NamedTuple):
    """One side of the contrastive loss, encoded.

    Attributes:
      h: `[B, D]`, its representation, the mean over its views.
      point: `[B, D]`, h or z of its first view, where the penalty acts.
      penalty: `[B]`, or of the examples that are penalized: the gradient penalty of its
        first view, if it is taken.
    """

    h: Array
    point: Array
    penalty: Array | None


@dataclass(frozen=True)
class Objective:
    """The loss of a batch as a function of the parameters.

    Attributes:
      settings: the result of `training.settings.resolve`.
      networks: the modules.
      transformation: makes views of x.
      axis_name: the mapped axis over which the batch is spread; None: one replica.
      penalized_views: whose derivative is taken, 0, 1 or 2.
    """

    settings: Any
    networks: Networks
    transformation: Transformation
    axis_name: str | None = None
    penalized_views: int = 0

    def __call__(
        self, params: Any, stats: Any, weight: Array, x: Array, draws: Draws
    ) -> tuple[Array, tuple[Terms, Any]]:
        """Returns the loss.

        Args:
          params: {"encoder": ..., "head": ...}.
          stats: running statistics, {"encoder": ..., "head": ...}.
          weight: `[]`, of the penalty.
          x: `[B, ...]`, the examples of this replica.
          draws: their draws.

        Returns:
          `(loss, (terms, stats))`: the mean over replicas of its gradient is that of
          the joined batch; every forward pass moves the running statistics.
        """
        sides, stats = self.encode(params, stats, x, draws)
        return self.loss(params, stats, weight, sides)

    def encode(
        self, params: Any, stats: Any, x: Array, draws: Draws
    ) -> tuple[tuple[Encoded, Encoded], Any]:
        """Returns both sides, encoded, and the running statistics after it.

        The arguments are those of the objective.
        """
        drawn1, drawn2 = draws.sides
        one, stats = self._encode(params, stats, x, drawn1, 1)
        two, stats = self._encode(params, stats, x, drawn2, 2)
        return (one, two), stats

    def loss(
        self, params: Any, stats: Any, weight: Array, sides: tuple[Encoded, Encoded]
    ) -> tuple[Array, tuple[Terms, Any]]:
        """Returns the loss of sides that are encoded, as the objective does.

        Args:
          params: as of the objective.
          stats: running statistics after `encode`.
          weight: as of the objective.
          sides: the result of `encode`.
        """
        one, two = sides
        z1, stats = self._project(params, stats, one, self._acts_on_z(1))
        z2, stats = self._project(params, stats, two, self._acts_on_z(2))
        contrastive = nt_xent(
            z1,
            z2,
            temperature=self.settings.temperature,
            axis_name=self.axis_name,
            block_size=self.settings.similarity_block or None,
        )
        penalty = self._penalty(one, two)
        limited = batch_mean(penalty, self.axis_name)
        if self.settings.penalty.batch_limit is not None:
            limited = jnp.minimum(limited, self.settings.penalty.batch_limit)
        loss = jnp.mean(contrastive) + weight * limited
        return loss, (Terms(contrastive, penalty, limited), stats)

    def _encode(
        self, params: Any, stats: Any, x: Array, drawn: Side, number: int
    ) -> tuple[Encoded, Any]:
        """Returns the n-th side, encoded, and the running statistics after it."""
        networks = self.networks
        first, *more = drawn.views
        penalty = None
        if number <= self.penalized_views:
            penalty, point, (h, stats) = self._penalized(params, stats, x, drawn)
        else:
            modules, at_z = (networks.encoder, networks.head), self._acts_on_z(number)
            inputs = params, stats, x, first
            point, (h, stats) = self._represent(modules, at_z, *inputs)
        for view in more:
            images = self.transformation.apply(x, view)
            another, stats = _apply(networks.encoder, "encoder", params, stats, images)
            h = h + another
        if more:
            h = h / len(drawn.views)
        return Encoded(h, point, penalty), stats

    def _project(
        self, params: Any, stats: Any, side: Encoded, at_z: bool
    ) -> tuple[Array, Any]:
        """Returns the projection of one side, and the running statistics after it."""
        if at_z and self.settings.average_views == 1:
            return side.point, stats
        return _apply(self.networks.head, "head", params, stats, side.h)

    def _acts_on_z(self, number: int) -> bool:
        """Returns whether the penalty acts on the projection of the n-th side."""
        acts = number <= self.penalized_views or _is_consistency(self.settings)
        return acts and self.settings.penalty.at == "z"

    def _represent(
        self,
        modules: tuple[Any, Any],
        at_z: bool,
        params: Any,
        stats: Any,
        x: Array,
        view: View,
    ) -> tuple[Array, tuple[Array, Any]]:
        """Returns where the penalty acts on a view, its h and the statistics after."""
        encoder, head = modules
        images = self.transformation.apply(x, view)
        h, stats = _apply(encoder, "encoder", params, stats, images)
        if not at_z:
            return h, (h, stats)
        z, stats = _apply(head, "head", params, stats, h)
        return z, (h, stats)

    def _penalized(
        self, params: Any, stats: Any, x: Array, drawn: Side
    ) -> tuple[Array, Array, tuple[Array, Any]]:
        """Returns the penalty of a view, with what `_represent` returns.

        Every n-th example is penalized, where one in n is; the others are encoded on
        their own, which spares their derivative.
        """
        count = one_in(self.settings.penalty.fraction)
        if count == 1:
            return self._derivative(params, stats, x, drawn)
        part, rest = every_nth((x, drawn), count)
        penalty, *penalized = self._derivative(params, stats, *part)
        point, (h, stats) = penalized
        networks, (x, drawn) = self.networks, rest
        modules, at_z = (networks.rest, networks.head), self.settings.penalty.at == "z"
        others = self._represent(modules, at_z, params, stats, x, drawn.views[0])
        other_point, (other_h, stats) = others
        point, h = interleave(point, other_point), interleave(h, other_h)
        return penalty, point, (h, stats)

    def _derivative(
        self, params: Any, stats: Any, x: Array, drawn: Side
    ) -> tuple[Array, Array, tuple[Array, Any]]:
        """Returns the penalty of a view, with what `_represent` returns."""
        chosen, networks = self.settings.penalty, self.networks
        alpha, held = drawn.views[0]
        others = jnp.moveaxis(drawn.alpha_other, 1, 0)
        if chosen.parameters:
            along = np.isin(self.transformation.names, chosen.parameters)
            others = jnp.where(along[None, None], others, alpha[None])
        signs = None
        if chosen.estimator == "sign":
            signs = jnp.moveaxis(drawn.signs, 1, 0)
        modules, at_z = (networks.penalized, networks.penalized_head), chosen.at == "z"

        def represent(alpha: Array) -> tuple[Array, tuple[Array, Any]]:
            return self._represent(modules, at_z, params, stats, x, View(alpha, held))

        return invariance_penalty(
            represent,
            alpha,
            others[0] if len(others) == 1 else others,
            signs=signs,
            has_aux=True,
            **self._measure(),
        )

    def _penalty(self, one: Encoded, two: Encoded) -> Array:
        """Returns the penalty of each example, 0 without one."""
        if _is_consistency(self.settings):
            return consistency(one.point, two.point, **self._measure())
        if one.penalty is None:
            return jnp.zeros(len(one.point), one.point.dtype)
        return one.penalty if two.penalty is None else (one.penalty + two.penalty) / 2

    def _measure(self) -> dict[str, Any]:
        """Returns what both kinds of penalty ask for."""
        return {
            "normalization": self.settings.penalty.normalization,
            "example_limit": self.settings.penalty.example_limit,
            "limit_shape": self.settings.penalty.limit_shape,
            "axis_name": self.axis_name,
        }


def penalized_views(settings: Any) -> int:
    """Returns how many views the derivative is taken of: 0, 1 or 2."""
    penalty = settings.penalty
    return penalty.views if penalty.weight > 0 and penalty.kind == "gradient" else 0


def batch_mean(values: Array, axis_name: str | None) -> Array:
    """Returns the mean over the batch of all replicas.

    Args:
      values: `[B]`, of this replica.
      axis_name: the mapped axis over which the batch is spread; None: one replica.
    """
    local = jnp.mean(values)
    return local if axis_name is None else jax.lax.pmean(local, axis_name)


def _is_consistency(settings: Any) -> bool:
    return bool(settings.penalty.weight > 0 and settings.penalty.kind == "consistency")


def _apply(
    module: Any, part: str, params: Any, stats: Any, inputs: Array
) -> tuple[Array, Any]:
    """Returns the training-mode output of one part and all running statistics."""
    outputs, updated = module.apply(
        {"params": params[part], "batch_stats": stats[part]},
        inputs,
        train=True,
        mutable=["batch_stats"],
    )
    return outputs, {**stats, part: updated["batch_stats"]}
