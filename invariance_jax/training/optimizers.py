"""LARS as in the paper's runs, SGD, AdamW, and the learning-rate schedules.

LARS: You, Gitman, Ginsburg (2017), on every parameter that is not excluded, in the
variant of the authors' code. For parameter p, gradient g, trust coefficient c and
weight decay w: `r = c |p| / (|g| + w |p| + 1e-8)`, 1 where |p| or |g| is 0; `m <- mu m
+ r (g + w p)`; `p <- p - learning_rate m`. It differs from `optax.lars` in the norm of
the denominator and in the order of momentum and learning rate. With clip (LARC) the
learning rate is an upper limit of the rate r: `r <- min(r / learning_rate, 1)`.
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
_ROW = 1024  # entries of a row: rows are summed first, then the sums of an array
_WARMUP_EPOCHS = 10  # of `paper_schedule`

Mask = Callable[[PyTree], PyTree]
"""Parameters -> a boolean for each parameter array."""


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

    Parameters whose mask is False have r = 1 and w = 0.
    """

    def init(params: PyTree) -> PyTree:
        state = optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
        return state if clip else optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree) -> tuple[PyTree, PyTree]:
        if not jax.tree.leaves(updates):  # the mask excludes all
            return updates, state
        norms, gradient_norms = _norms(params), _norms(updates)
        ratios = trust_coefficient * norms
        ratios = ratios / (gradient_norms + weight_decay * norms + _LARS_EPSILON)
        if clip:
            is_schedule = callable(learning_rate)
            rate = learning_rate(state.count) if is_schedule else learning_rate
            relative = ratios / jnp.where(rate > 0, rate, 1)
            ratios = jnp.where(ratios < rate, relative, 1)
            state = optax.ScaleByScheduleState(state.count + 1)
        ratios = jnp.where((norms > 0) & (gradient_norms > 0), ratios, 1)
        ratios = jax.tree.unflatten(jax.tree.structure(params), jnp.unstack(ratios))

        def scale(gradient: Array, parameter: Array, ratio: Array) -> Array:
            return ratio * (gradient + weight_decay * parameter)

        return jax.tree.map(scale, updates, params, ratios), state

    adapt = optax.GradientTransformation(init, update)
    return optax.chain(
        adapt if mask is None else optax.masked(adapt, mask),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def _norms(tree: PyTree) -> Array:
    """Returns the norm of each array, from few large sums: few kernels to launch."""
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
    """Returns the authors' schedule: warm-up and cosine, both constant in an epoch."""

    def schedule(step: Array) -> Array:
        epoch = jnp.floor_divide(step, steps_per_epoch)
        cosine = (1 + jnp.cos(math.pi * epoch / epochs)) / 2
        return peak * jnp.minimum(cosine, (1 + epoch) / _WARMUP_EPOCHS)

    return schedule


def make_schedule(settings: Settings) -> optax.Schedule:
    """Returns the learning-rate schedule that the settings name."""
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
    """Returns the optimizer that the settings name; constant_rate: that of `Method`."""
    scheduled = _with_rate(settings, make_schedule(settings))
    if constant_rate is not None:
        constant = _with_rate(settings, settings.derived.peak_learning_rate)

        def label(path: PyTree, _: PyTree) -> str:
            is_constant = _names(path)[:2] == ("heads", constant_rate)
            return "constant" if is_constant else "scheduled"

        both = {"scheduled": scheduled, "constant": constant}
        labels = functools.partial(jax.tree_util.tree_map_with_path, label)
        scheduled = optax.multi_transform(both, labels)
    optimizer = settings.optimizer
    if optimizer.excluded_rate != 1:
        mask = _not_excluded(optimizer.exclude)
        excluded = optax.masked(
            optax.scale(optimizer.excluded_rate),
            lambda params: jax.tree.map(operator.not_, mask(params)),
        )
        scheduled = optax.chain(scheduled, excluded)
    if optimizer.clip_norm is None:
        return scheduled
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), scheduled)


def _with_rate(
    settings: Settings, rate: optax.ScalarOrSchedule
) -> optax.GradientTransformation:
    optimizer = settings.optimizer
    mask = _not_excluded(optimizer.exclude) if optimizer.exclude else None
    if optimizer.name == "lars":
        return lars(
            rate,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            trust_coefficient=optimizer.trust_coefficient,
            clip=optimizer.clip_trust,
            mask=mask,
        )
    if optimizer.name == "sgd":
        decayed = optax.add_decayed_weights(optimizer.weight_decay, mask)
        return optax.chain(decayed, optax.sgd(rate, optimizer.momentum or None))
    decay: optax.ScalarOrSchedule = optimizer.weight_decay
    if (end := optimizer.weight_decay_end) is not None:
        cosine = optax.cosine_decay_schedule(1.0, settings.derived.steps)

        def decay(step: Array) -> Array:
            return end + (optimizer.weight_decay - end) * cosine(step)

    return optax.adamw(rate, weight_decay=decay, mask=mask)


def _not_excluded(exclude: tuple[str, ...]) -> Mask:
    """Returns the mask that is False for excluded parameters: "bias" or "norm"."""

    def mask(params: PyTree) -> PyTree:
        paths = jax.tree_util.tree_leaves_with_path(params)
        names = {_names(path) for path, _ in paths}

        def is_included(path: PyTree, _: PyTree) -> bool:
            *module, name = _names(path)
            is_norm = (*module, "scale") in names  # scale and bias of a normalization
            kinds = {"norm": is_norm, "bias": name == "bias"}
            return not any(kinds[key] for key in exclude)

        return jax.tree_util.tree_map_with_path(is_included, params)

    return mask


def _names(path: PyTree) -> tuple[str, ...]:
    return tuple(key.key for key in path)
