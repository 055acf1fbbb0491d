"""Total effects of single parameters and their bound by derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.evaluation import total_effects

LOW, HIGH = np.array([-1.0, 0.5, 2.0]), np.array([1.0, 3.5, 2.5])


def problem(count, columns=None):
    """Uniform alpha and alpha', a parameter of each example, and the ranges."""
    generator = np.random.default_rng(0)
    alpha, other = generator.uniform(LOW, HIGH, (2, count, 3))
    columns = generator.integers(0, 3, count) if columns is None else columns
    arrays = alpha, other, np.broadcast_to(columns, count), HIGH - LOW
    return tuple(map(jnp.asarray, arrays))


def waves(alpha):
    """In each parameter a cosine; the first is an extremal of the inequality."""
    shares = (alpha - LOW[None]) / (HIGH - LOW)[None]
    return jnp.cos(np.pi * np.array([[1, 2, 9]]) * shares)


@pytest.mark.parametrize(("column", "number"), [(0, 1), (1, 2), (2, 9)])
def test_of_a_cosine_the_ratio_is_the_square_of_its_half_waves(column, number, x64):
    found = total_effects(waves, *problem(40_000, column))
    assert_allclose(jnp.mean(found.effect), 0.5, rtol=0.03)
    assert_allclose(jnp.mean(found.bound), number**2 / 2, rtol=0.03)


def test_of_a_linear_representation_the_first_order_is_exact(x64):
    weights = np.random.default_rng(1).normal(size=(3, 4))
    alpha, other, columns, widths = problem(20_000)
    found = total_effects(lambda alpha: alpha @ weights, alpha, other, columns, widths)
    assert_allclose(found.linear, found.effect, rtol=1e-9)
    for column in range(3):
        squared = (weights[column] ** 2).sum() * widths[column] ** 2
        own = columns == column
        assert_allclose(found.bound[own], squared / np.pi**2, rtol=1e-9)
        assert_allclose(found.effect[own].mean(), squared / 12, rtol=0.05)


def test_interactions_count_as_in_a_monte_carlo_estimate(x64):
    def product(alpha):
        return jnp.prod(alpha, axis=1, keepdims=True)

    found = total_effects(product, *problem(100_000, 1))
    first, _, third = np.random.default_rng(2).uniform(LOW, HIGH, (100_000, 3)).T
    expected = np.mean((first * third) ** 2) * 3.0**2 / 12
    assert_allclose(jnp.mean(found.effect), expected, rtol=0.03)


def test_widths_are_not_rounded_in_a_product_of_matrices():
    effects = partial(total_effects, waves)
    assert "dot_general" not in str(jax.make_jaxpr(effects)(*problem(4)))


def test_signs_turn_the_directions(x64):
    alpha, other, columns, widths = problem(4)
    signs = jnp.array([1.0, -1.0, -1.0, 1.0])

    def coupled(alpha):
        return alpha - jnp.mean(alpha, axis=0, keepdims=True)

    same = jnp.zeros_like(columns)
    found = total_effects(coupled, alpha, other, same, widths, signs=signs)
    expected = (signs - signs.mean()) ** 2 * (widths[0] / np.pi) ** 2
    assert_allclose(found.bound, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_no_effect(dtype, x64):
    alpha, other, _, widths = (array.astype(dtype) for array in problem(6))
    is_on = np.arange(6)[:, None] % 2 == 0

    def gated(alpha):  # where the gate is off, value and slope are rounding
        off = 1 + 2 * np.finfo(dtype).eps * alpha[:, 1:2]
        return jnp.where(is_on, waves(alpha).astype(dtype), off)

    assert (gated(alpha) != gated(other))[1::2].any()
    found = total_effects(gated, alpha, other, jnp.ones(6, int), widths)
    assert_array_equal(np.stack(found)[:, 1::2], 0)
    assert (np.stack(found)[:, ::2] > 0).all()


def test_derivatives(x64):
    alpha, other, columns, widths = problem(5)

    def function(alpha, other, widths):
        return total_effects(waves, alpha, other, columns, widths)

    arguments = alpha, other, widths
    check_grads(jax.jit(function), arguments, order=2, modes=["fwd", "rev"], eps=1e-6)


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (1, (4, 2), "alpha and alpha_other must be of one shape"),
        (2, (3,), r"columns .* \[B\]"),
        (3, (2,), r"widths .* \[P\]"),
    ],
)
def test_other_shapes_are_refused(index, shape, message):
    arguments = list(problem(4))
    arguments[index] = jnp.ones(shape, arguments[index].dtype)
    with pytest.raises(ValueError, match=message):
        total_effects(waves, *arguments)


@pytest.mark.parametrize("column", [-1, 3, 1.0])
def test_a_column_that_does_not_exist_is_refused(column):
    alpha, other, _, widths = problem(4)
    with pytest.raises(ValueError, match="columns must be integers from 0 to 2; found"):
        total_effects(waves, alpha, other, jnp.full(4, column), widths)
    with pytest.raises(ValueError, match=r"signs must be \[B\]"):
        total_effects(waves, *problem(4), signs=jnp.ones(1))
