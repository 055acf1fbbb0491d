"""The training objective: the contrastive loss plus the weighted invariance penalty.

Foster, Pukdee, Rainforth (ICLR 2021): NT-Xent of two views, and the gradient penalty of
the first one. One replica; collectives only behind `axis_name`. Deviations, all off by
default: the penalty of both views, of the projection z, along some parameters of the
transformation, or without a derivative; and sides that average several views.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.losses import consistency, invariance_penalty, nt_xent
from invariance_jax.training.draws import Draws, Side
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
    """

    encoder: Any
    penalized: Any
    head: Any
    penalized_head: Any


class Terms(NamedTuple):
    """What the loss is made of.

    Attributes:
      contrastive: `[B]`, nats.
      penalty: `[B]`, 0 without one.
      limited: `[]`, the mean of the penalty over all replicas, at most its limit.
    """

    contrastive: Array
    penalty: Array
    limited: Array


class _Side(NamedTuple):
    """One side of the contrastive loss.

    Attributes:
      z: `[B, D]`, the projection of its mean representation.
      point: `[B, D]`, h or z of its first view, where the penalty acts.
      penalty: `[B]`, the gradient penalty of its first view, if it is taken.
    """

    z: Array
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
    """

    settings: Any
    networks: Networks
    transformation: Transformation
    axis_name: str | None = None

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
        settings, penalized = self.settings, penalized_views(self.settings)
        drawn1, drawn2 = draws.sides
        one, stats = self._side(params, stats, x, drawn1, penalized >= 1)
        two, stats = self._side(params, stats, x, drawn2, penalized >= 2)
        contrastive = nt_xent(
            one.z, two.z, temperature=settings.temperature, axis_name=self.axis_name
        )
        penalty = self._penalty(one, two)
        limited = batch_mean(penalty, self.axis_name)
        if settings.penalty.batch_limit is not None:
            limited = jnp.minimum(limited, settings.penalty.batch_limit)
        loss = jnp.mean(contrastive) + weight * limited
        return loss, (Terms(contrastive, penalty, limited), stats)

    def _side(
        self, params: Any, stats: Any, x: Array, drawn: Side, penalized: bool
    ) -> tuple[_Side, Any]:
        """Returns one side, and the running statistics after it."""
        (alpha, held), *more = drawn.views
        networks, chosen = self.networks, self.settings.penalty
        encoder, head = networks.encoder, networks.head
        if penalized:
            encoder, head = networks.penalized, networks.penalized_head
        at_z = chosen.at == "z" and (penalized or _is_consistency(self.settings))

        def represent(alpha: Array) -> tuple[Array, tuple[Array, Any]]:
            images = self.transformation.apply(x, View(alpha, held))
            h, moved = _apply(encoder, "encoder", params, stats, images)
            if not at_z:
                return h, (h, moved)
            z, moved = _apply(head, "head", params, moved, h)
            return z, (h, moved)

        penalty = None
        if penalized:
            penalty, point, (h, moved) = self._derivative(represent, alpha, drawn)
        else:
            point, (h, moved) = represent(alpha)
        if at_z and not more:
            return _Side(point, point, penalty), moved
        for view in more:
            images = self.transformation.apply(x, view)
            another, moved = _apply(networks.encoder, "encoder", params, moved, images)
            h = h + another
        if more:
            h = h / len(drawn.views)
        z, moved = _apply(networks.head, "head", params, moved, h)
        return _Side(z, point, penalty), moved

    def _derivative(
        self, represent: Callable[[Array], Any], alpha: Array, drawn: Side
    ) -> tuple[Array, ...]:
        """Returns the penalty of a view, with the results of represent."""
        chosen = self.settings.penalty
        others = jnp.moveaxis(drawn.alpha_other, 1, 0)
        if chosen.parameters:
            along = np.isin(self.transformation.names, chosen.parameters)
            others = jnp.where(along[None, None], others, alpha[None])
        signs = None
        if chosen.estimator == "sign":
            signs = jnp.moveaxis(drawn.signs, 1, 0)
        return invariance_penalty(
            represent,
            alpha,
            others[0] if len(others) == 1 else others,
            signs=signs,
            has_aux=True,
            **self._measure(),
        )

    def _penalty(self, one: _Side, two: _Side) -> Array:
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
    """Returns how many views the derivative is taken of: 0, 1 or 2.

    Args:
      settings: the result of `training.settings.resolve`.
    """
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
