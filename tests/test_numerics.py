"""Square root, norm, division and normalization at and away from their singularity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.numerics import (
    above_rounding,
    clip_to_unit,
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


def test_values_equal_numpy(x64):
    x = jnp.asarray(ROWS)
    assert_allclose(safe_sqrt(jnp.abs(x)), np.sqrt(np.abs(ROWS)))
    norm = np.linalg.norm(ROWS, axis=1)
    assert_allclose(safe_norm(x), norm)
    assert_allclose(safe_norm(x, axis=0), np.linalg.norm(ROWS, axis=0))
    assert_allclose(safe_divide(x, x[:1]), ROWS / ROWS[:1])
    assert_allclose(l2_normalize(x), ROWS / norm[:, None])
    assert_allclose(jnp.sum(l2_normalize(x, axis=0) ** 2, axis=0), 1)


def test_values_at_the_singular_point_are_zero_and_nan_stays_nan():
    assert_array_equal(safe_sqrt(jnp.array([0.0, -4.0, 4.0])), [0, 0, 2])
    assert_array_equal(safe_norm(jnp.zeros((2, 3))), [0, 0])
    quotient = safe_divide(jnp.array([0.0, 1.0, 1.0]), jnp.array([0.0, 0.0, -2.0]))
    assert_array_equal(quotient, [0, 0, -0.5])
    assert_array_equal(l2_normalize(jnp.zeros((2, 3))), np.zeros((2, 3)))
    nan = jnp.full((1, 2), jnp.nan)
    for found in (safe_sqrt(nan), safe_norm(nan), safe_divide(nan, nan)):
        assert jnp.isnan(found).all()
    assert jnp.isnan(l2_normalize(nan)).all()
    assert jnp.isnan(safe_divide(jnp.ones(1), nan[0, :1])).all()


@functions
def test_derivatives_of_first_and_second_order(function, x64):
    check_grads(jax.jit(function), (jnp.asarray(ROWS),), order=2)


@functions
def test_reverse_over_forward_is_zero_at_the_singular_point(function):
    # one zero row among others
    x = jnp.asarray(ROWS, jnp.float32).at[1].set(0)
    direction = jnp.ones_like(x)

    def change(x):
        return jax.jvp(function, (x,), (direction,))[1]

    def size(x):
        return jnp.sum(jnp.square(change(x)))

    first, second = change(x), jax.grad(size)(x)
    assert jnp.isfinite(first).all() and jnp.isfinite(second).all()
    assert_array_equal(first[1], jnp.zeros_like(first[1]))
    assert_array_equal(second[1], 0)
    assert np.any(second[0] != 0)


def test_a_clip_to_0_and_1_has_derivative_0_at_and_beyond_the_ends():
    x = jnp.array([-1.0, 0.0, 0.3, 1.0, 2.0, jnp.nan])
    assert_array_equal(clip_to_unit(x), [0, 0, np.float32(0.3), 1, 1, np.nan])
    assert_array_equal(jax.vmap(jax.grad(clip_to_unit))(x)[:5], [0, 0, 1, 0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_only_a_change_above_rounding_stays(dtype, x64):
    eps, start = np.finfo(dtype).eps, np.full(6, 4, dtype)
    change = [0, 15 * eps, 17 * eps, 1, np.inf, np.nan]
    squares = jnp.square(jnp.asarray(change, dtype))
    expected = [0, 0, *squares[2:]]
    for function in (above_rounding, jax.jit(above_rounding), jax.vmap(above_rounding)):
        assert_array_equal(function(squares, jnp.asarray(start)), expected)
    slope = jax.vmap(jax.grad(above_rounding))(squares, jnp.asarray(start))
    assert_array_equal(slope[:4], [0, 0, 1, 1])


def held_square(x):
    """x^2 with one factor held."""
    return hold_in_first_derivative(x) * x


def test_held_value_is_the_identity():
    x = jnp.asarray(ROWS, jnp.float32)
    assert_array_equal(hold_in_first_derivative(x), x)
    assert_array_equal(jax.jit(hold_in_first_derivative)(x), x)
    assert_array_equal(jax.vmap(hold_in_first_derivative)(x), x)


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd, jax.jacrev])
def test_held_value_is_a_constant_to_one_derivative(derivative):
    assert derivative(held_square)(3.0) == 3.0
    assert derivative(jax.jit(held_square))(3.0) == 3.0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("outer", [jax.grad, jax.jacfwd])
def test_held_value_is_the_identity_to_a_derivative_around(outer, compiled):
    # the derivative of held(x) x is held(x), whose derivative is 1
    function = jax.jit(held_square) if compiled else held_square

    def change(x):
        return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    def linearized(x):
        return jax.linearize(function, x)[1](jnp.ones_like(x))

    assert outer(change)(3.0) == 1.0
    assert outer(linearized)(3.0) == 1.0


def test_held_parameters_are_seen_by_the_derivative_around():
    def change(weight):
        def along(alpha):
            return alpha * hold_in_first_derivative(jnp.exp(weight * alpha))

        return jax.jvp(along, (2.0,), (1.0,))[1]  # exp(2 weight)

    assert_allclose(jax.grad(change)(0.5), 2 * np.e, rtol=1e-6)
