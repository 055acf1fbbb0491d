"""LARS as the paper's runs used it, adamw, and the learning rate schedules.

LARS: You, Gitman, Ginsburg (2017), on every parameter, in the variant of the authors'
code: `r = c |p| / (|g| + w |p| + 1e-8)` with trust coefficient c and weight decay w, 1
where |p| or |g| is 0; `m <- mu m + r (g + w p)`; `p <- p - learning_rate m`. It differs
from `optax.lars` in the norm of the denominator and in the order of momentum and
learning rate.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from invariance_jax.settings import Settings
from invariance_jax.types import Array

_LARS_EPSILON = 1e-8
_WARMUP_EPOCHS = 10


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    momentum: float,
    trust_coefficient: float,
) -> optax.GradientTransformation:
    """Returns LARS with layer-wise rates for every parameter array."""

    def scale(gradient: Array, parameter: Array) -> Array:
        size, slope = jnp.linalg.norm(parameter), jnp.linalg.norm(gradient)
        ratio = trust_coefficient * size
        ratio = ratio / (slope + weight_decay * size + _LARS_EPSILON)
        ratio = jnp.where((size > 0) & (slope > 0), ratio, 1)
        return ratio * (gradient + weight_decay * parameter)

    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        return jax.tree.map(scale, updates, params), state

    return optax.chain(
        optax.GradientTransformation(lambda params: optax.EmptyState(), update),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def paper_schedule(
    peak: float, *, epochs: float, steps_per_epoch: int
) -> optax.Schedule:
    """Returns the authors' schedule: constant within an epoch, cosine under a ramp.

    In epoch e: `min(peak (1 + cos(pi e / epochs)) / 2, peak (1 + e) / 10)`.
    """

    def schedule(step: Array) -> Array:
        epoch = jnp.floor_divide(step, steps_per_epoch)
        cosine = (1 + jnp.cos(math.pi * epoch / epochs)) / 2
        return peak * jnp.minimum(cosine, (1 + epoch) / _WARMUP_EPOCHS)

    return schedule


def make_schedule(settings: Settings) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    optimizer, derived = settings.optimizer, settings.derived
    peak, steps = derived.peak_learning_rate, derived.steps
    if optimizer.schedule == "paper":
        return paper_schedule(
            peak,
            epochs=steps / derived.steps_per_epoch,
            steps_per_epoch=derived.steps_per_epoch,
        )
    warmup = int(optimizer.warmup_fraction * steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Returns the optimizer that the settings name, with its schedule."""
    optimizer, schedule = settings.optimizer, make_schedule(settings)
    if optimizer.name == "lars":
        return lars(
            schedule,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            trust_coefficient=optimizer.trust_coefficient,
        )
    return optax.adamw(schedule, weight_decay=optimizer.weight_decay)
