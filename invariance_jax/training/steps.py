"""One training step as a pure function of the state, the examples and their draws.

Gradient descent on `training.objective`. One replica; collectives only behind
`axis_name`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from invariance_jax.training.draws import Draws
from invariance_jax.training.microbatches import make_gradient
from invariance_jax.training.objective import (
    Networks,
    Objective,
    Terms,
    batch_mean,
    penalized_views,
)
from invariance_jax.transforms.base import Transformation
from invariance_jax.types import Array

Metrics = dict[str, tuple[Array, Array]]
"""Name -> (sum, count): the mean over any number of steps is sum / count."""


class TrainState(NamedTuple):
    """All that changes during training.

    Attributes:
      step: int32 `[]`, finished steps.
      params: {"encoder": ..., "head": ...}.
      batch_stats: running statistics, {"encoder": ..., "head": ...}.
      opt_state: state of the optimizer.
    """

    step: Array
    params: Any
    batch_stats: Any
    opt_state: Any


def make_step(
    settings: Any,
    networks: Networks,
    transformation: Transformation,
    optimizer: optax.GradientTransformation,
    *,
    axis_name: str | None = None,
) -> Callable[[TrainState, Array, Draws], tuple[TrainState, Metrics]]:
    """Returns `step(state, x, draws)`, one update of the parameters.

    Args:
      settings: the result of `training.settings.resolve`.
      networks: the modules.
      transformation: makes views of x.
      optimizer: an optax transformation.
      axis_name: the mapped axis over which the batch is spread; None: one replica.

    Returns:
      `(state, x [B, ...], draws) -> (state, metrics)`, pure; x and draws are this
      replica's share, the new state and the metrics are the same on every replica.
    """
    penalty, every = settings.penalty, settings.penalty.every_steps

    def make(views: int) -> Callable[..., tuple[Any, Any]]:
        objective = Objective(settings, networks, transformation, axis_name, views)
        return make_gradient(objective, settings.microbatches)

    penalized, plain = make(penalized_views(settings)), make(0)

    def gradient(step: Array, *inputs: Any) -> tuple[Any, tuple[Terms, Any]]:
        if every == 1:
            return penalized(*inputs)
        return jax.lax.cond(step % every == 0, penalized, plain, *inputs)

    def step(state: TrainState, x: Array, draws: Draws) -> tuple[TrainState, Metrics]:
        due = state.step % every == 0
        ramp = (state.step + 1) / max(penalty.warmup_steps, 1)
        weight = penalty.weight * jnp.minimum(ramp, 1.0) * every * due
        grads, (terms, stats) = gradient(
            state.step, state.params, state.batch_stats, weight, x, draws
        )
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        contrastive = batch_mean(terms.contrastive, axis_name)
        one = jnp.ones_like(contrastive)
        metrics = {
            "loss": (contrastive + weight * terms.limited, one),
            "contrastive": (contrastive, one),
            "penalty": (batch_mean(terms.penalty, axis_name) * due, one * due),
        }
        return TrainState(state.step + 1, params, stats, opt_state), metrics

    return step


def init_state(
    key: Array,
    networks: Networks,
    transformation: Transformation,
    optimizer: optax.GradientTransformation,
    x: Array,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      key: random key of the initialization.
      networks: the modules, with no axis name.
      transformation: makes the views that give the shapes.
      optimizer: an optax transformation.
      x: a few examples, `[B, ...]`.

    Returns:
      The state at step 0.
    """
    encoder_key, head_key, view_key = jax.random.split(key, 3)
    images = transformation.apply(x, transformation.sample(view_key, len(x)))
    encoder = networks.encoder.init(encoder_key, images, train=False)
    h = networks.encoder.apply(encoder, images, train=False)
    head = networks.head.init(head_key, h, train=False)
    parts = {"encoder": encoder, "head": head}
    params = {name: part["params"] for name, part in parts.items()}
    stats = {name: part.get("batch_stats", {}) for name, part in parts.items()}
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
