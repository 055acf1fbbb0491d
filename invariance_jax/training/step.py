"""One training step as a pure function of the state, the examples and their draws.

Gradient descent on `training.objective`. The code is that of one replica; collectives
only behind `axis_name`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from invariance_jax.numerics import batch_mean, safe_divide
from invariance_jax.training.draws import Draws
from invariance_jax.training.microbatches import make_gradient, split
from invariance_jax.training.objective import Objective, Variables
from invariance_jax.types import Array, PyTree

Metrics = dict[str, tuple[Array, Array]]
"""Name -> (sum, count), which add up over steps: the mean over them is sum / count."""


_EFFECTS_DECAY = 0.9
"""Factor on the sums of bound and effect before each new measurement is added."""


class Target(NamedTuple):
    """The target network: an exponential moving average of the parameters."""

    params: Variables  # of encoder and heads
    batch_stats: Variables  # its own running statistics


class TrainState(NamedTuple):
    """All that changes during training."""

    step: Array  # int32 [], number of finished steps
    params: Variables  # {"encoder": ..., "heads": ...}
    batch_stats: Variables  # running statistics, {"encoder": ..., "heads": ...}
    opt_state: PyTree  # state of the optimizer
    target: Target | None = None  # None: the method has no target network
    memory: PyTree = ()  # memory of the method; (): it has none
    # [2, P], decaying sums of derivative bound and total effect by parameter; None
    # unless the penalty is "mixed".
    effects: Array | None = None


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
) -> Callable[[TrainState, Array, Draws], tuple[TrainState, Metrics]]:
    """Returns `(state, x [B, ...], draws) -> (state, metrics)`, a pure train step.

    x and draws are this replica's share of the batch, which is split into microbatches.
    The new state and the metrics are the same on every replica.
    """
    penalty, axis_name = objective.penalty, objective.axis_name
    every_steps = penalty.every_steps
    penalized_gradient = make_gradient(objective, microbatches)
    plain_gradient = make_gradient(objective.without_penalty(), microbatches)

    def step(state: TrainState, x: Array, draws: Draws) -> tuple[TrainState, Metrics]:
        is_due = state.step % every_steps == 0
        warmup = jnp.minimum((state.step + 1) / max(penalty.warmup_steps, 1), 1.0)
        weight = penalty.weight * warmup * every_steps * is_due
        effects, ratios = _measure_ratios(objective, state, x, draws, microbatches)
        draws = objective.split_by_ratio(draws, effects)
        target, target_outputs = state.target, (None, None)
        if target is not None:
            target_outputs, target_stats = objective.target_outputs(*target, x, draws)
            target = target._replace(batch_stats=target_stats)
        params, stats, memory = state.params, state.batch_stats, state.memory
        inputs = params, stats, weight, x, draws, target_outputs, memory
        if every_steps == 1:
            grads, (terms, stats) = penalized_gradient(*inputs)
        else:
            grads, (terms, stats) = jax.lax.cond(
                is_due, penalized_gradient, plain_gradient, *inputs
            )
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        method_loss = batch_mean(terms.method, axis_name=axis_name)
        mean_penalty = batch_mean(terms.penalty, axis_name=axis_name)
        one = jnp.ones_like(method_loss)
        metrics = {
            "loss": (method_loss + weight * terms.limited, one),
            "contrastive": (method_loss, one),
            "penalty": (mean_penalty * is_due, one * is_due),
            **ratios,
        }
        if target is not None:
            target, values = _update_target(objective, target, params, state.step)
            metrics |= {name: (value, one) for name, value in values.items()}
        outputs = terms.outputs if target is None else target_outputs
        memory = update_memory(objective, memory, outputs)
        updated = params, stats, opt_state, target, memory, effects
        return TrainState(state.step + 1, *updated), metrics

    return step


def _measure_ratios(
    objective: Objective, state: TrainState, x: Array, draws: Draws, microbatches: int
) -> tuple[Array | None, Metrics]:
    """Returns the sums of bound and effect by parameter, and metrics of their ratio."""
    if state.effects is None:
        return None, {}
    parts = split((x, draws.first), microbatches)
    is_due = state.step % objective.penalty.ratio_every_steps == 0

    def measure(sums: Array) -> Array:
        new = jax.lax.map(
            lambda part: objective.measure_effects(
                state.params, state.batch_stats, *part
            ),
            parts,
        )
        return _EFFECTS_DECAY * sums + jnp.sum(new, axis=0).astype(sums.dtype)

    effects = jax.lax.cond(is_due, measure, lambda sums: sums, state.effects)
    # Without an effect, as of a parameter that is not penalized, there is no ratio.
    counts = (is_due & (effects[1] > 0)).astype(effects.dtype)
    metrics = zip(safe_divide(*effects) * counts, counts, strict=True)
    names = [f"poincare_ratio.{name}" for name in objective.transformation.names]
    return effects, dict(zip(names, metrics, strict=True))


def _update_target(
    objective: Objective, target: Target, params: Variables, step: Array
) -> tuple[Target, dict[str, Array]]:
    """Returns the target network after its momentum update, and metrics of it."""
    assert objective.method.momentum is not None
    momentum = objective.method.momentum(step)
    averaged = optax.incremental_update(params, target.params, 1 - momentum)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, averaged, params))
    distance = difference / optax.tree.norm(params)
    metrics = {"target_momentum": momentum, "target_distance": distance}
    return target._replace(params=averaged), metrics


def update_memory(objective: Objective, memory: PyTree, outputs: PyTree) -> PyTree:
    """Returns the memory of the method, updated with the outputs of the whole batch."""
    update, axis_name = objective.method.update, objective.axis_name
    if update is None:
        return memory
    if axis_name is not None:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
        outputs = jax.tree.map(gather, outputs)
    return update(memory, outputs)
