"""Batch normalization: groups, replicas, tangents, running averages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from reference import assert_close
from replicas import AXIS, over_devices, over_vmap

from invariance_jax.models import BatchNorm, group_moments

BATCH = 8
STATS = ("mean", "var")


def oracle_moments(x, group_size):
    """Mean and biased variance, [groups, C], by loops over groups and channels."""
    size = group_size or len(x)
    mean = np.zeros((len(x) // size, x.shape[-1]))
    variance = np.zeros_like(mean)
    for g, c in np.ndindex(*mean.shape):
        values = np.ravel(x[g * size : (g + 1) * size, ..., c]).astype(np.float64)
        mean[g, c] = sum(values) / len(values)
        variance[g, c] = sum((values - mean[g, c]) ** 2) / len(values)
    return mean, variance


def oracle_batch_norm(x, scale, bias, *, group_size):
    """Each example by the moments of its group, in float64."""
    size = group_size or len(x)
    mean, variance = oracle_moments(x, group_size)
    y = np.zeros(x.shape)
    for i, c in np.ndindex(len(x), x.shape[-1]):
        y[i, ..., c] = (x[i, ..., c] - mean[i // size, c]) * scale[c]
        y[i, ..., c] = y[i, ..., c] / np.sqrt(variance[i // size, c] + 1e-5) + bias[c]
    return y


def make_inputs(shape=(BATCH, 3, 2, 4), dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(1.5, 2.0, shape).astype(dtype)
    scale, bias = generator.uniform(0.5, 2.0, (2, shape[-1])).astype(dtype)
    mean = generator.normal(size=shape[-1]).astype(dtype)
    var = generator.uniform(0.5, 2.0, shape[-1]).astype(dtype)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    return jax.tree.map(jnp.asarray, (variables, x))


def train(module, variables, x):
    """Output and new running averages of training mode."""
    return module.apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    "shape, group_size, dtype, tolerance",
    [
        ((BATCH, 3, 2, 4), 0, np.float64, 1e-6),
        ((BATCH, 3, 2, 4), 2, np.float64, 1e-6),
        ((BATCH, 4), 1, np.float64, 1e-6),
        ((BATCH, 3, 2, 4), BATCH, np.float32, 1e-5),
    ],
)
def test_training_mode_equals_the_oracle(shape, group_size, dtype, tolerance, x64):
    variables, x = make_inputs(shape, dtype)
    y, updated = train(BatchNorm(group_size=group_size), variables, x)
    assert y.dtype == updated["batch_stats"]["mean"].dtype == dtype
    expected = oracle_batch_norm(x, **variables["params"], group_size=group_size)
    assert_close(y, expected, tolerance)


@pytest.mark.parametrize("group_size", [0, 2])
def test_moments_and_running_averages_equal_the_oracle(group_size):
    variables, x = make_inputs()
    moments = group_moments(x, group_size=group_size)
    exact = oracle_moments(x, group_size)
    module = BatchNorm(group_size=group_size, momentum=0.8)
    updated = train(module, variables, x)[1]["batch_stats"]
    for name, found, expected in zip(STATS, moments, exact, strict=True):
        assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        average = 0.8 * variables["batch_stats"][name] + 0.2 * expected.mean(axis=0)
        assert_allclose(updated[name], average, rtol=1e-5, atol=1e-6)


def test_evaluation_mode_uses_the_running_averages_and_leaves_them():
    variables, x = make_inputs()
    module = BatchNorm(group_size=3)  # does not fit, and does not matter here
    y, updated = module.apply(variables, x, train=False, mutable=["batch_stats"])
    scale, bias, mean, var = (
        np.asarray(variables[kind][name], np.float64)
        for kind, names in (("params", ("scale", "bias")), ("batch_stats", STATS))
        for name in names
    )
    expected = (np.asarray(x) - mean) / np.sqrt(var + 1e-5) * scale + bias
    assert_close(y, expected, 1e-5)
    jax.tree.map(assert_array_equal, updated, {"batch_stats": variables["batch_stats"]})
    fixed = BatchNorm().apply(variables, x, train=True)  # nor without being mutable
    assert_array_equal(fixed, train(BatchNorm(), variables, x)[0])


def test_initialization_needs_neither_the_group_nor_the_replicas():
    module = BatchNorm(group_size=64, axis_name=AXIS)
    for training in (True, False):
        x = jnp.ones((1, 2, 2, 5))
        variables = module.init(jax.random.key(0), x, train=training)
        ones, zeros = np.ones(5), np.zeros(5)
        expected = {
            "params": {"scale": ones, "bias": zeros},
            "batch_stats": {"mean": zeros, "var": ones},
        }
        jax.tree.map(assert_array_equal, dict(variables), expected)


def test_neither_order_within_a_group_nor_scale_and_shift_matter(x64):
    variables, x = make_inputs(dtype=np.float64)
    order = np.array([2, 0, 3, 1, 5, 4, 7, 6])
    module = BatchNorm(epsilon=0.0, group_size=4)
    y, _ = train(module, variables, x)
    assert_allclose(train(module, variables, x[order])[0], y[order], atol=1e-10)
    assert_allclose(train(module, variables, 3 * x - 7)[0], y, atol=1e-10)


def primal_and_tangent(module, variables, x, direction):
    """h and its derivative along a direction of x, the running averages as well."""

    def represent(x):
        y, updated = train(module, variables, x)
        return jnp.tanh(y), updated["batch_stats"]

    return jax.jvp(represent, (x,), (direction,), has_aux=True)


def test_derivatives_of_order_two_in_both_modes(x64):
    variables, x = make_inputs((4, 2, 2), np.float64)
    module = BatchNorm(group_size=2)

    def call(params, x):
        return train(module, {**variables, "params": params}, x)[0]

    check_grads(call, (variables["params"], x), order=2)


@pytest.mark.parametrize("tangent", ["coupled", "example"])
def test_constant_channel_has_finite_derivatives_reverse_over_forward(tangent):
    variables, x = make_inputs((4, 3))
    x = x.at[:, 1].set(2.0)
    module = BatchNorm(tangent=tangent)

    def penalty(variables, x):
        h, dh, _ = primal_and_tangent(module, variables, x, jnp.ones_like(x))
        return jnp.sum(h**2) + jnp.sum(dh**2)

    outcome = jax.jit(jax.value_and_grad(penalty, argnums=(0, 1)))(variables, x)
    for leaf in jax.tree.leaves(outcome):
        assert np.all(np.isfinite(leaf))


def test_example_tangent_equals_the_derivative_with_frozen_statistics(x64):
    variables, x = make_inputs((4, 3), np.float64)
    direction = make_inputs((4, 3), np.float64, seed=1)[1]
    module = BatchNorm(tangent="example", group_size=2)
    _, found, _ = primal_and_tangent(module, variables, x, direction)
    mean, variance = oracle_moments(np.asarray(x), 2)
    for i in range(4):
        frozen = {"mean": jnp.array(mean[i // 2]), "var": jnp.array(variance[i // 2])}
        own = {**variables, "batch_stats": frozen}

        def represent(x, own=own):
            return jnp.tanh(BatchNorm().apply(own, x, train=False))

        _, expected = jax.jvp(represent, (x[i : i + 1],), (direction[i : i + 1],))
        assert_allclose(found[i], expected[0], atol=1e-10)


def test_example_tangent_trains_the_primal_through_the_statistics(x64):
    variables, x = make_inputs((4, 3), np.float64)
    direction, weight = make_inputs((2, 4, 3), np.float64, seed=1)[1]

    def loss(kernel, tangent):
        module = BatchNorm(tangent=tangent)
        h, _, stats = primal_and_tangent(module, variables, x @ kernel, direction)
        return jnp.sum(weight * h) + jnp.sum(stats["var"])

    kernel = jnp.array(np.random.default_rng(2).normal(size=(3, 3)))
    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    expected = gradient(kernel, "coupled")
    assert_allclose(gradient(kernel, "example"), expected, atol=1e-10)


def test_example_tangent_itself_trains_through_the_statistics(x64):
    variables, x = make_inputs((4, 3), np.float64)
    direction = make_inputs((4, 3), np.float64, seed=1)[1]
    scale, bias = (variables["params"][name][None] for name in ("scale", "bias"))

    def found(kernel):
        module = BatchNorm(tangent="example")
        _, dh, _ = primal_and_tangent(module, variables, x @ kernel, direction)
        return jnp.sum(dh**2)

    def expected(kernel):
        a = x @ kernel
        factor = scale / jnp.sqrt(jnp.var(a, axis=0, keepdims=True) + 1e-5)
        y = (a - jnp.mean(a, axis=0, keepdims=True)) * factor + bias
        return jnp.sum(((1 - jnp.tanh(y) ** 2) * factor * direction) ** 2)

    kernel = jnp.array(np.random.default_rng(2).normal(size=(3, 3)))
    value, gradient = jax.jit(jax.value_and_grad(expected))(kernel)
    for f in (jax.value_and_grad(found), jax.jit(jax.value_and_grad(found))):
        assert_allclose(f(kernel)[0], value, rtol=1e-10)
        assert_allclose(f(kernel)[1], gradient, atol=1e-8)


def replica_step(group_size, axis_name, parameters, x, direction, weight):
    """One replica of a step with penalty, for both tangents.

    Returns h and the running averages of this replica and the gradient of the mean
    loss over all of them.
    """

    def loss(parameters, tangent):
        kernel, variables = parameters
        module = BatchNorm(group_size=group_size, tangent=tangent, axis_name=axis_name)
        h, dh, stats = primal_and_tangent(module, variables, x @ kernel, direction)
        values = jnp.sum(weight * h, axis=(1, 2)) + jnp.sum(dh**2, axis=(1, 2))
        return jnp.mean(values), (h, stats)

    outcome = {}
    for tangent in ("coupled", "example"):
        gradient, (h, stats) = jax.grad(loss, has_aux=True)(parameters, tangent)
        if axis_name is not None:
            gradient = jax.lax.pmean(gradient, axis_name)
        outcome[tangent] = {"h": h, "same": (stats, gradient)}
    return outcome


@pytest.fixture(scope="module")
def joined():
    """The arguments of a step and its outcome on one replica for each group size."""
    generator = np.random.default_rng(0)
    variables, x = make_inputs((BATCH, 4, 3))
    kernel, *arrays = (
        jnp.array(generator.normal(size=shape), jnp.float32)
        for shape in ((3, 3), x.shape, x.shape)
    )
    arguments = ((kernel, variables), x, *arrays)
    return arguments, {
        size: jax.jit(partial(replica_step, size, None))(*arguments)
        for size in (0, 2, 4)
    }


@pytest.mark.parametrize(
    "mapping, replicas, group_size",
    # with 4 replicas a group of 2 is one replica and a group of 4 spans two of the four
    [
        *((over_devices, 4, 4), (over_devices, 2, 2)),
        *((over_vmap, 4, 0), (over_vmap, 4, 2), (over_vmap, 1, 4)),
    ],
)
def test_replicas_equal_one_on_the_joined_batch(mapping, replicas, group_size, joined):
    (parameters, *arrays), outcomes = joined
    step = partial(replica_step, group_size, AXIS)
    split = [a.reshape(replicas, -1, *a.shape[1:]) for a in arrays]
    mapped = mapping(step, replicas, (None, 0, 0, 0))
    found = jax.device_get(mapped(parameters, *split))

    def check(a, b):
        assert_close(a, np.broadcast_to(b, a.shape), 1e-5)

    for tangent, expected in jax.device_get(outcomes[group_size]).items():
        h = found[tangent]["h"].reshape(expected["h"].shape)
        assert_allclose(h, expected["h"], atol=1e-5)
        jax.tree.map(check, found[tangent]["same"], expected["same"])


@pytest.mark.parametrize("given", ["output", "input"])
def test_bfloat16_has_float32_statistics(given):
    variables, x = make_inputs()
    x = x if given == "output" else x.astype(jnp.bfloat16)
    dtype = jnp.bfloat16 if given == "output" else None
    y, updated = train(BatchNorm(dtype=dtype), variables, x)
    assert y.dtype == jnp.bfloat16
    expected, exact = train(BatchNorm(), variables, x.astype(jnp.float32))
    expected = expected.astype(jnp.bfloat16).astype(jnp.float32)
    rtol = 0 if given == "output" else 2**-7  # a rounding of bfloat16
    assert_allclose(y.astype(jnp.float32), expected, rtol=rtol, atol=rtol / 1000)
    jax.tree.map(partial(assert_allclose, rtol=1e-6), updated, exact)
    assert updated["batch_stats"]["var"].dtype == jnp.float32


@pytest.mark.parametrize(
    "settings, x, message",
    [
        ({"group_size": 3}, jnp.ones((8, 4)), "group_size is 3, expected"),
        ({"group_size": 16}, jnp.ones((8, 4)), "group_size is 16, expected"),
        ({"group_size": -1}, jnp.ones((8, 4)), "group_size must be .* found -1"),
        ({"group_size": 2.0}, jnp.ones((8, 4)), "group_size must be .* found 2.0"),
        ({"tangent": "both"}, jnp.ones((8, 4)), "tangent .* found 'both'"),
        ({}, jnp.ones(4), "x has shape"),
        ({}, jnp.ones((2, 4), jnp.int32), "x has dtype int32"),
    ],
)
def test_bad_settings_and_input_are_refused(settings, x, message):
    with pytest.raises(ValueError, match=message):
        train(BatchNorm(**settings), make_inputs()[0], x)
    if x.ndim == 1:
        with pytest.raises(ValueError, match=message):
            group_moments(x, group_size=0)


def test_group_size_that_does_not_fit_the_replicas_is_refused():
    variables, x = make_inputs((4, 2, 3))
    for group_size in (3, 6, 16):
        module = BatchNorm(group_size=group_size, axis_name=AXIS)
        call = jax.vmap(partial(train, module), (None, 0), axis_name=AXIS)
        with pytest.raises(ValueError, match="replica"):
            call(variables, x)


@pytest.mark.parametrize(
    ("first", "rtol", "atol"),
    [(1e4, 2e-4, 2e-3), (1e4 + 30.0, 1e-3, 5e-3)],  # or an outlier first
)
def test_one_pass_cancels_little(first, rtol, atol):
    x = np.random.default_rng(0).normal(1e4, 1.0, (16, 8, 8, 3))
    x[0, 0, 0] = first
    x = x.astype(np.float32)
    mean, variance = group_moments(jnp.asarray(x), group_size=0)
    exact = x.astype(np.float64)
    assert_allclose(mean[0], exact.mean(axis=(0, 1, 2)), rtol=1e-7)
    assert_allclose(variance[0], exact.var(axis=(0, 1, 2)), rtol=rtol)
    plain = BatchNorm(use_scale=False, use_bias=False)
    y, _ = train(plain, {}, jnp.asarray(x))
    deviations = exact - exact.mean(axis=(0, 1, 2))
    expected = deviations / np.sqrt(exact.var(axis=(0, 1, 2)) + 1e-5)
    assert_allclose(y, expected, atol=atol)  # of 1e4 with float32
    constant, _ = train(plain, {}, jnp.full((4, 2, 2, 1), 10.1))
    assert_allclose(constant, 0)


@pytest.mark.parametrize("mean", [1.0, 100.0, 10_000.0])
def test_one_pass_of_bfloat16_is_better_than_its_rounding(mean):
    exact = np.random.default_rng(0).normal(mean, 1.0, (16, 8, 8, 3))
    x = jnp.asarray(exact, jnp.bfloat16)
    held = np.asarray(x.astype(jnp.float32), np.float64)
    moments = group_moments(x, group_size=0)
    lost = np.square(held - exact).mean()  # the variance of the rounding
    assert_allclose(moments.mean[0], held.mean(axis=(0, 1, 2)), rtol=1e-6)
    assert_allclose(moments.variance[0], held.var(axis=(0, 1, 2)), 1e-6, lost / 5)
    plain = BatchNorm(use_scale=False, use_bias=False)
    constant, _ = train(plain, {}, jnp.full((4, 2, 2, 1), mean + 0.1, jnp.bfloat16))
    assert_allclose(constant.astype(jnp.float32), 0, atol=1e-3)
