"""One training step as a pure function of the state, the examples and their draws.

Gradient descent on `training.objective`. One replica; collectives only behind
`axis_name`.
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
from invariance_jax.types import Array, Key, PyTree

Metrics = dict[str, tuple[Array, Array]]
"""Name -> (sum, count): the mean over any number of steps is sum / count."""


_KEPT = 0.9
"""Share of the sums of bound and effect that is left at the next measurement."""


class Target(NamedTuple):
    """The target network: an exponential average of the parameters."""

    params: Variables  # of encoder and heads
    batch_stats: Variables  # its own running statistics


class TrainState(NamedTuple):
    """All that changes during training."""

    step: Array  # int32 [], finished steps
    params: Variables  # {"encoder": ..., "heads": ...}
    batch_stats: Variables  # running statistics, {"encoder": ..., "heads": ...}
    opt_state: PyTree  # of the optimizer
    target: Target | None = None  # None: the method has none
    memory: PyTree = ()  # of the method; (): it has none
    # [2, P], fading sums of derivative bound and total effect by parameter; None unless
    # the penalty is "mixed".
    effects: Array | None = None


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
) -> Callable[[TrainState, Array, Draws], tuple[TrainState, Metrics]]:
    """Returns `(state, x [B, ...], draws) -> (state, metrics)`, one update, pure.

    x and draws are this replica's share, which microbatches splits into parts; the new
    state and the metrics are the same on every replica.
    """
    penalty, axis_name = objective.penalty, objective.axis_name
    every = penalty.every_steps
    penalized = make_gradient(objective, microbatches)
    plain = make_gradient(objective.plain(), microbatches)

    def step(state: TrainState, x: Array, draws: Draws) -> tuple[TrainState, Metrics]:
        due = state.step % every == 0
        ramp = (state.step + 1) / max(penalty.warmup_steps, 1)
        weight = penalty.weight * jnp.minimum(ramp, 1.0) * every * due
        effects, ratios = _measure_ratios(objective, state, x, draws, microbatches)
        draws = objective.split_by_ratio(draws, effects)
        target, seen = state.target, (None, None)
        if target is not None:
            seen, moved = objective.target_outputs(*target, x, draws)
            target = target._replace(batch_stats=moved)
        inputs = (state.params, state.batch_stats, weight, x, draws, seen, state.memory)
        if every == 1:
            grads, (terms, stats) = penalized(*inputs)
        else:
            grads, (terms, stats) = jax.lax.cond(due, penalized, plain, *inputs)
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        loss = batch_mean(terms.method, axis_name=axis_name)
        size = batch_mean(terms.penalty, axis_name=axis_name)
        one = jnp.ones_like(loss)
        metrics = {
            "loss": (loss + weight * terms.limited, one),
            "contrastive": (loss, one),
            "penalty": (size * due, one * due),
            **ratios,
        }
        if target is not None:
            target, followed = _follow(objective, target, params, state.step)
            metrics |= {name: (value, one) for name, value in followed.items()}
        outputs = terms.outputs if target is None else seen
        memory = _remember(objective, state.memory, outputs)
        trained = params, stats, opt_state, target, memory, effects
        return TrainState(state.step + 1, *trained), metrics

    return step


def _measure_ratios(
    objective: Objective, state: TrainState, x: Array, draws: Draws, microbatches: int
) -> tuple[Array | None, Metrics]:
    """Returns the sums of bound and effect, in some steps new, and their ratios."""
    if state.effects is None:
        return None, {}
    parts = split((x, draws.first), microbatches)
    due = state.step % objective.penalty.ratio_every_steps == 0

    def measure(before: Array) -> Array:
        each = jax.lax.map(
            lambda part: objective.measure_effects(
                state.params, state.batch_stats, *part
            ),
            parts,
        )
        return _KEPT * before + jnp.sum(each, axis=0).astype(before.dtype)

    effects = jax.lax.cond(due, measure, lambda before: before, state.effects)
    ratios = safe_divide(*effects) * due
    names = objective.transformation.names
    return effects, {
        f"poincare_ratio.{name}": (ratio, due.astype(ratio.dtype))
        for name, ratio in zip(names, ratios, strict=True)
    }


def _follow(
    objective: Objective, target: Target, params: Variables, step: Array
) -> tuple[Target, dict[str, Array]]:
    """Returns the target network after it has moved towards the parameters, and how."""
    assert objective.method.momentum is not None
    kept = objective.method.momentum(step)
    moved = optax.incremental_update(params, target.params, 1 - kept)
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, moved, params))
    distance = apart / optax.tree.norm(params)
    followed = {"target_momentum": kept, "target_distance": distance}
    return target._replace(params=moved), followed


def _remember(objective: Objective, memory: PyTree, outputs: PyTree) -> PyTree:
    """Returns the memory of the method after it has seen the outputs of the batch."""
    update, axis_name = objective.method.update, objective.axis_name
    if update is None:
        return memory
    if axis_name is not None:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis_name, tiled=True)
        outputs = jax.tree.map(gather, outputs)
    return update(memory, outputs)


def init_state(
    key: Key, objective: Objective, optimizer: optax.GradientTransformation, x: Array
) -> TrainState:
    """Returns the state at step 0, from a few examples; the target starts as a copy."""
    encoder_key, heads_key, view_key = jax.random.split(key, 3)
    transformation, method = objective.transformation, objective.method
    images = transformation.apply(x, transformation.draw(view_key, x))
    encoder = objective.encoder.init(encoder_key, images, train=False)
    h = objective.encoder.apply(encoder, images, train=False)
    heads = method.heads.init(heads_key, h, train=False)
    parts = {"encoder": encoder, "heads": heads}
    params = {name: part["params"] for name, part in parts.items()}
    stats = {name: part.get("batch_stats", {}) for name, part in parts.items()}
    target, effects, penalty = None, None, objective.penalty
    if method.momentum is not None:
        # A copy, since the state is donated.
        target = Target(*jax.tree.map(jnp.copy, (params, stats)))
    if penalty.kind == "mixed" and penalty.weight > 0:
        effects = jnp.zeros((2, len(transformation.names)))
    memory = jax.tree.map(jnp.asarray, method.memory)
    step, opt_state = jnp.zeros((), jnp.int32), optimizer.init(params)
    return TrainState(step, params, stats, opt_state, target, memory, effects)
