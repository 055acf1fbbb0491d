"""LARS against its reference trajectory, and the learning rate schedules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from tiny import tiny_config

from invariance_jax.settings import resolve
from invariance_jax.training.optimizers import (
    lars,
    make_optimizer,
    make_schedule,
    paper_schedule,
)

NAMES = ("kernel", "bias", "scale")
SETTINGS = {"weight_decay": 1e-2, "momentum": 0.9, "trust_coefficient": 1e-3}


def trajectory(optimizer, params, gradients):
    """Yields the parameters after each gradient."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        yield params


def of_reference(reference, suffix):
    return {name: jnp.asarray(reference[f"lars_{name}_{suffix}"]) for name in NAMES}


def slices(tree, count):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_lars_follows_the_reference_trajectory(x64, reference, name):
    rates = jnp.asarray(reference["lars_learning_rates"])
    params = of_reference(reference, "init")
    gradients = slices(of_reference(reference, "grads"), len(rates))
    optimizer = lars(lambda step: rates[step], **SETTINGS)
    found = [p[name] for p in trajectory(optimizer, params, gradients)]
    expected = reference[f"lars_{name}_trajectory"]
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-9, atol=1e-12)


def test_paper_schedule_is_that_of_the_authors(reference):
    expected = reference["schedule_lr3_50epochs"]
    schedule = paper_schedule(3.0, epochs=50, steps_per_epoch=7)
    starts = 7 * np.arange(len(expected), dtype=np.int32)
    for offset in (0, 6):
        found = [float(schedule(jnp.int32(step + offset))) for step in starts]
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_warmup_cosine_rises_and_falls():
    changes = {"steps": 100, "optimizer.warmup_fraction": 0.2}
    schedule = make_schedule(resolve(tiny_config(changes)))
    peak = 0.03 * 16 / 256
    found = np.array([float(schedule(step)) for step in range(101)])
    np.testing.assert_allclose(found[:21], peak * np.arange(21) / 20, rtol=1e-5)
    angle = math.pi * np.arange(81) / 80
    expected = peak * (1 + np.cos(angle)) / 2
    np.testing.assert_allclose(found[20:], expected, rtol=1e-5, atol=1e-8)


def test_warmup_of_no_step_starts_at_the_peak():
    changes = {"steps": 5, "optimizer.warmup_fraction": 0.1}
    schedule = make_schedule(resolve(tiny_config(changes)))
    np.testing.assert_allclose(float(schedule(0)), 0.03 * 16 / 256, rtol=1e-6)


def test_the_paper_schedule_counts_epochs_of_whole_batches():
    changes = {"steps": None, "epochs": 20, "optimizer.schedule": "paper"}
    settings = resolve(tiny_config(changes))
    schedule = make_schedule(settings)
    assert settings.derived.steps_per_epoch == 12
    peak = settings.derived.peak_learning_rate
    np.testing.assert_allclose(schedule(11), peak / 10, rtol=1e-6)
    np.testing.assert_allclose(schedule(12), 2 * peak / 10, rtol=1e-6)
    np.testing.assert_allclose(
        schedule(239), peak * (1 + math.cos(math.pi * 0.95)) / 2, rtol=1e-4
    )


KINDS = {
    "dense.kernel": set(),
    "dense.bias": {"bias"},
    "bn1.scale": {"norm"},
    "bn1.bias": {"bias", "norm"},
}
"""What each parameter of the oracle may be excluded as."""


def lars_ratio(p, g, optimizer, rate):
    size, slope = (math.sqrt((array**2).sum()) for array in (p, g))
    if size == 0 or slope == 0:
        return 1
    ratio = 1e-3 * size / (slope + optimizer.weight_decay * size + 1e-8)
    if optimizer.clip_trust:  # to the learning rate, whose place it takes
        return min(ratio / rate, 1) if rate else 1
    return ratio


def oracle(settings, params, gradients):
    """Yields the parameters after each gradient, by name."""
    optimizer, schedule = settings.optimizer, make_schedule(settings)
    slopes, squares = (dict.fromkeys(params, 0.0) for _ in range(2))
    for step, gradient in enumerate(gradients):
        rate, decay = float(schedule(step)), optimizer.weight_decay
        if (end := optimizer.weight_decay_end) is not None:
            share = (1 + math.cos(math.pi * step / settings.derived.steps)) / 2
            decay = share * decay + (1 - share) * end
        norm = math.sqrt(sum((g**2).sum() for g in gradient.values()))
        clip = min(1, (optimizer.clip_norm or math.inf) / norm)
        for name, p in params.items():
            g, is_excluded = clip * gradient[name], KINDS[name] & {*optimizer.exclude}
            decayed = 0 if is_excluded else decay * p
            if optimizer.name == "adamw":
                slopes[name] = 0.9 * slopes[name] + 0.1 * g
                squares[name] = 0.999 * squares[name] + 0.001 * g**2
                size = np.sqrt(squares[name] / (1 - 0.999 ** (step + 1))) + 1e-8
                change = slopes[name] / (1 - 0.9 ** (step + 1)) / size + decayed
            else:
                is_lars = optimizer.name == "lars" and not is_excluded
                ratio = lars_ratio(p, g, optimizer, rate) if is_lars else 1
                slopes[name] *= optimizer.momentum
                slopes[name] += ratio * (g + decayed)
                change = slopes[name]
            own_rate = rate * (optimizer.excluded_rate if is_excluded else 1)
            params = params | {name: p - own_rate * change}
        yield params


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "lars"},
        {"name": "lars", "momentum": 0.5, "clip_trust": True},
        {"name": "lars", "exclude": ("bias",), "excluded_rate": 0.25},
        {"name": "lars", "exclude": ("bias", "norm"), "clip_norm": 1.0},
        {"name": "sgd", "momentum": 0.5, "exclude": ("norm",)},
        {"name": "adamw", "clip_norm": 1.0},
        {"name": "adamw", "exclude": ("bias",), "weight_decay_end": 0.5},
        {"name": "adamw", "exclude": ("norm",), "excluded_rate": 0.25},
    ],
    ids=str,
)
def test_an_optimizer_is_that_of_numpy(x64, optimizer):
    """With a parameter of 0 and a gradient of 0; the rate of the first step is 0."""
    keys = {"learning_rate": 0.03, "weight_decay": 0.1, "warmup_fraction": 0.2}
    changes = {f"optimizer.{key}": value for key, value in (keys | optimizer).items()}
    settings = resolve(tiny_config({"steps": 10} | changes))
    generator = np.random.default_rng(0)
    params, *gradients = (
        {name: generator.normal(size=(2, 3)) for name in KINDS} for _ in range(6)
    )
    params["dense.bias"] = np.zeros((2, 3))
    gradients[0]["dense.kernel"] = np.zeros((2, 3))
    params["bn1.scale"] *= 100  # a ratio above the learning rate
    nested = [unflatten_dict(tree, sep=".") for tree in (params, *gradients)]
    found = trajectory(make_optimizer(settings), nested[0], nested[1:])
    for ours, theirs in zip(found, oracle(settings, params, gradients), strict=True):
        for name, leaf in flatten_dict(ours, sep=".").items():
            expected = theirs[name] - params[name]
            np.testing.assert_allclose(leaf - params[name], expected, rtol=1e-5)
