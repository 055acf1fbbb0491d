"""Square root, norm, division and normalization at and away from their singularity."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from invariance_jax.numerics import (
    hold_in_first_derivative,
    l2_normalize,
    safe_divide,
    safe_norm,
    safe_sqrt,
)

ROWS = np.random.default_rng(0).normal(size=(4, 3)) + 0.1
ROWS.setflags(write=False)

FUNCTIONS = {
    "safe_sqrt": lambda x: safe_sqrt(jnp.square(x) + jnp.square(x) ** 2),
    "safe_norm": safe_norm,
    "safe_divide": lambda x: safe_divide(jnp.sin(x), x),
    "l2_normalize": l2_normalize,
}
functions = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def test_values_equal_numpy(x64: None) -> None:
    x = jnp.asarray(ROWS)
    np.testing.assert_allclose(safe_sqrt(jnp.abs(x)), np.sqrt(np.abs(ROWS)))
    norm = np.linalg.norm(ROWS, axis=1)
    np.testing.assert_allclose(safe_norm(x), norm)
    np.testing.assert_allclose(safe_norm(x, keepdims=True), norm[:, None])
    np.testing.assert_allclose(safe_norm(x, axis=0), np.linalg.norm(ROWS, axis=0))
    np.testing.assert_allclose(safe_divide(x, x[:1]), ROWS / ROWS[:1])
    np.testing.assert_allclose(l2_normalize(x), ROWS / norm[:, None])
    np.testing.assert_allclose(jnp.sum(l2_normalize(x, axis=0) ** 2, axis=0), 1)


def test_nan_stays_nan() -> None:
    nan = jnp.full((1, 2), jnp.nan)
    for found in (safe_sqrt(nan), safe_norm(nan), safe_divide(nan, nan)):
        assert jnp.isnan(found).all()
    assert jnp.isnan(l2_normalize(nan)).all()
    assert jnp.isnan(safe_divide(jnp.ones(1), nan[0, :1])).all()


def test_values_at_the_singular_point_are_zero() -> None:
    np.testing.assert_array_equal(safe_sqrt(jnp.array([0.0, -4.0, 4.0])), [0, 0, 2])
    np.testing.assert_array_equal(safe_norm(jnp.zeros((2, 3))), [0, 0])
    quotient = safe_divide(jnp.array([0.0, 1.0, 1.0]), jnp.array([0.0, 0.0, -2.0]))
    np.testing.assert_array_equal(quotient, [0, 0, -0.5])
    np.testing.assert_array_equal(l2_normalize(jnp.zeros((2, 3))), np.zeros((2, 3)))


@functions
def test_derivatives_of_first_and_second_order(function: Callable, x64: None) -> None:
    check_grads(jax.jit(function), (jnp.asarray(ROWS),), order=2, modes=["fwd", "rev"])


@functions
def test_reverse_over_forward_is_zero_at_the_singular_point(function: Callable) -> None:
    # one zero row among others
    x = jnp.asarray(ROWS, jnp.float32).at[1].set(0)
    direction = jnp.ones_like(x)

    def change(x: jax.Array) -> jax.Array:
        return jax.jvp(function, (x,), (direction,))[1]

    def size(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(change(x)))

    first, second = change(x), jax.grad(size)(x)
    assert jnp.isfinite(first).all() and jnp.isfinite(second).all()
    np.testing.assert_array_equal(first[1], jnp.zeros_like(first[1]))
    np.testing.assert_array_equal(second[1], 0)
    assert np.any(second[0] != 0)


@functions
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(function: Callable, dtype: type, x64: None) -> None:
    assert function(jnp.asarray(ROWS, dtype)).dtype == dtype


@functions
def test_eager_jit_and_vmap_agree(function: Callable) -> None:
    x = jnp.asarray(ROWS, jnp.float32)
    np.testing.assert_allclose(jax.jit(function)(x), function(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(function)(x), function(x), rtol=1e-6)


def test_normalization_does_not_depend_on_scale() -> None:
    x = jnp.asarray(ROWS, jnp.float32)
    scale = jnp.array([1e-6, 0.5, 3.0, 1e6])[:, None]
    np.testing.assert_allclose(l2_normalize(scale * x), l2_normalize(x), rtol=1e-5)


def test_norm_is_homogeneous_and_even() -> None:
    x = jnp.asarray(ROWS, jnp.float32)
    np.testing.assert_allclose(safe_norm(-3 * x), 3 * safe_norm(x), rtol=1e-6)


def held_square(x: jax.Array) -> jax.Array:
    """x^2 with one factor held."""
    return hold_in_first_derivative(x) * x


def test_held_value_is_the_identity() -> None:
    x = jnp.asarray(ROWS, jnp.float32)
    np.testing.assert_array_equal(hold_in_first_derivative(x), x)
    np.testing.assert_array_equal(jax.jit(hold_in_first_derivative)(x), x)
    np.testing.assert_array_equal(jax.vmap(hold_in_first_derivative)(x), x)


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd, jax.jacrev])
def test_held_value_is_a_constant_to_one_derivative(derivative: Callable) -> None:
    assert derivative(held_square)(3.0) == 3.0
    assert derivative(jax.jit(held_square))(3.0) == 3.0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("outer", [jax.grad, jax.jacfwd])
def test_held_value_is_the_identity_to_a_derivative_around(
    outer: Callable, compiled: bool
) -> None:
    # the derivative of held(x) x is held(x), whose derivative is 1
    function = jax.jit(held_square) if compiled else held_square

    def change(x: jax.Array) -> jax.Array:
        return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    def linearized(x: jax.Array) -> jax.Array:
        return jax.linearize(function, x)[1](jnp.ones_like(x))

    assert outer(change)(3.0) == 1.0
    assert outer(linearized)(3.0) == 1.0


def test_held_parameters_are_seen_by_the_derivative_around() -> None:
    def change(weight: jax.Array) -> jax.Array:
        def along(alpha: jax.Array) -> jax.Array:
            return alpha * hold_in_first_derivative(jnp.exp(weight * alpha))

        return jax.jvp(along, (2.0,), (1.0,))[1]  # exp(2 weight)

    np.testing.assert_allclose(jax.grad(change)(0.5), 2 * np.e, rtol=1e-6)
