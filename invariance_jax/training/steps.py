"""One training step as a pure function of the state, the examples and their draws.

The objective of Foster, Pukdee, Rainforth (ICLR 2021): NT-Xent plus the weighted
invariance penalty of the first view. One replica; collectives only behind `axis_name`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from invariance_jax.losses import invariance_penalty, nt_xent
from invariance_jax.training.draws import Draws
from invariance_jax.transforms.base import Transformation, View
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


class Networks(NamedTuple):
    """The flax modules of a step.

    Attributes:
      encoder: images -> h.
      penalized: the encoder in the form that the penalty differentiates along alpha:
        the same variables, batch statistics coupled or held.
      head: h -> z.
    """

    encoder: Any
    penalized: Any
    head: Any


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

    def penalty_weight(step: Array) -> Array:
        ramp = (step + 1) / max(settings.penalty.warmup_steps, 1)
        return settings.penalty.weight * jnp.minimum(ramp, 1.0)

    def objective(params: Any, stats: Any, weight: Array, x: Array, draws: Draws):
        h1, penalty, stats = _first_view(
            settings, networks, transformation, params, stats, x, draws, axis_name
        )
        images = transformation.apply(x, draws.second)
        h2, stats = _encode(networks.encoder, params, stats, images)
        z1, stats = _project(networks.head, params, stats, h1)
        z2, stats = _project(networks.head, params, stats, h2)
        contrastive = nt_xent(
            z1, z2, temperature=settings.temperature, axis_name=axis_name
        )
        limited = _mean(penalty, axis_name)
        if settings.penalty.batch_limit is not None:
            limited = jnp.minimum(limited, settings.penalty.batch_limit)
        loss = jnp.mean(contrastive) + weight * limited
        return loss, (contrastive, penalty, limited, stats)

    def step(state: TrainState, x: Array, draws: Draws) -> tuple[TrainState, Metrics]:
        weight = penalty_weight(state.step)
        gradient = jax.grad(objective, has_aux=True)
        grads, (contrastive, penalty, limited, stats) = gradient(
            state.params, state.batch_stats, weight, x, draws
        )
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        contrastive, penalty = _mean(contrastive, axis_name), _mean(penalty, axis_name)
        terms = {
            "loss": contrastive + weight * limited,
            "contrastive": contrastive,
            "penalty": penalty,
        }
        metrics = {name: (term, jnp.ones_like(term)) for name, term in terms.items()}
        return TrainState(state.step + 1, params, stats, opt_state), metrics

    return step


def _first_view(
    settings: Any,
    networks: Networks,
    transformation: Transformation,
    params: Any,
    stats: Any,
    x: Array,
    draws: Draws,
    axis_name: str | None,
) -> tuple[Array, Array, Any]:
    """Returns h of the first view, its penalty `[B]` (0 without one), and
    statistics."""
    alpha, held = draws.first

    def represent(alpha: Array, *, encoder: Any) -> tuple[Array, Any]:
        images = transformation.apply(x, View(alpha, held))
        return _encode(encoder, params, stats, images)

    if settings.penalty.weight == 0:
        h, stats = represent(alpha, encoder=networks.encoder)
        return h, jnp.zeros(len(h), h.dtype), stats
    others = jnp.moveaxis(draws.alpha_other, 1, 0)
    penalty, h, stats = invariance_penalty(
        lambda alpha: represent(alpha, encoder=networks.penalized),
        alpha,
        others[0] if len(others) == 1 else others,
        normalization=settings.penalty.normalization,
        example_limit=settings.penalty.example_limit,
        has_aux=True,
        axis_name=axis_name,
    )
    return h, penalty, stats


def _encode(encoder: Any, params: Any, stats: Any, images: Array) -> tuple[Array, Any]:
    return _apply(encoder, "encoder", params, stats, images)


def _project(head: Any, params: Any, stats: Any, h: Array) -> tuple[Array, Any]:
    return _apply(head, "head", params, stats, h)


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


def _mean(values: Array, axis_name: str | None) -> Array:
    local = jnp.mean(values)
    return local if axis_name is None else jax.lax.pmean(local, axis_name)


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
