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
from invariance_jax.training.objective import Networks, Objective, batch_mean
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
    objective = Objective(settings, networks, transformation, axis_name)

    def penalty_weight(step: Array) -> Array:
        ramp = (step + 1) / max(settings.penalty.warmup_steps, 1)
        return settings.penalty.weight * jnp.minimum(ramp, 1.0)

    def step(state: TrainState, x: Array, draws: Draws) -> tuple[TrainState, Metrics]:
        weight = penalty_weight(state.step)
        gradient = jax.grad(objective, has_aux=True)
        grads, (terms, stats) = gradient(
            state.params, state.batch_stats, weight, x, draws
        )
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        contrastive = batch_mean(terms.contrastive, axis_name)
        values = {
            "loss": contrastive + weight * terms.limited,
            "contrastive": contrastive,
            "penalty": batch_mean(terms.penalty, axis_name),
        }
        metrics = {name: (term, jnp.ones_like(term)) for name, term in values.items()}
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
