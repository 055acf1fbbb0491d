"""Batch normalization: groups, replicas, tangents, running averages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from invariance_jax.models import BatchNorm, group_moments

AXIS = "replicas"
BATCH = 8


def oracle_moments(x, group_size):
    """Mean and biased variance, [groups, C], by loops over groups and channels."""
    size = group_size or len(x)
    mean = np.zeros((len(x) // size, x.shape[-1]))
    variance = np.zeros_like(mean)
    for g in range(len(mean)):
        for c in range(x.shape[-1]):
            values = np.ravel(x[g * size : (g + 1) * size, ..., c]).astype(np.float64)
            mean[g, c] = sum(values) / len(values)
            variance[g, c] = sum((values - mean[g, c]) ** 2) / len(values)
    return mean, variance


def oracle_batch_norm(x, scale, bias, *, group_size, epsilon=1e-5):
    """Each example by the moments of its group, in float64."""
    size = group_size or len(x)
    mean, variance = oracle_moments(x, group_size)
    y = np.zeros(x.shape)
    for i in range(len(x)):
        for c in range(x.shape[-1]):
            shift, var = mean[i // size, c], variance[i // size, c]
            y[i, ..., c] = (x[i, ..., c] - shift) / np.sqrt(var + epsilon)
            y[i, ..., c] = y[i, ..., c] * scale[c] + bias[c]
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


def largest(x):
    return float(np.max(np.abs(x)))


@pytest.mark.parametrize(
    "shape, group_size",
    [((BATCH, 3, 2, 4), size) for size in (0, 1, 2, BATCH)] + [((BATCH, 4), 2)],
)
def test_training_mode_equals_the_oracle(shape, group_size, x64):
    variables, x = make_inputs(shape, np.float64)
    y, _ = train(BatchNorm(group_size=group_size), variables, x)
    expected = oracle_batch_norm(x, **variables["params"], group_size=group_size)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6 * largest(expected))


def test_float32_training_mode_equals_the_oracle():
    variables, x = make_inputs()
    y, _ = train(BatchNorm(), variables, x)
    expected = oracle_batch_norm(x, **variables["params"], group_size=0)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * largest(expected))


@pytest.mark.parametrize("group_size", [0, 2])
def test_group_moments_equal_the_oracle(group_size):
    _, x = make_inputs()
    moments = group_moments(x, group_size=group_size)
    mean, variance = oracle_moments(x, group_size)
    np.testing.assert_allclose(moments.mean, mean, atol=1e-5)
    np.testing.assert_allclose(moments.variance, variance, rtol=1e-5)


def test_variance_survives_a_mean_far_from_zero():
    # mean of squares minus squared mean is off by about .06 here
    _, x = make_inputs()
    x = 1000 + 0.05 * x
    _, variance = oracle_moments(np.asarray(x), 0)
    found = group_moments(x, group_size=0).variance[0]
    np.testing.assert_allclose(found, variance[0], rtol=1e-4)


@pytest.mark.parametrize("group_size", [0, 2])
def test_running_averages_move_to_the_mean_of_the_biased_group_moments(group_size):
    variables, x = make_inputs()
    module = BatchNorm(group_size=group_size, momentum=0.8)
    _, updated = train(module, variables, x)
    for name, new in zip(("mean", "var"), oracle_moments(x, group_size), strict=True):
        expected = 0.8 * variables["batch_stats"][name] + 0.2 * new.mean(axis=0)
        np.testing.assert_allclose(
            updated["batch_stats"][name], expected, rtol=1e-5, atol=1e-6
        )


def test_running_averages_stay_where_batch_stats_is_not_mutable():
    variables, x = make_inputs()
    y = BatchNorm().apply(variables, x, train=True)
    np.testing.assert_array_equal(y, train(BatchNorm(), variables, x)[0])


def test_evaluation_mode_uses_the_running_averages_and_leaves_them():
    variables, x = make_inputs()
    module = BatchNorm(group_size=3)  # does not fit, and does not matter here
    y, updated = module.apply(variables, x, train=False, mutable=["batch_stats"])
    mean, var = variables["batch_stats"]["mean"], variables["batch_stats"]["var"]
    expected = (np.asarray(x) - np.asarray(mean)) / np.sqrt(var + 1e-5)
    expected = expected * np.asarray(variables["params"]["scale"])
    expected = expected + np.asarray(variables["params"]["bias"])
    np.testing.assert_allclose(y, expected, atol=1e-5 * largest(expected))
    for name in ("mean", "var"):
        np.testing.assert_array_equal(
            updated["batch_stats"][name], variables["batch_stats"][name]
        )


def test_no_parameters_without_scale_and_bias():
    _, x = make_inputs()
    module = BatchNorm(use_scale=False, use_bias=False)
    variables = module.init(jax.random.key(0), x, train=False)
    assert "params" not in variables
    y, _ = train(module, variables, x)
    expected = oracle_batch_norm(x, np.ones(4), np.zeros(4), group_size=0)
    np.testing.assert_allclose(y, expected, atol=1e-5 * largest(expected))


@pytest.mark.parametrize("training", [True, False])
def test_initialization_needs_neither_the_group_nor_the_replicas(training):
    module = BatchNorm(group_size=64, axis_name=AXIS)
    variables = module.init(jax.random.key(0), jnp.ones((1, 2, 2, 5)), train=training)
    np.testing.assert_array_equal(variables["params"]["scale"], np.ones(5))
    np.testing.assert_array_equal(variables["params"]["bias"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(5))


def test_order_of_examples_does_not_matter_within_a_group():
    variables, x = make_inputs()
    order = np.array([2, 0, 3, 1, 5, 4, 7, 6])
    module = BatchNorm(group_size=4)
    y, _ = train(module, variables, x)
    permuted, _ = train(module, variables, x[order])
    np.testing.assert_allclose(permuted, y[order], atol=1e-5)


def test_scaled_and_shifted_input_gives_the_same_output(x64):
    variables, x = make_inputs(dtype=np.float64)
    module = BatchNorm(epsilon=0.0, group_size=2)
    y, _ = train(module, variables, x)
    moved, _ = train(module, variables, 3 * x - 7)
    np.testing.assert_allclose(moved, y, atol=1e-10)


def test_eager_jit_and_vmap_agree():
    variables, x = make_inputs()
    call = partial(train, BatchNorm(group_size=4))
    eager = call(variables, x)
    jitted = jax.jit(call)(variables, x)
    other = make_inputs(seed=1)[1]
    mapped = jax.vmap(call, in_axes=(None, 0))(variables, jnp.stack([other, x]))
    for found in (jitted, jax.tree.map(lambda leaf: leaf[1], mapped)):
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), found, eager)


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

    check_grads(call, (variables["params"], x), order=2, modes=("fwd", "rev"))


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


@pytest.mark.parametrize("group_size", [0, 2])
def test_example_tangent_equals_the_derivative_with_frozen_statistics(group_size, x64):
    variables, x = make_inputs((4, 3), np.float64)
    direction = make_inputs((4, 3), np.float64, seed=1)[1]
    module = BatchNorm(tangent="example", group_size=group_size)
    _, found, _ = primal_and_tangent(module, variables, x, direction)
    mean, variance = oracle_moments(np.asarray(x), group_size)
    for i in range(4):
        group = i // (group_size or 4)
        frozen = {"mean": jnp.array(mean[group]), "var": jnp.array(variance[group])}
        own = {**variables, "batch_stats": frozen}

        def represent(x, own=own):
            return jnp.tanh(BatchNorm().apply(own, x, train=False))

        _, expected = jax.jvp(represent, (x[i : i + 1],), (direction[i : i + 1],))
        np.testing.assert_allclose(found[i], expected[0], atol=1e-10)


def test_coupled_tangent_has_cross_terms_that_the_example_tangent_lacks():
    variables, x = make_inputs((4, 3))
    direction = jnp.zeros_like(x).at[0].set(1.0)
    _, coupled, _ = primal_and_tangent(BatchNorm(), variables, x, direction)
    module = BatchNorm(tangent="example")
    _, example, _ = primal_and_tangent(module, variables, x, direction)
    assert np.min(np.abs(coupled[1:])) > 1e-3
    np.testing.assert_array_equal(example[1:], np.zeros((3, 3)))


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
    np.testing.assert_allclose(gradient(kernel, "example"), expected, atol=1e-10)


def test_example_tangent_itself_trains_through_the_statistics(x64):
    variables, x = make_inputs((4, 3), np.float64)
    direction = make_inputs((4, 3), np.float64, seed=1)[1]
    scale = variables["params"]["scale"][None]
    bias = variables["params"]["bias"][None]

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
        np.testing.assert_allclose(f(kernel)[0], value, rtol=1e-10)
        np.testing.assert_allclose(f(kernel)[1], gradient, atol=1e-8)


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
    outcomes = {
        size: jax.jit(partial(replica_step, size, None))(*arguments)
        for size in (0, 2, 4)
    }
    return arguments, outcomes


@pytest.mark.parametrize("group_size", [0, 2, 4])
@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("mapping", ["vmap", "pmap"])
def test_replicas_equal_one_on_the_joined_batch(mapping, replicas, group_size, joined):
    # with 4 replicas a group of 2 is one replica and a group of 4 spans two of the four
    (parameters, *arrays), outcomes = joined
    step = partial(replica_step, group_size, AXIS)
    in_axes = (None, 0, 0, 0)
    if mapping == "vmap":
        mapped = jax.jit(jax.vmap(step, in_axes, axis_name=AXIS))
    else:
        devices = jax.devices()[:replicas]
        mapped = jax.pmap(step, AXIS, in_axes=in_axes, devices=devices)
    split = [a.reshape(replicas, -1, *a.shape[1:]) for a in arrays]
    found = jax.device_get(mapped(parameters, *split))
    for tangent, expected in jax.device_get(outcomes[group_size]).items():
        h = found[tangent]["h"].reshape(expected["h"].shape)
        np.testing.assert_allclose(h, expected["h"], atol=1e-5)
        for a, b in zip(
            *map(jax.tree.leaves, (found[tangent]["same"], expected["same"])),
            strict=True,
        ):
            b = np.broadcast_to(b, a.shape)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest(b))


def test_bfloat16_output_with_float32_statistics():
    variables, x = make_inputs()
    y, updated = train(BatchNorm(dtype=jnp.bfloat16), variables, x)
    assert y.dtype == jnp.bfloat16
    expected, exact = train(BatchNorm(), variables, x)
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))
    jax.tree.map(np.testing.assert_array_equal, updated, exact)


def test_bfloat16_input_has_float32_statistics_and_keeps_its_dtype():
    variables, x = make_inputs()
    x = x.astype(jnp.bfloat16)
    y, updated = train(BatchNorm(), variables, x)
    assert y.dtype == jnp.bfloat16
    _, exact = train(BatchNorm(), variables, x.astype(jnp.float32))
    jax.tree.map(np.testing.assert_array_equal, updated, exact)
    assert updated["batch_stats"]["var"].dtype == jnp.float32


def test_float64_is_kept(x64):
    variables, x = make_inputs(dtype=np.float64)
    y, updated = train(BatchNorm(), variables, x)
    assert y.dtype == jnp.float64
    assert updated["batch_stats"]["mean"].dtype == jnp.float64


@pytest.mark.parametrize("group_size", [3, 5, 16, -1])
def test_group_size_that_does_not_fit_the_batch_is_refused(group_size):
    variables, x = make_inputs()
    with pytest.raises(ValueError, match=f"group_size is {group_size}, expected"):
        train(BatchNorm(group_size=group_size), variables, x)


@pytest.mark.parametrize("group_size", [3, 6, 16])
def test_group_size_that_does_not_fit_the_replicas_is_refused(group_size):
    variables, x = make_inputs((4, 2, 3))
    module = BatchNorm(group_size=group_size, axis_name=AXIS)
    call = jax.vmap(partial(train, module), (None, 0), axis_name=AXIS)
    with pytest.raises(ValueError, match="replica"):
        call(variables, x)


def test_unknown_tangent_is_refused():
    variables, x = make_inputs()
    with pytest.raises(ValueError, match="tangent is 'both'"):
        train(BatchNorm(tangent="both"), variables, x)


def test_input_without_channels_is_refused():
    variables, _ = make_inputs()
    with pytest.raises(ValueError, match="x has shape"):
        train(BatchNorm(), variables, jnp.ones(4))
    with pytest.raises(ValueError, match="x has shape"):
        group_moments(jnp.ones(4), group_size=0)


def test_integer_input_is_refused():
    variables, _ = make_inputs()
    with pytest.raises(ValueError, match="x has dtype int32"):
        train(BatchNorm(), variables, jnp.ones((2, 4), jnp.int32))
