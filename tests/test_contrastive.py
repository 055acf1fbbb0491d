"""NT-Xent: values, derivatives, replicas, memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from intermediates import largest_intermediate
from numpy.testing import assert_allclose
from reference import oracle_nt_xent

from invariance_jax.losses import dcl, nt_xent


def make_projections(batch_size=8, features=5, dtype=np.float64, seed=0):
    """Two views that resemble each other."""
    generator = np.random.default_rng(seed)
    z1, noise = generator.normal(size=(2, batch_size, features))
    return jnp.asarray(z1, dtype), jnp.asarray(2 * z1 + noise, dtype)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_reference_values(temperature, dtype, tolerance, reference, x64):
    z1, z2 = (jnp.asarray(reference[f"ntxent_z{i}"], dtype) for i in (1, 2))

    def loss(z1, z2):
        return jnp.mean(nt_xent(z1, z2, temperature=temperature))

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(z1, z2)
    assert value.dtype == grads[0].dtype == dtype
    suffix = f"_T{temperature}"
    assert_allclose(value, reference["ntxent_loss" + suffix], rtol=tolerance)
    for i in (1, 2):
        expected = reference[f"ntxent_grad_z{i}" + suffix]
        # derivatives of float32 have the wider tolerance
        atol = (tolerance if dtype == np.float64 else 1e-4) * np.abs(expected).max()
        assert_allclose(grads[i - 1], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("batch_size, temperature", [(1, 2.0), (2, 0.1), (7, 0.1)])
def test_each_example_equals_the_oracle(batch_size, temperature, x64):
    z1, z2 = make_projections(batch_size)
    found = jax.jit(partial(nt_xent, temperature=temperature))(z1, z2)
    assert found.shape == (batch_size,)
    expected = oracle_nt_xent(z1, z2, temperature=temperature)
    assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_order_of_examples_and_views_and_lengths_do_not_matter():
    z1, z2 = make_projections(dtype=np.float32)
    order = np.random.default_rng(1).permutation(len(z1))
    loss = jax.jit(partial(nt_xent, temperature=0.2))
    expected = loss(z1, z2)
    assert_allclose(loss(z1[order], z2[order]), expected[order], rtol=1e-5)
    assert_allclose(loss(z2, z1), expected, rtol=1e-5)
    lengths = jnp.logspace(-3, 3, len(z1))[:, None]
    assert_allclose(loss(lengths * z1, 7 * z2), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "features, block_size, allowed",
    [(200, None, 2 * 64 * 200), (4, None, 4 * 64**2), (4, 4, 4 * 64 * 2)],
)
def test_memory_is_the_matrix_of_similarities_or_its_blocks(
    features, block_size, allowed
):
    z1, z2 = make_projections(64, features, dtype=np.float32)
    loss = partial(nt_xent, temperature=0.1, block_size=block_size)
    gradient = jax.grad(lambda z1, z2: jnp.mean(loss(z1, z2)), argnums=(0, 1))
    for function in (loss, gradient):
        assert largest_intermediate(function, z1, z2) <= allowed


def test_blocks_give_the_losses_and_derivatives_of_the_whole(x64):
    inputs, tangents = make_projections(8), make_projections(8, seed=1)

    def results(block_size):
        loss = partial(nt_xent, temperature=0.2, block_size=block_size)
        gradient = jax.grad(lambda z1, z2: loss(z1, z2).mean(), argnums=(0, 1))
        return jax.jit(
            lambda *z: (
                jax.jvp(loss, z, tangents),
                jax.jvp(gradient, z, tangents),  # forward over reverse
                jax.grad(lambda *z: jax.jvp(loss, z, tangents)[1].sum())(*z),
            )
        )(*inputs)

    whole = results(None)
    for block_size in (3, 8, 40):
        jax.tree.map(
            partial(assert_allclose, rtol=1e-10, atol=1e-12), results(block_size), whole
        )


ABOVE = "temperature must be above 0; found"


@pytest.mark.parametrize(
    "z1, z2, settings, message",
    [
        ((4, 3), (4, 2), {}, r"z1 and z2 must be of one shape.*\[4, 3\] and \[4, 2\]"),
        ((4, 3), (4, 3, 1), {}, "z1 and z2 must be of one shape"),
        ((4,), (4,), {}, r"z1 must be \[B, D\]; found \[4\]"),
        ((), (), {}, r"z1 must be \[B, D\]; found \[\]"),
        ((4, 3), (4, 3), {"temperature": 0}, ABOVE + " 0"),
        ((4, 3), (4, 3), {"temperature": np.float32(-0.5)}, ABOVE + " -0.5"),
        ((4, 3), (4, 3), {"temperature": 1e-46}, ABOVE + " 1e-46"),
        ((4, 3), (4, 3), {"temperature": float("nan")}, ABOVE + " nan"),
        ((4, 3), (4, 3), {"temperature": np.ones(2)}, r"a number; .*shape \[2\]"),
        ((4, 3), (4, 3), {"temperature": True}, "must be a number; found True"),
        ((4, 3), (4, 3), {"block_size": 0}, "block_size must be an integer of 1 or mo"),
    ],
    ids=str,
)
@pytest.mark.parametrize("loss", [nt_xent, dcl])
def test_bad_input_is_refused(loss, z1, z2, settings, message):
    with pytest.raises(ValueError, match=message):
        loss(jnp.ones(z1), jnp.ones(z2), **{"temperature": 0.5, **settings})
