"""Every loss but the penalties: values, derivatives, replicas, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import DATA
from jax.test_util import check_grads
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
    return getattr(reference, f"oracle_{name}")(*pair, **SETTINGS[name])


def make_projections(batch_size=8, dtype=np.float64):
    """Two views that resemble each other, some features of which vary little."""
    z1, noise = np.random.default_rng(0).normal(size=(2, batch_size, 5))
    z1 = z1 * np.array([0.5, 1, 2, 0.2, 1]) + 3
    return jnp.asarray(z1, dtype), jnp.asarray(z1 + 0.3 * noise, dtype)


@every_loss
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_the_loss_is_that_of_the_paper(name, dtype, tolerance, x64):
    pair = make_projections(dtype=dtype)
    found = jax.jit(bound(name))(*pair)
    assert found.shape == (8,) and found.dtype == dtype
    expected = oracle(name, *pair)
    found = found if np.ndim(expected) else jnp.mean(found)  # of each example, or not
    np.testing.assert_allclose(found, expected, rtol=tolerance)


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
        np.testing.assert_allclose(value, released[name], rtol=1e-6)
        np.testing.assert_allclose(slope, released[f"{name}_grad"], rtol=0, atol=1e-6)


@every_loss
def test_derivatives_of_first_and_second_order(name, x64):
    loss, both = jax.jit(bound(name)), ["fwd", "rev"]
    check_grads(loss, make_projections(4), 2, both, rtol=1e-4, atol=1e-4)


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
    np.testing.assert_allclose(found.reshape(-1), joined, rtol=1e-9)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-12)


def test_equal_standardized_views_have_no_diagonal_term(x64):
    z, _ = make_projections()
    loss = losses.barlow_twins(3 * z - 1, z, off_diagonal_weight=0.0)
    np.testing.assert_allclose(loss, 0, atol=1e-20)


def test_a_constant_feature_is_uncorrelated_and_has_a_finite_gradient():
    z1, z2 = (z.at[:, 1].set(7.0) for z in make_projections(dtype=np.float32))
    for loss in (bound("barlow_twins"), bound("vicreg")):
        loss = jax.jit(lambda *pair, loss=loss: jnp.mean(loss(*pair)))
        value, slope = jax.value_and_grad(loss)(z1, z2)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()
    rest = losses.barlow_twins(z1, z2, off_diagonal_weight=0.0)
    others = [0, 2, 3, 4]
    without = losses.barlow_twins(z1[:, others], z2[:, others], off_diagonal_weight=0.0)
    np.testing.assert_allclose(rest, without + 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg", "dcl"])
@pytest.mark.parametrize(
    "shapes, weight, message",
    [
        ([(4, 3), (4, 2)], None, "z1 and z2 must be of one shape"),
        ([(4,), (4,)], None, r"z1 must be \[B, D\]"),
        ([(1, 3), (1, 3)], None, "2 or more examples"),
        ([(4, 3), (4, 3)], -1.0, "must be (0 or more|above 0); found -1.0"),
        ([(4, 3), (4, 3)], np.ones(2), r"must be a number; .*shape \[2\]"),
    ],
)
def test_bad_input_is_refused(name, shapes, weight, message):
    changes = {} if weight is None else {next(iter(SETTINGS[name])): weight}
    with pytest.raises(ValueError, match=message):
        bound(name, **changes)(*map(jnp.ones, shapes))


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
