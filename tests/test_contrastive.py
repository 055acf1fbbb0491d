"""NT-Xent: values, derivatives, replicas, memory."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from intermediates import largest_intermediate
from jax.test_util import check_grads
from reference import oracle_nt_xent

from invariance_jax.losses import nt_xent

AXIS = "replicas"


def make_projections(
    batch_size: int = 8, features: int = 5, dtype: type = np.float64, seed: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Two views that resemble each other."""
    generator = np.random.default_rng(seed)
    z1, noise = generator.normal(size=(2, batch_size, features))
    return jnp.asarray(z1, dtype), jnp.asarray(2 * z1 + noise, dtype)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_reference_values(
    temperature: float,
    dtype: type,
    tolerance: float,
    reference: dict[str, np.ndarray],
    x64: None,
) -> None:
    z1, z2 = (jnp.asarray(reference[f"ntxent_z{i}"], dtype) for i in (1, 2))

    def loss(z1: jax.Array, z2: jax.Array) -> jax.Array:
        return jnp.mean(nt_xent(z1, z2, temperature=temperature))

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(z1, z2)
    assert value.dtype == grads[0].dtype == dtype
    suffix = f"_T{temperature}"
    np.testing.assert_allclose(value, reference["ntxent_loss" + suffix], rtol=tolerance)
    for i in (1, 2):
        expected = reference[f"ntxent_grad_z{i}" + suffix]
        # derivatives of float32 have the wider tolerance
        atol = (tolerance if dtype == np.float64 else 1e-4) * np.abs(expected).max()
        np.testing.assert_allclose(grads[i - 1], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("temperature", [0.1, 2.0])
def test_each_example_equals_the_oracle(
    batch_size: int, temperature: float, x64: None
) -> None:
    z1, z2 = make_projections(batch_size)
    found = jax.jit(partial(nt_xent, temperature=temperature))(z1, z2)
    assert found.shape == (batch_size,)
    expected = oracle_nt_xent(z1, z2, temperature=temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_derivatives_of_first_and_second_order(x64: None) -> None:
    loss = jax.jit(partial(nt_xent, temperature=0.5))
    check_grads(loss, make_projections(4, 3), order=2, modes=["fwd", "rev"])


def test_derivative_in_a_traced_temperature(x64: None) -> None:
    z1, z2 = make_projections(4)

    def loss(temperature: jax.Array) -> jax.Array:
        return nt_xent(z1, z2, temperature=temperature)

    check_grads(jax.jit(loss), (jnp.asarray(0.5),), order=2, modes=["fwd", "rev"])


def test_eager_jit_and_vmap_agree() -> None:
    loss = partial(nt_xent, temperature=0.2)
    pairs = [make_projections(6, seed=seed, dtype=np.float32) for seed in range(3)]
    z1, z2 = map(jnp.stack, zip(*pairs, strict=True))
    each = jnp.stack([loss(*pair) for pair in pairs])
    jitted = jnp.stack([jax.jit(loss)(*pair) for pair in pairs])
    np.testing.assert_allclose(jitted, each, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(loss)(z1, z2), each, rtol=1e-5)


def test_permuted_examples_have_permuted_losses() -> None:
    z1, z2 = make_projections(dtype=np.float32)
    order = np.random.default_rng(1).permutation(len(z1))
    loss = jax.jit(partial(nt_xent, temperature=0.2))
    np.testing.assert_allclose(
        loss(z1[order], z2[order]), loss(z1, z2)[order], rtol=1e-5
    )


def test_views_may_be_swapped() -> None:
    z1, z2 = make_projections(dtype=np.float32)
    loss = jax.jit(partial(nt_xent, temperature=0.2))
    np.testing.assert_allclose(loss(z1, z2), loss(z2, z1), rtol=1e-5)


def test_lengths_of_projections_do_not_matter() -> None:
    z1, z2 = make_projections(dtype=np.float32)
    lengths = jnp.logspace(-3, 3, len(z1))[:, None]
    loss = jax.jit(partial(nt_xent, temperature=0.2))
    np.testing.assert_allclose(loss(lengths * z1, 7 * z2), loss(z1, z2), rtol=1e-5)


def test_equal_projections_give_the_logarithm_of_the_number_of_others() -> None:
    z = jnp.ones((6, 4))
    np.testing.assert_allclose(nt_xent(z, z, temperature=0.1), np.log(11), rtol=1e-5)


def test_zero_projection_is_finite_and_has_no_gradient() -> None:
    z1, z2 = make_projections(dtype=np.float32)
    z1 = z1.at[2].set(0)

    @jax.jit
    def loss(z1: jax.Array, z2: jax.Array) -> jax.Array:
        return jnp.mean(nt_xent(z1, z2, temperature=0.1))

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(z1, z2)
    assert jnp.isfinite(value) and all(jnp.isfinite(grad).all() for grad in grads)
    np.testing.assert_array_equal(grads[0][2], 0)
    assert np.any(grads[1][2] != 0)
    curvature = jax.jvp(jax.grad(loss), (z1, z2), (z2, z1))[1]
    assert jnp.isfinite(curvature).all()


def test_memory_is_the_matrix_of_similarities() -> None:
    z1, z2 = make_projections(8, 100, dtype=np.float32)
    allowed = max(2 * z1.size, 4 * len(z1) ** 2)
    loss = partial(nt_xent, temperature=0.1)
    assert largest_intermediate(loss, z1, z2) <= allowed
    gradient = jax.grad(lambda z1, z2: jnp.mean(loss(z1, z2)), argnums=(0, 1))
    assert largest_intermediate(gradient, z1, z2) <= allowed


@pytest.mark.parametrize("block_size", [1, 3, 8, 16, 40])
def test_blocks_give_the_losses_and_derivatives_of_the_whole(
    block_size: int, x64: None
) -> None:
    inputs, tangents = make_projections(8), make_projections(8, seed=1)

    def results(block_size: int | None) -> tuple:
        loss = partial(nt_xent, temperature=0.2, block_size=block_size)
        gradient = jax.grad(lambda z1, z2: loss(z1, z2).mean(), argnums=(0, 1))
        return jax.jit(
            lambda *z: (
                jax.jvp(loss, z, tangents),
                jax.jvp(gradient, z, tangents),  # forward over reverse
                jax.grad(lambda *z: jax.jvp(loss, z, tangents)[1].sum())(*z),
            )
        )(*inputs)

    def check(found: jax.Array, expected: jax.Array) -> None:
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)

    jax.tree.map(check, results(block_size), results(None))


def test_memory_of_blocks_is_linear() -> None:
    z1, z2 = make_projections(64, 4, dtype=np.float32)
    loss = partial(nt_xent, temperature=0.1, block_size=4)
    gradient = jax.grad(lambda z1, z2: jnp.mean(loss(z1, z2)), argnums=(0, 1))
    assert largest_intermediate(gradient, z1, z2) <= 4 * len(z1) * 2


def objective(
    weight: jax.Array,
    x1: jax.Array,
    x2: jax.Array,
    axis_name: str | None = None,
    block_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The mean over the local examples, as a step takes it, and each loss."""
    losses = nt_xent(
        x1 @ weight,
        x2 @ weight,
        temperature=0.2,
        axis_name=axis_name,
        block_size=block_size,
    )
    return jnp.mean(losses), losses


def replica_step(
    weight: jax.Array, x1: jax.Array, x2: jax.Array, block_size: int | None = None
) -> tuple[jax.Array, jax.Array]:
    of_replica = partial(objective, axis_name=AXIS, block_size=block_size)
    gradient, losses = jax.grad(of_replica, has_aux=True)(weight, x1, x2)
    return jax.lax.pmean(gradient, AXIS), losses


def over_devices(step: Callable, replicas: int) -> Callable:
    devices = jax.devices()[:replicas]
    return jax.pmap(step, AXIS, in_axes=(None, 0, 0), devices=devices)


def over_vmap(step: Callable, replicas: int) -> Callable:
    return jax.jit(jax.vmap(step, in_axes=(None, 0, 0), axis_name=AXIS))


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("mapping", [over_devices, over_vmap])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_give_the_joined_losses_and_gradient(
    mapping: Callable, replicas: int, block_size: int | None, x64: None
) -> None:
    x1, x2 = make_projections(8)
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)))
    expected, losses = jax.jit(jax.grad(objective, has_aux=True))(weight, x1, x2)
    shape = (replicas, -1, x1.shape[1])
    step = partial(replica_step, block_size=block_size)
    gradients, found = mapping(step, replicas)(
        weight, x1.reshape(shape), x2.reshape(shape)
    )
    np.testing.assert_allclose(found.reshape(-1), losses, rtol=1e-9)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "z1, z2, temperature, message",
    [
        ((4, 3), (4, 2), 0.5, r"z1 and z2 must be of one shape.*\[4, 3\] and \[4, 2\]"),
        ((4, 3), (5, 3), 0.5, "z1 and z2 must be of one shape"),
        ((4,), (4,), 0.5, r"z1 must be \[B, D\]; found \[4\]"),
        ((4, 3), (4, 3, 1), 0.5, "z1 and z2 must be of one shape"),
        ((4, 3), (4, 3), 0, "temperature must be above 0; found 0"),
        ((4, 3), (4, 3), -0.5, "temperature must be above 0; found -0.5"),
        ((4, 3), (4, 3), np.float32(-0.5), "temperature must be above 0; found -0.5"),
        ((4, 3), (4, 3), 1e-46, "temperature must be above 0; found 1e-46"),
        ((4, 3), (4, 3), float("nan"), "temperature must be above 0; found nan"),
        ((4, 3), (4, 3), np.ones(2), r"temperature must be a number; .*shape \[2\]"),
        ((4, 3), (4, 3), True, "temperature must be a number; found True"),
    ],
)
def test_bad_input_is_refused(
    z1: tuple, z2: tuple, temperature: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nt_xent(jnp.ones(z1), jnp.ones(z2), temperature=temperature)


def test_a_block_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size must be an integer of 1 or more"):
        nt_xent(jnp.ones((4, 3)), jnp.ones((4, 3)), temperature=0.5, block_size=0)
