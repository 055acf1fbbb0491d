"""LARS as the paper's runs used it, SGD, AdamW, and the learning rate schedules.

LARS: You, Gitman, Ginsburg (2017), on every parameter that is not excluded, in the
variant of the authors' code: `r = c |p| / (|g| + w |p| + 1e-8)` with trust coefficient
c and weight decay w, 1 where |p| or |g| is 0; `m <- mu m + r (g + w p)`; `p <- p -
learning_rate m`. It differs from `optax.lars` in the norm of the denominator and in the
order of momentum and learning rate. Clipped (LARC), r takes the place of the learning
rate, which is its limit: `r <- min(r / learning_rate, 1)`.
"""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from invariance_jax.settings import Settings
from invariance_jax.types import Array, PyTree

_LARS_EPSILON = 1e-8
_ROW = 1024
_WARMUP_EPOCHS = 10

Mask = Callable[[PyTree], PyTree]
"""Parameters -> a boolean for each array of them."""


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    momentum: float,
    trust_coefficient: float,
    clip: bool = False,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns LARS with weight decay w, momentum mu and trust coefficient c.

    A parameter that the mask leaves out has r = 1 and w = 0.
    """

    def init(params: PyTree) -> PyTree:
        start = optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
        return start if clip else optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        if not jax.tree.leaves(updates):  # all are masked
            return updates, state
        sizes, slopes = _norms(params), _norms(updates)
        ratios = trust_coefficient * sizes
        ratios = ratios / (slopes + weight_decay * sizes + _LARS_EPSILON)
        if clip:
            scheduled = callable(learning_rate)
            rate = learning_rate(state.count) if scheduled else learning_rate
            limited = ratios / jnp.where(rate > 0, rate, 1)
            ratios = jnp.where(ratios < rate, limited, 1)
            state = optax.ScaleByScheduleState(state.count + 1)
        ratios = jnp.where((sizes > 0) & (slopes > 0), ratios, 1)
        each = jax.tree.unflatten(jax.tree.structure(params), jnp.unstack(ratios))

        def scale(gradient: Array, parameter: Array, ratio: Array) -> Array:
            return ratio * (gradient + weight_decay * parameter)

        return jax.tree.map(scale, updates, params, each), state

    adapt = optax.GradientTransformation(init, update)
    return optax.chain(
        adapt if mask is None else optax.masked(adapt, mask),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _norms(tree: PyTree) -> Array:
    """Returns the norm of each array, of few large sums, which accelerators start."""
    leaves = jax.tree.leaves(tree)
    counts = [-(-leaf.size // _ROW) for leaf in leaves]
    rows = [
        jnp.pad(leaf.ravel(), (0, count * _ROW - leaf.size)).reshape(count, _ROW)
        for leaf, count in zip(leaves, counts, strict=True)
    ]
    owners = np.repeat(np.arange(len(leaves)), counts)
    sums = jnp.sum(jnp.square(jnp.concatenate(rows)), axis=1)
    return jnp.sqrt(jax.ops.segment_sum(sums, owners, len(leaves), True))


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


def make_optimizer(
    settings: Settings, *, constant_rate: str | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer that the settings name; its update needs the parameters.

    A part of the heads may have the peak learning rate in every step.
    """
    scheduled = _with_rate(settings, make_schedule(settings))
    if constant_rate is not None:
        constant = _with_rate(settings, settings.derived.peak_learning_rate)

        def label(path: PyTree, _: PyTree) -> str:
            inside = _names(path)[:2] == ("heads", constant_rate)
            return "constant" if inside else "scheduled"

        both = {"scheduled": scheduled, "constant": constant}
        labels = functools.partial(jax.tree_util.tree_map_with_path, label)
        scheduled = optax.multi_transform(both, labels)
    chosen = settings.optimizer
    if chosen.excluded_rate != 1:
        kept = _not_named(chosen.exclude)
        slower = optax.masked(
            optax.scale(chosen.excluded_rate),
            lambda params: jax.tree.map(operator.not_, kept(params)),
        )
        scheduled = optax.chain(scheduled, slower)
    if chosen.clip_norm is None:
        return scheduled
    return optax.chain(optax.clip_by_global_norm(chosen.clip_norm), scheduled)


def _with_rate(
    settings: Settings, rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    chosen = settings.optimizer
    mask = _not_named(chosen.exclude) if chosen.exclude else None
    if chosen.name == "lars":
        return lars(
            rate,
            weight_decay=chosen.weight_decay,
            momentum=chosen.momentum,
            trust_coefficient=chosen.trust_coefficient,
            clip=chosen.clip_trust,
            mask=mask,
        )
    if chosen.name == "sgd":
        decayed = optax.add_decayed_weights(chosen.weight_decay, mask)
        return optax.chain(decayed, optax.sgd(rate, chosen.momentum or None))
    decay: optax.ScalarOrSchedule = chosen.weight_decay
    if (end := chosen.weight_decay_end) is not None:
        share = optax.cosine_decay_schedule(1.0, settings.derived.steps)

        def decay(step: Array) -> Array:
            return end + (chosen.weight_decay - end) * share(step)

    return optax.adamw(rate, weight_decay=decay, mask=mask)


def _not_named(exclude: tuple[str, ...]) -> Mask:
    """Returns the mask of parameters but "bias", or "norm": scale and its bias."""

    def mask(params: PyTree) -> PyTree:
        paths = jax.tree_util.tree_leaves_with_path(params)
        names = {_names(path) for path, _ in paths}

        def is_kept(path: PyTree, _: PyTree) -> bool:
            *module, name = _names(path)
            is_norm = (*module, "scale") in names
            named = {"norm": is_norm, "bias": name == "bias"}
            return not any(named[key] for key in exclude)

        return jax.tree_util.tree_map_with_path(is_kept, params)

    return mask


def _names(path: PyTree) -> tuple[str, ...]:
    return tuple(key.key for key in path)
