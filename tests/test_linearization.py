"""The first-order change of a representation; total effects and their bound."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.evaluation.linearization import (
    Changes,
    linearization_error,
    linearize_changes,
    total_effects,
)

STEPS = (0.01, 0.3, 1.0)
WEIGHTS = np.random.default_rng(4).normal(size=(3, 4))


def make_alpha(batch=6):
    return tuple(np.random.default_rng(3).normal(size=(2, batch, 3)))


def linear(alpha):
    return alpha @ jnp.asarray(WEIGHTS, alpha.dtype)


def smooth(alpha):
    return jnp.tanh(linear(alpha))


def changes_of(represent, alpha, alpha_other, steps=STEPS):
    arrays = (jnp.asarray(array) for array in (alpha, alpha_other, np.array(steps)))
    return linearize_changes(represent, *arrays)


def test_a_linear_representation_is_predicted_without_error(x64):
    alpha, other = make_alpha()
    changes = changes_of(linear, alpha, other)
    expected = np.square((other - alpha) @ WEIGHTS).sum(axis=1)
    for number, step in enumerate(STEPS):
        assert_allclose(changes.true[number], step**2 * expected, rtol=1e-9)
    assert_allclose(changes.linear, changes.true, rtol=1e-9)
    assert_allclose(changes.difference, 0, atol=1e-12)
    found = linearization_error(changes)
    assert_allclose(found.relative_error, 0, atol=1e-12)
    for values in (found.ratio, found.median_ratio, found.cosine):
        assert_allclose(values, 1, rtol=1e-9)


def test_a_quadratic_one_errs_by_the_square_of_the_step(x64):
    # (a + s d)^2 - a^2 = 2 a s d + (s d)^2: the second term is what is missed.
    alpha, other = make_alpha()
    changes = changes_of(jnp.square, alpha, other)
    for number, step in enumerate(STEPS):
        d = step * (other - alpha)
        first, missed = 2 * alpha * d, d**2
        expected = (first + missed, first, missed)
        for found, change in zip(changes, expected, strict=True):
            assert_allclose(found[number], (change**2).sum(axis=1), rtol=1e-6)


def loop_error(changes):
    """The five numbers of each step, from their definitions."""
    rows = []
    for true, first, difference in zip(*map(np.asarray, changes), strict=True):
        ratios, cosines = [], []
        for t, f, d in zip(true, first, difference, strict=True):
            if t > 0:
                ratios.append(f / t)
            if t > 0 or f > 0:
                inner = (t + f - d) / 2
                cosines.append(inner / np.sqrt(t * f) if t * f > 0 else 0.0)
        count = int(np.ceil(len(first) / 100))
        top = sum(sorted(first, reverse=True)[:count])
        rows.append(
            [
                sum(difference) / sum(true),
                sum(first) / sum(true),
                np.median(ratios),
                top / sum(first),
                np.mean(cosines),
            ]
        )
    return np.array(rows).T


@pytest.mark.parametrize("batch", [7, 250])
def test_the_error_is_that_of_the_definitions(batch, x64):
    alpha, other = make_alpha(batch)
    changes = changes_of(smooth, 3 * alpha, 3 * other)
    found, expected = linearization_error(changes), loop_error(changes)
    assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_an_example_that_does_not_change_does_not_count():
    # A view whose gate is off: neither the change nor its prediction is there.
    rows = [0.0, 4.0, 1.0, 0.0], [0.0, 1.0, 3.0, 0.0], [0.0, 1.0, 1.0, 0.0]
    found = linearization_error(Changes(*(jnp.array([row]) for row in rows)))
    assert found.median_ratio[0] == pytest.approx((0.25 + 3) / 2)
    cosines = (4 + 1 - 1) / 2 / 2, (1 + 3 - 1) / 2 / np.sqrt(3)
    assert found.cosine[0] == pytest.approx(np.mean(cosines), rel=1e-6)
    # A change not predicted and a prediction that does not come have the cosine 0.
    rows = [1.0, 0.0, 1.0], [0.0, 1.0, 4.0], [1.0, 1.0, 1.0]
    found = linearization_error(Changes(*(jnp.array([row]) for row in rows)))
    assert found.cosine[0] == pytest.approx(1 / 3, rel=1e-6)


@pytest.mark.parametrize("dtype, atol", [(np.float32, 1e-9), (np.float64, 0)])
def test_rounding_is_no_change(dtype, atol, x64):
    alpha, other = (array.astype(dtype) for array in make_alpha())
    is_on = np.arange(len(alpha))[:, None] % 2 == 0

    def gated(alpha):  # where the gate is off, value and slope are rounding
        off = 1 + np.finfo(dtype).eps * alpha[:, :1]
        return jnp.where(is_on, smooth(alpha), off)

    assert (gated(alpha) != gated(other)).any(axis=1).all()
    changes = changes_of(gated, alpha, other)
    assert_array_equal(np.stack(changes)[..., 1::2], 0)
    kept = Changes(*(values[:, ::2] for values in changes))
    expected = changes_of(smooth, alpha[::2], other[::2])
    assert_allclose(np.stack(kept), np.stack(expected), 1e-4, atol)
    assert_allclose(linearization_error(changes).cosine[0], 1, atol=1e-3)


def test_the_difference_from_a_change_that_is_rounding_is_the_other_change():
    def represent(alpha):  # rounding is the slope of the first, the change of the other
        slow = jnp.round(alpha[:1]) + 1e-7 * alpha[:1]
        return 1 + jnp.concatenate([slow, jnp.sin(2 * np.pi * alpha[1:])])

    ends = jnp.zeros((2, 1)), jnp.ones((2, 1))
    true, first, difference = changes_of(represent, *ends, steps=(1.0,))
    assert_array_equal([true[0, 1], first[0, 0]], 0)
    assert_array_equal(difference[0], [true[0, 0], first[0, 1]])
    assert (difference > 0).all()


def test_a_constant_representation_gives_zeros():
    alpha, other = (jnp.asarray(array, jnp.float32) for array in make_alpha())
    changes = linearize_changes(lambda a: 0 * a, alpha, other, jnp.array([0.5, 1.0]))
    for values in linearization_error(changes):
        assert_array_equal(values, [0, 0])


def test_a_change_that_is_not_a_number_is_not_hidden():
    changes = jnp.array([[1.0, 4.0], [np.nan, 4.0]])
    for values in linearization_error(Changes(changes, changes, changes)):
        assert_array_equal(np.isnan(values), [False, True])


def test_derivatives(x64):
    @jax.jit
    def total(alpha, other):
        steps = jnp.array([0.5, 1.0])
        return jnp.stack(linearize_changes(smooth, alpha, other, steps))

    arrays = tuple(jnp.asarray(array) for array in make_alpha(2))
    check_grads(total, arrays, order=1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "represent, alpha, other, steps, expected",
    [
        (linear, (4,), (4,), (1,), r"alpha must be \[B, P\]"),
        (linear, (4, 2), (4, 2), (), "steps must be a vector"),
        (linear, (4, 2), (4, 3), (1,), "alpha and alpha_other must be of one shape"),
        (jnp.sum, (2, 2), (2, 2), (1,), r"the output of represent must be \[B, D\]"),
    ],
)
def test_other_shapes_are_refused(represent, alpha, other, steps, expected):
    with pytest.raises(ValueError, match=expected):
        linearize_changes(represent, *map(jnp.ones, (alpha, other, steps)))
    with pytest.raises(ValueError, match="B >= 1 examples"):
        linearization_error(Changes(*3 * [jnp.ones((2, 0))]))


LOW, HIGH = np.array([-1.0, 0.5, 2.0]), np.array([1.0, 3.5, 2.5])


def effects_problem(count, columns=None):
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
    found = total_effects(waves, *effects_problem(40_000, column))
    assert_allclose(jnp.mean(found.effect), 0.5, rtol=0.03)
    assert_allclose(jnp.mean(found.bound), number**2 / 2, rtol=0.03)


def test_of_a_linear_representation_the_first_order_is_exact(x64):
    weights = np.random.default_rng(1).normal(size=(3, 4))
    alpha, other, columns, widths = effects_problem(20_000)
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

    found = total_effects(product, *effects_problem(100_000, 1))
    first, _, third = np.random.default_rng(2).uniform(LOW, HIGH, (100_000, 3)).T
    expected = np.mean((first * third) ** 2) * 3.0**2 / 12
    assert_allclose(jnp.mean(found.effect), expected, rtol=0.03)


def test_widths_are_not_rounded_in_a_product_of_matrices():
    effects = partial(total_effects, waves)
    assert "dot_general" not in str(jax.make_jaxpr(effects)(*effects_problem(4)))


def test_signs_turn_the_directions(x64):
    alpha, other, columns, widths = effects_problem(4)
    signs = jnp.array([1.0, -1.0, -1.0, 1.0])

    def coupled(alpha):
        return alpha - jnp.mean(alpha, axis=0, keepdims=True)

    same = jnp.zeros_like(columns)
    found = total_effects(coupled, alpha, other, same, widths, signs=signs)
    expected = (signs - signs.mean()) ** 2 * (widths[0] / np.pi) ** 2
    assert_allclose(found.bound, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_no_effect(dtype, x64):
    alpha, other, _, widths = (array.astype(dtype) for array in effects_problem(6))
    is_on = np.arange(6)[:, None] % 2 == 0

    def gated(alpha):  # where the gate is off, value and slope are rounding
        off = 1 + 2 * np.finfo(dtype).eps * alpha[:, 1:2]
        return jnp.where(is_on, waves(alpha).astype(dtype), off)

    assert (gated(alpha) != gated(other))[1::2].any()
    found = total_effects(gated, alpha, other, jnp.ones(6, int), widths)
    assert_array_equal(np.stack(found)[:, 1::2], 0)
    assert (np.stack(found)[:, ::2] > 0).all()


def test_derivatives_of_total_effects(x64):
    alpha, other, columns, widths = effects_problem(5)

    def function(alpha, other, widths):
        return total_effects(waves, alpha, other, columns, widths)

    check_grads(jax.jit(function), (alpha, other, widths), order=2, eps=1e-6)


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (1, (4, 2), "alpha and alpha_other must be of one shape"),
        (2, (3,), r"columns .* \[B\]"),
        (3, (2,), r"widths .* \[P\]"),
    ],
)
def test_other_shapes_for_total_effects_are_refused(index, shape, message):
    arguments = list(effects_problem(4))
    arguments[index] = jnp.ones(shape, arguments[index].dtype)
    with pytest.raises(ValueError, match=message):
        total_effects(waves, *arguments)


@pytest.mark.parametrize("column", [-1, 3, 1.0])
def test_a_column_that_does_not_exist_is_refused(column):
    alpha, other, _, widths = effects_problem(4)
    with pytest.raises(ValueError, match="columns must be integers from 0 to 2; found"):
        total_effects(waves, alpha, other, jnp.full(4, column), widths)
    with pytest.raises(ValueError, match=r"signs must be \[B\]"):
        total_effects(waves, *effects_problem(4), signs=jnp.ones(1))
