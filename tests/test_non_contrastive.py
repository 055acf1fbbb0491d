"""Losses but NT-Xent and the penalties: values, derivatives, replicas, refusals."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import DATA
from jax.test_util import check_grads
from reference import (
    oracle_barlow_twins,
    oracle_dcl,
    oracle_emp_ssl,
    oracle_info_nce,
    oracle_negative_cosine,
    oracle_vicreg,
)

from invariance_jax.losses import (
    barlow_twins,
    dcl,
    emp_ssl,
    info_nce,
    negative_cosine,
    nt_xent,
    vicreg,
)

AXIS = "replicas"
WEIGHTS = {
    "invariance_weight": 25.0,
    "variance_weight": 20.0,
    "covariance_weight": 1.5,
}


def of_patches(*z: jax.Array, **settings: Any) -> jax.Array:
    """EMP-SSL of patches one by one, as the other losses take views."""
    return emp_ssl(jnp.stack(z), **settings)


PATCHES = {"invariance_weight": 3.0, "distortion": 0.2}
LOSSES: dict[str, tuple[Callable, Callable, dict[str, float]]] = {
    "barlow_twins": (barlow_twins, oracle_barlow_twins, {"off_diagonal_weight": 0.1}),
    "vicreg": (vicreg, oracle_vicreg, WEIGHTS),
    "dcl": (dcl, oracle_dcl, {"temperature": 0.3}),
    "info_nce": (info_nce, oracle_info_nce, {"temperature": 0.3}),
    "negative_cosine": (negative_cosine, oracle_negative_cosine, {}),
    "emp_ssl": (of_patches, oracle_emp_ssl, PATCHES),
}
losses = pytest.mark.parametrize("name", LOSSES)


def make_projections(batch_size: int = 8, dtype: Any = np.float64) -> tuple:
    """Two views that resemble each other, some features of which vary little."""
    z1, noise = np.random.default_rng(0).normal(size=(2, batch_size, 5))
    z1 = z1 * np.array([0.5, 1, 2, 0.2, 1]) + 3
    return jnp.asarray(z1, dtype), jnp.asarray(z1 + 0.3 * noise, dtype)


def bound(name: str) -> Callable:
    """The loss with its settings."""
    return partial(LOSSES[name][0], **LOSSES[name][2])


@losses
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_the_mean_is_the_loss_of_the_paper(
    name: str, dtype: Any, tolerance: float, x64: None
) -> None:
    _, oracle, settings = LOSSES[name]
    z1, z2 = make_projections(dtype=dtype)
    found = jax.jit(bound(name))(z1, z2)
    assert found.shape == (8,) and found.dtype == dtype
    expected = oracle(z1, z2, **settings)
    np.testing.assert_allclose(jnp.mean(found), np.mean(expected), rtol=tolerance)


@pytest.mark.parametrize("name", ["dcl", "info_nce", "negative_cosine"])
def test_each_example_has_its_own_loss(name: str, x64: None) -> None:
    _, oracle, settings = LOSSES[name]
    pair = make_projections()
    expected = oracle(*pair, **settings)
    np.testing.assert_allclose(bound(name)(*pair), expected, rtol=1e-9)


# The losses of lightly 1.6.0 (torch 2.14.1) of standard normal z1 and of z2 = z1 + .7
# noise, float64, and their gradients in both: NTXentLoss(.3), DCLLoss(.3),
# BarlowTwinsLoss(.1) of 1000 z1 and 1000 z2, as it adds 1e-5 to variances,
# VICRegLoss(25, 20, 1.5), NegativeCosineSimilarity(), and of n(z1), n(z2) the two parts
# of EMPSSLLoss(.2, 200), whose sum there has the coding rate with the wrong sign.
@pytest.mark.parametrize(
    "name", ["nt_xent", "dcl", "barlow_twins", "vicreg", "negative_cosine", "emp_ssl"]
)
def test_lightly_has_the_same_losses_and_gradients(name: str, x64: None) -> None:
    others = {
        "nt_xent": partial(nt_xent, temperature=0.3),
        "emp_ssl": partial(of_patches, **{**PATCHES, "invariance_weight": 200.0}),
    }
    function = others.get(name) or bound(name)
    with np.load(DATA / "lightly.npz") as released:

        def loss(pair: jax.Array) -> jax.Array:
            return jnp.mean(function(*pair))

        pair = jnp.stack([released["z1"], released["z2"]])
        value, slope = jax.jit(jax.value_and_grad(loss))(pair)
        np.testing.assert_allclose(value, released[name], rtol=1e-6)
        np.testing.assert_allclose(slope, released[f"{name}_grad"], rtol=0, atol=1e-6)


@losses
def test_derivatives_of_first_and_second_order(name: str, x64: None) -> None:
    check_grads(
        jax.jit(bound(name)),
        make_projections(4),
        order=2,
        modes=["fwd", "rev"],
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "name", ["barlow_twins", "vicreg", "dcl", "info_nce", "emp_ssl"]
)
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_give_the_joined_loss_and_gradient(
    name: str, replicas: int, x64: None
) -> None:
    x1, x2 = make_projections()
    weight = jnp.asarray(np.random.default_rng(2).normal(size=(5, 3)))

    def objective(
        weight: jax.Array, x1: jax.Array, x2: jax.Array, axis_name: str | None = None
    ) -> jax.Array:
        return jnp.mean(bound(name)(x1 @ weight, x2 @ weight, axis_name=axis_name))

    def step(weight: jax.Array, x1: jax.Array, x2: jax.Array) -> tuple:
        both = jax.value_and_grad(partial(objective, axis_name=AXIS))(weight, x1, x2)
        return jax.lax.pmean(both, AXIS)

    expected, slope = jax.jit(jax.value_and_grad(objective))(weight, x1, x2)
    mapped = jax.jit(jax.vmap(step, (None, 0, 0), axis_name=AXIS))
    values, gradients = mapped(
        weight, x1.reshape(replicas, -1, 5), x2.reshape(replicas, -1, 5)
    )
    np.testing.assert_allclose(values, expected, rtol=1e-9)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, slope, rtol=1e-8, atol=1e-12)


def test_nt_xent_is_dcl_with_the_positive_in_the_sum(x64: None) -> None:
    z1, z2 = make_projections(2)
    # With two examples, of one anchor at a time: log(1 + exp(r)).
    similarity = jnp.sum(z1 * z2, axis=1) / jnp.prod(
        jnp.linalg.norm(jnp.stack([z1, z2]), axis=2), axis=0
    )
    assert (similarity < 1).all()
    assert (nt_xent(z1, z2, temperature=0.3) > dcl(z1, z2, temperature=0.3)).all()


def test_equal_standardized_views_have_no_diagonal_term(x64: None) -> None:
    z, _ = make_projections()
    loss = barlow_twins(3 * z - 1, z, off_diagonal_weight=0.0)
    np.testing.assert_allclose(loss, 0, atol=1e-20)


def test_a_constant_feature_is_uncorrelated_and_has_a_finite_gradient() -> None:
    z1, z2 = (z.at[:, 1].set(7.0) for z in make_projections(dtype=np.float32))
    for name in ("barlow_twins", "vicreg"):
        function = bound(name)
        loss = jax.jit(lambda *pair, f=function: jnp.mean(f(*pair)))
        value, slope = jax.value_and_grad(loss)(z1, z2)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()
    rest = barlow_twins(z1, z2, off_diagonal_weight=0.0)
    others = [0, 2, 3, 4]
    without = barlow_twins(z1[:, others], z2[:, others], off_diagonal_weight=0.0)
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
def test_bad_input_is_refused(
    name: str, shapes: list, weight: Any, message: str
) -> None:
    function, _, settings = LOSSES[name]
    changed = {} if weight is None else {next(iter(settings)): weight}
    with pytest.raises(ValueError, match=message):
        function(*map(jnp.ones, shapes), **{**settings, **changed})


@pytest.mark.parametrize(
    "shape, changes, message",
    [
        ((4, 3), {}, r"z must be \[M, B, D\]"),
        ((1, 4, 3), {}, "z must hold 2 or more patches; found 1"),
        ((2, 4, 3), {"distortion": 0.0}, "distortion must be above 0"),
        ((2, 4, 3), {"invariance_weight": -1.0}, "invariance_weight must be 0 or more"),
    ],
)
def test_bad_patches_are_refused(shape: tuple, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        emp_ssl(jnp.ones(shape), **{**PATCHES, **changes})


def test_cosines_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="p and z must be of one shape"):
        negative_cosine(jnp.ones((4, 3)), jnp.ones((4, 2)))
