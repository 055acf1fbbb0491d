"""LARS against its reference trajectory, and the learning rate schedules."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
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


def constant_rate(steps=5, **optimizer):
    """Settings without a warm-up, with some keys of the optimizer."""
    changes = {f"optimizer.{key}": value for key, value in optimizer.items()}
    changes |= {"steps": steps, "optimizer.warmup_fraction": 0.0}
    return resolve(tiny_config(changes))


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


def lars_oracle(p, gradients, rate, most=math.inf):
    m = np.zeros_like(p)
    for g in gradients:
        size = math.sqrt(sum(v * v for v in p.ravel()))
        slope = math.sqrt(sum(v * v for v in g.ravel()))
        r = 1.0
        if size > 0 and slope > 0:
            r = min(1e-3 * size / (slope + 1e-2 * size + 1e-8), most)
        m = 0.9 * m + r * (g + 1e-2 * p)
        p = p - rate * m
    return p


@pytest.mark.parametrize("zero", ["parameter", "gradient"])
def test_lars_takes_the_ratio_1_where_a_norm_is_0(x64, zero):
    generator = np.random.default_rng(0)
    p, gradients = generator.normal(size=4), generator.normal(size=(3, 4))
    if zero == "parameter":
        p = np.zeros(4)
    else:
        gradients[0] = 0
    *_, found = trajectory(lars(0.1, **SETTINGS), jnp.asarray(p), gradients)
    np.testing.assert_allclose(found, lars_oracle(p, gradients, 0.1), rtol=1e-12)


@pytest.mark.parametrize("rate", [1e-4, 1.0])
def test_a_clipped_rate_is_at_most_the_learning_rate_and_takes_its_place(x64, rate):
    generator = np.random.default_rng(0)
    p, gradients = generator.normal(size=4), generator.normal(size=(3, 4))
    optimizer = lars(lambda step: rate, clip=True, **SETTINGS)
    *_, found = trajectory(optimizer, jnp.asarray(p), gradients)
    expected = lars_oracle(p, gradients, 1.0, most=rate)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.allclose(expected, lars_oracle(p, gradients, 1.0)) == (rate == 1)


def test_a_clipped_rate_is_1_where_the_learning_rate_is_0(x64):
    p = jnp.ones(2)
    optimizer = lars(lambda step: jnp.asarray([0.0, 1.0])[step], clip=True, **SETTINGS)
    first, second = trajectory(optimizer, p, [p, 0 * p])
    np.testing.assert_array_equal(first, p)
    np.testing.assert_allclose(second, 1 - 0.9 * 1.01 - 0.01, rtol=1e-12)


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


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_the_optimizer_is_the_one_that_is_named(name):
    settings = constant_rate(name=name, weight_decay=0.1)
    schedule = make_schedule(settings)
    expected = {
        "lars": lars(schedule, **{**SETTINGS, "weight_decay": 0.1}),
        "adamw": optax.adamw(schedule, weight_decay=0.1),
    }[name]
    p = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3)}
    gradients = 3 * [jax.tree.map(jnp.cos, p)]
    for found, wanted in zip(
        trajectory(make_optimizer(settings), p, gradients),
        trajectory(expected, p, gradients),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("exclude", "left_out"),
    [
        (("bias",), {"encoder.bias", "bn1.bias"}),
        (("norm",), {"bn1.scale", "bn1.bias"}),
        (("bias", "norm"), {"encoder.bias", "bn1.scale", "bn1.bias"}),
    ],
)
@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_what_is_excluded_has_no_decay_and_no_rate_of_its_own(name, exclude, left_out):
    p = {
        "encoder": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "bn1": {"scale": jnp.ones(3), "bias": jnp.ones(3)},
    }
    rate = make_schedule(constant_rate(name=name))(0)

    def after_a_step(**changes):
        optimizer = make_optimizer(constant_rate(name=name, **changes))
        (stepped,) = trajectory(optimizer, p, [p])
        return {
            f"{module}.{name}": leaf
            for module, leaves in stepped.items()
            for name, leaf in leaves.items()
        }

    everywhere, nowhere = (after_a_step(weight_decay=w) for w in (0.1, 0.0))
    for leaf, value in after_a_step(weight_decay=0.1, exclude=exclude).items():
        wanted = everywhere[leaf]
        if leaf in left_out:  # of LARS the gradient alone
            wanted = nowhere[leaf] if name == "adamw" else 1 - rate
            assert not np.allclose(value, everywhere[leaf], rtol=1e-5)
        np.testing.assert_allclose(value, wanted, rtol=1e-6)


def test_excluded_parameters_have_a_learning_rate_of_their_own():
    p = {"dense": {"kernel": jnp.full(3, 2.0), "bias": jnp.ones(3)}}
    steps = {}
    for rate in (1.0, 0.25):
        settings = constant_rate(name="lars", exclude=("bias",), excluded_rate=rate)
        optimizer = make_optimizer(settings)
        *_, last = trajectory(optimizer, p, [p, p])
        steps[rate] = jax.tree.map(jnp.subtract, p, last)["dense"]
    np.testing.assert_array_equal(steps[1.0]["kernel"], steps[0.25]["kernel"])
    np.testing.assert_allclose(steps[0.25]["bias"], steps[1.0]["bias"] / 4, rtol=1e-4)


def test_a_gradient_is_clipped_as_a_whole():
    settings = constant_rate(name="lars", exclude=("bias",), clip_norm=1.0)
    p = {"one": {"bias": jnp.zeros(1)}, "two": {"bias": jnp.zeros(1)}}
    gradient = {"one": {"bias": jnp.full(1, 3.0)}, "two": {"bias": jnp.full(1, 4.0)}}
    *_, found = trajectory(make_optimizer(settings), p, [gradient])
    rate = make_schedule(settings)(0)
    np.testing.assert_allclose(found["one"]["bias"], -0.6 * rate, rtol=1e-6)
    np.testing.assert_allclose(found["two"]["bias"], -0.8 * rate, rtol=1e-6)


def test_the_weight_decay_of_adamw_follows_half_a_cosine():
    settings = constant_rate(steps=10, weight_decay=0.1, weight_decay_end=0.5)
    zeros = [{"w": jnp.zeros(1)}] * 10
    found = trajectory(make_optimizer(settings), {"w": jnp.ones(1)}, zeros)
    values = np.array([1.0, *(params["w"][0] for params in found)])
    shrunk = 1 - values[1:] / values[:-1]
    steps = np.arange(10)
    rates = np.array([make_schedule(settings)(step) for step in steps])
    decay = 0.5 - 0.4 * (1 + np.cos(np.pi * steps / 10)) / 2
    np.testing.assert_allclose(shrunk, rates * decay, rtol=1e-3, atol=1e-6)


def test_sgd_has_momentum_and_weight_decay():
    settings = constant_rate(name="sgd", weight_decay=0.1, momentum=0.5)
    gradients = [{"w": jnp.full(1, slope)} for slope in (1.0, -2.0, 0.5)]
    found = trajectory(make_optimizer(settings), {"w": jnp.ones(1)}, gradients)
    w, m = 1.0, 0.0
    for step, (gradient, params) in enumerate(zip(gradients, found, strict=True)):
        m = 0.5 * m + gradient["w"][0] + 0.1 * w
        w -= make_schedule(settings)(step) * m
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)
