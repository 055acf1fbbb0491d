"""Every loss but the penalties: values, derivatives, replicas, memory, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as oracles
from conftest import DATA
from intermediates import largest_intermediate
from jax.test_util import check_grads
from numpy.testing import assert_allclose
from replicas import AXIS, over_devices, over_vmap

from invariance_jax import losses

PATCHES = {"invariance_weight": 3.0, "distortion": 0.2}
SETTINGS = {
    "barlow_twins": {"off_diagonal_weight": 0.1},
    "vicreg": {
        "invariance_weight": 25.0,
        "variance_weight": 20.0,
        "covariance_weight": 1.5,
    },
    "nt_xent": {"temperature": 0.3},
    "dcl": {"temperature": 0.3},
    "info_nce": {"temperature": 0.3},
    "negative_cosine": {},
    "emp_ssl": PATCHES,
}
every_loss = pytest.mark.parametrize("name", SETTINGS)


def bound(name, **changes):
    """The loss of two views with its settings."""
    loss = partial(getattr(losses, name), **SETTINGS[name] | changes)
    if name == "emp_ssl":
        return lambda *z, **settings: loss(jnp.stack(z), **settings)
    return loss


def oracle(name, *pair):
    return getattr(oracles, f"oracle_{name}")(*pair, **SETTINGS[name])


def make_projections(batch_size=8, dtype=np.float64):
    """Two views that resemble each other, some features of which vary little."""
    z1, noise = np.random.default_rng(0).normal(size=(2, batch_size, 5))
    z1 = z1 * np.array([0.5, 1, 2, 0.2, 1]) + 3
    return jnp.asarray(z1, dtype), jnp.asarray(z1 + 0.3 * noise, dtype)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_nt_xent_has_the_reference_values(
    temperature, dtype, tolerance, reference, x64
):
    z1, z2 = (jnp.asarray(reference[f"ntxent_z{i}"], dtype) for i in (1, 2))

    def loss(z1, z2):
        return jnp.mean(losses.nt_xent(z1, z2, temperature=temperature))

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(z1, z2)
    assert value.dtype == grads[0].dtype == dtype
    suffix = f"_T{temperature}"
    assert_allclose(value, reference["ntxent_loss" + suffix], rtol=tolerance)
    for i in (1, 2):
        expected = reference[f"ntxent_grad_z{i}" + suffix]
        # derivatives of float32 have the wider tolerance
        atol = (tolerance if dtype == np.float64 else 1e-4) * np.abs(expected).max()
        assert_allclose(grads[i - 1], expected, rtol=0, atol=atol)


@every_loss
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_the_loss_is_that_of_the_paper(name, dtype, tolerance, x64):
    pair = make_projections(dtype=dtype)
    found = jax.jit(bound(name))(*pair)
    assert found.shape == (8,) and found.dtype == dtype
    expected = oracle(name, *pair)
    found = found if np.ndim(expected) else jnp.mean(found)  # of each example, or not
    assert_allclose(found, expected, rtol=tolerance)


# The losses of lightly 1.6.0 (torch 2.14.1) of standard normal z1 and of z2 = z1 + .7
# noise, float64, and their gradients in both: NTXentLoss(.3), DCLLoss(.3),
# BarlowTwinsLoss(.1) of 1000 z1 and 1000 z2, as it adds 1e-5 to variances,
# VICRegLoss(25, 20, 1.5), NegativeCosineSimilarity(), and of n(z1), n(z2) the two parts
# of EMPSSLLoss(.2, 200), whose sum there has the coding rate with the wrong sign.
@pytest.mark.parametrize(
    "name", ["nt_xent", "dcl", "barlow_twins", "vicreg", "negative_cosine", "emp_ssl"]
)
def test_lightly_has_the_same_losses_and_gradients(name, x64):
    changes = {"invariance_weight": 200.0} if name == "emp_ssl" else {}
    with np.load(DATA / "lightly.npz") as released:

        def loss(pair):
            return jnp.mean(bound(name, **changes)(*pair))

        pair = jnp.stack([released["z1"], released["z2"]])
        value, slope = jax.jit(jax.value_and_grad(loss))(pair)
        assert_allclose(value, released[name], rtol=1e-6)
        assert_allclose(slope, released[f"{name}_grad"], rtol=0, atol=1e-6)


@every_loss
def test_derivatives_of_first_and_second_order(name, x64):
    loss = jax.jit(bound(name))
    check_grads(loss, make_projections(4), 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mapping, replicas", [(over_devices, 4), (over_vmap, 2)])
@pytest.mark.parametrize(
    "name, changes",
    [
        *((name, {}) for name in SETTINGS if name != "negative_cosine"),
        ("nt_xent", {"block_size": 3}),
    ],
)
def test_replicas_give_the_joined_loss_and_gradient(
    name, changes, mapping, replicas, x64
):
    x1, x2 = make_projections()
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)))

    def slope(weight, x1, x2, **settings):
        def objective(weight):
            found = bound(name, **settings)(x1 @ weight, x2 @ weight)
            return jnp.mean(found), found

        return jax.grad(objective, has_aux=True)(weight)

    def step(*arguments):
        gradient, found = slope(*arguments, axis_name=AXIS, **changes)
        return jax.lax.pmean(gradient, AXIS), found

    expected, joined = jax.jit(slope)(weight, x1, x2)
    split = (x.reshape(replicas, -1, 5) for x in (x1, x2))
    gradients, found = mapping(step, replicas, (None, 0, 0))(weight, *split)
    assert_allclose(found.reshape(-1), joined, rtol=1e-9)
    for gradient in gradients:
        assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_order_of_examples_and_views_and_lengths_do_not_matter():
    z1, z2 = make_projections(dtype=np.float32)
    order = np.random.default_rng(1).permutation(len(z1))
    loss = jax.jit(partial(losses.nt_xent, temperature=0.2))
    expected = loss(z1, z2)
    assert_allclose(loss(z1[order], z2[order]), expected[order], rtol=1e-5)
    assert_allclose(loss(z2, z1), expected, rtol=1e-5)
    lengths = jnp.logspace(-3, 3, len(z1))[:, None]
    assert_allclose(loss(lengths * z1, 7 * z2), expected, rtol=1e-5)
    assert loss(z1[:1], z2[:1]) == 0  # without negatives


@pytest.mark.parametrize(
    "features, block_size, allowed",
    [(200, None, 2 * 64 * 200), (4, None, 4 * 64**2), (4, 4, 4 * 64 * 2)],
)
def test_memory_is_the_matrix_of_similarities_or_its_blocks(
    features, block_size, allowed
):
    z = jnp.ones((64, features))
    loss = bound("nt_xent", block_size=block_size)
    gradient = jax.grad(lambda z1, z2: jnp.mean(loss(z1, z2)), argnums=(0, 1))
    for function in (loss, gradient):
        assert largest_intermediate(function, z, z) <= allowed


def test_blocks_give_the_losses_and_derivatives_of_the_whole(x64):
    inputs = make_projections()

    def results(block_size):
        loss = bound("nt_xent", block_size=block_size)
        gradient = jax.grad(lambda *z: loss(*z).mean(), argnums=(0, 1))
        return jax.jit(
            lambda *z: (
                jax.jvp(loss, z, inputs[::-1]),
                jax.jvp(gradient, z, inputs[::-1]),  # forward over reverse
                jax.grad(lambda *z: jax.jvp(loss, z, inputs[::-1])[1].sum())(*z),
            )
        )(*inputs)

    whole, close = results(None), partial(assert_allclose, rtol=1e-10, atol=1e-12)
    for block_size in (3, 8, 40):
        jax.tree.map(close, results(block_size), whole)


def test_equal_standardized_views_have_no_diagonal_term(x64):
    z, _ = make_projections()
    loss = losses.barlow_twins(3 * z - 1, z, off_diagonal_weight=0.0)
    assert_allclose(loss, 0, atol=1e-20)


def test_a_constant_feature_is_uncorrelated_and_has_a_finite_gradient():
    z1, z2 = (z.at[:, 1].set(7.0) for z in make_projections(dtype=np.float32))
    for loss in (bound("barlow_twins"), bound("vicreg")):
        loss = jax.jit(lambda *pair, loss=loss: jnp.mean(loss(*pair)))
        value, slope = jax.value_and_grad(loss)(z1, z2)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()
    rest = losses.barlow_twins(z1, z2, off_diagonal_weight=0.0)
    others = [0, 2, 3, 4]
    without = losses.barlow_twins(z1[:, others], z2[:, others], off_diagonal_weight=0.0)
    assert_allclose(rest, without + 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["nt_xent", "dcl", "barlow_twins", "vicreg"])
@pytest.mark.parametrize(
    "shapes, weight, message",
    [
        ([(4, 3), (4, 2)], None, r"z1 and z2 must be of one.*\[4, 3\] and \[4, 2\]"),
        ([(4,), (4,)], None, r"z1 must be \[B, D\]; found \[4\]"),
        ([(4, 3)] * 2, np.float32(-0.5), "be (0 or more|above 0); found -0.5"),
        ([(4, 3)] * 2, float("nan"), "must be (0 or more|above 0); found nan"),
        ([(4, 3)] * 2, np.ones(2), r"must be a number; .*shape \[2\]"),
        ([(4, 3)] * 2, True, "must be a number; found True"),
    ],
)
def test_bad_input_is_refused(name, shapes, weight, message):
    changes = {} if weight is None else {next(iter(SETTINGS[name])): weight}
    with pytest.raises(ValueError, match=message):
        bound(name, **changes)(*map(jnp.ones, shapes))


@pytest.mark.parametrize(
    "name, examples, changes, message",
    [
        *((name, 1, {}, "2 or more ex") for name in ("dcl", "barlow_twins", "vicreg")),
        ("nt_xent", 4, {"temperature": 0}, "temperature must be above 0; found 0"),
        ("nt_xent", 4, {"temperature": 1e-46}, "must be above 0; found 1e-46"),
        ("dcl", 4, {"block_size": 0}, "block_size must be an integer of 1 or more"),
    ],
)
def test_one_example_and_settings_of_0_are_refused(name, examples, changes, message):
    with pytest.raises(ValueError, match=message):
        bound(name, **changes)(*2 * [jnp.ones((examples, 3))])


@pytest.mark.parametrize(
    "shape, changes, message",
    [
        ((4, 3), {}, r"z must be \[M, B, D\]"),
        ((1, 4, 3), {}, "z must hold 2 or more patches; found 1"),
        ((2, 4, 3), {"distortion": 0.0}, "distortion must be above 0"),
        ((2, 4, 3), {"invariance_weight": -1.0}, "invariance_weight must be 0 or more"),
    ],
)
def test_bad_patches_are_refused(shape, changes, message):
    with pytest.raises(ValueError, match=message):
        losses.emp_ssl(jnp.ones(shape), **PATCHES | changes)


def test_cosines_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="p and z must be of one shape"):
        losses.negative_cosine(jnp.ones((4, 3)), jnp.ones((4, 2)))
