"""Self-supervised methods: heads on the representation, and a loss of their outputs.

The invariance penalty is no part of a method, and acts under each of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import optax

from invariance_jax.losses import nt_xent
from invariance_jax.models import ProjectionHead
from invariance_jax.settings import Settings, plugins
from invariance_jax.types import Array


class Loss(Protocol):
    """The loss of two views of each example, which a method gives."""

    def __call__(
        self,
        own: Any,
        other: Any,
        target_own: Any,
        target_other: Any,
        memory: Any,
        *,
        axis_name: str | None,
    ) -> Array:
        """Returns the loss of each example.

        Args:
          own: outputs of the heads of the first views, leaves `[B, ...]`.
          other: those of the second views.
          target_own: outputs of the target network of the first views; None: it has
            none.
          target_other: those of the second views.
          memory: what the method keeps from step to step.
          axis_name: the mapped axis over which the batch is spread; None: one replica.

        Returns:
          `[B]`, whose mean over all replicas is the loss of the joined batch.
        """
        ...


class Method(NamedTuple):
    """A self-supervised method.

    Attributes:
      heads: flax module, `heads.apply(variables, h [B, D], train=bool)` -> outputs, a
        pytree of `[B, ...]`.
      loss: see `Loss`.
      momentum: of the target network, step -> m in `target <- m target + (1 - m)
        parameters` after each step; None: there is no target network.
      memory: a pytree of arrays that the method keeps from step to step, such as a
        queue; (): none.
      update: `(memory, outputs) -> memory` after each step; outputs is the pair of
        both views' outputs of the whole batch, those of the target network if there is
        one. None: the memory stays.
    """

    heads: nn.Module
    loss: Loss
    momentum: optax.Schedule | None = None
    memory: Any = ()
    update: Callable[[Any, Any], Any] | None = None


def simclr(
    *,
    temperature: float,
    projection: int,
    similarity_block: int = 0,
    tangent: str = "coupled",
    axis_name: str | None = None,
) -> Method:
    """Returns SimCLR, the method of the paper.

    Chen, Kornblith, Norouzi, Hinton (2020): NT-Xent of projections z. The head is that
    of Foster et al. (2021); it normalizes over the whole batch, whatever the group size
    of the encoder.

    Args:
      temperature: of the loss.
      projection: features of z.
      similarity_block: anchors per block of the similarities; 0: all at once.
      tangent: of the head's batch normalization, "coupled" or "example".
      axis_name: the mapped axis over which the batch is spread; None: one replica.
    """
    head = ProjectionHead(output=projection, tangent=tangent, axis_name=axis_name)

    def loss(
        own: Any,
        other: Any,
        target_own: Any,
        target_other: Any,
        memory: Any,
        *,
        axis_name: str | None,
    ) -> Array:
        return nt_xent(
            own,
            other,
            temperature=temperature,
            axis_name=axis_name,
            block_size=similarity_block or None,
        )

    return Method(head, loss)


def make_method(
    settings: Settings,
    features: int,
    *,
    tangent: str = "coupled",
    axis_name: str | None = None,
) -> Method:
    """Returns the method that the settings name.

    Args:
      settings: the result of `resolve`.
      features: D of the representation.
      tangent: of batch normalization in the heads, "coupled" or "example".
      axis_name: the mapped axis over which the batch is spread; None: one replica.

    Raises:
      ValueError: if the user's function cannot be called or returns something else.
    """
    chosen = settings.method
    if not plugins.is_own(chosen.name):
        return simclr(
            temperature=settings.temperature,
            projection=settings.encoder.projection,
            similarity_block=settings.similarity_block,
            tangent=tangent,
            axis_name=axis_name,
        )
    method = plugins.call(
        "method.name",
        chosen.name,
        features=features,
        axis_name=axis_name,
        **chosen.kwargs,
    )
    if not isinstance(method, Method) or not isinstance(method.heads, nn.Module):
        raise ValueError(
            f"method.name is {chosen.name!r}, which returned {method!r}; expected a "
            "Method whose heads are a flax module."
        )
    return method
