"""The first-order change of a representation against the true one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from invariance_jax.evaluation.linearization import (
    Changes,
    linearization_error,
    linearize_changes,
)

STEPS = (0.01, 0.3, 1.0)


def make_alpha(batch: int = 6, parameters: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    return tuple(generator.normal(size=(2, batch, parameters)))


def weights(parameters: int = 3, features: int = 4) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(parameters, features))


def linear(alpha: jax.Array) -> jax.Array:
    return alpha @ jnp.asarray(weights(), alpha.dtype)


def quadratic(alpha: jax.Array) -> jax.Array:
    return jnp.square(alpha)


def smooth(alpha: jax.Array) -> jax.Array:
    return jnp.tanh(linear(alpha))


def changes_of(represent, alpha, alpha_other, steps=STEPS):
    arrays = (jnp.asarray(array) for array in (alpha, alpha_other, np.array(steps)))
    return linearize_changes(represent, *arrays)


def test_a_linear_representation_is_predicted_without_error(x64: None) -> None:
    alpha, other = make_alpha()
    changes = changes_of(linear, alpha, other)
    expected = np.square((other - alpha) @ weights()).sum(axis=1)
    for number, step in enumerate(STEPS):
        np.testing.assert_allclose(changes.true[number], step**2 * expected, rtol=1e-9)
    np.testing.assert_allclose(changes.linear, changes.true, rtol=1e-9)
    np.testing.assert_allclose(changes.difference, 0, atol=1e-12)
    found = linearization_error(changes)
    np.testing.assert_allclose(found.relative_error, 0, atol=1e-12)
    for values in (found.ratio, found.median_ratio, found.cosine):
        np.testing.assert_allclose(values, 1, rtol=1e-9)


def test_a_quadratic_one_errs_by_the_square_of_the_step(x64: None) -> None:
    # (a + s d)^2 - a^2 = 2 a s d + (s d)^2: the second term is what is missed.
    alpha, other = make_alpha()
    changes = changes_of(quadratic, alpha, other)
    for number, step in enumerate(STEPS):
        for b in range(len(alpha)):
            true = first = missed = 0.0
            for a, end in zip(alpha[b], other[b], strict=True):
                d = step * (end - a)
                true += (2 * a * d + d**2) ** 2
                first += (2 * a * d) ** 2
                missed += d**4
            np.testing.assert_allclose(changes.true[number, b], true, rtol=1e-8)
            np.testing.assert_allclose(changes.linear[number, b], first, rtol=1e-9)
            np.testing.assert_allclose(changes.difference[number, b], missed, rtol=1e-6)


def test_a_smooth_one_agrees_with_differences(x64: None) -> None:
    alpha, other = make_alpha()
    changes = changes_of(smooth, alpha, other, steps=(0.4,))
    start, end, width = np.tanh(alpha @ weights()), other - alpha, 1e-6
    true = np.tanh((alpha + 0.4 * end) @ weights()) - start
    ahead = np.tanh((alpha + width * end) @ weights())
    slope = 0.4 * (ahead - np.tanh((alpha - width * end) @ weights())) / (2 * width)
    np.testing.assert_allclose(changes.true[0], (true**2).sum(1), rtol=1e-9)
    np.testing.assert_allclose(changes.linear[0], (slope**2).sum(1), rtol=1e-6)
    np.testing.assert_allclose(
        changes.difference[0], ((true - slope) ** 2).sum(1), rtol=1e-5
    )


def loop_error(changes: Changes) -> np.ndarray:
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
def test_the_error_is_that_of_the_definitions(batch: int, x64: None) -> None:
    alpha, other = make_alpha(batch)
    changes = changes_of(smooth, 3 * alpha, 3 * other)
    np.testing.assert_allclose(
        linearization_error(changes), loop_error(changes), rtol=1e-7, atol=1e-9
    )


def test_the_cosine_is_that_of_the_vectors(x64: None) -> None:
    alpha, other = make_alpha(40)
    found = linearization_error(changes_of(smooth, alpha, other, steps=(1.0,)))
    true = np.tanh(other @ weights()) - np.tanh(alpha @ weights())
    slope = 1 - np.tanh(alpha @ weights()) ** 2
    first = slope * ((other - alpha) @ weights())
    inner = (true * first).sum(1)
    norms = np.linalg.norm(true, axis=1) * np.linalg.norm(first, axis=1)
    np.testing.assert_allclose(found.cosine[0], (inner / norms).mean(), rtol=1e-9)


def test_an_example_that_does_not_change_does_not_count() -> None:
    # A view whose gate is off: neither the change nor its prediction is there.
    true = jnp.array([[0.0, 4.0, 1.0, 0.0]])
    first = jnp.array([[0.0, 1.0, 3.0, 0.0]])
    difference = jnp.array([[0.0, 1.0, 1.0, 0.0]])
    found = linearization_error(Changes(true, first, difference))
    assert found.median_ratio[0] == pytest.approx((0.25 + 3) / 2)
    cosines = (4 + 1 - 1) / 2 / 2, (1 + 3 - 1) / 2 / np.sqrt(3)
    assert found.cosine[0] == pytest.approx(np.mean(cosines), rel=1e-6)


def test_a_change_that_is_not_seen_has_the_cosine_0() -> None:
    # Nor has a prediction of what does not come; the third one has the cosine 1.
    true, first, difference = [1.0, 0.0, 1.0], [0.0, 1.0, 4.0], [1.0, 1.0, 1.0]
    arrays = (jnp.array([row]) for row in (true, first, difference))
    found = linearization_error(Changes(*arrays))
    assert found.cosine[0] == pytest.approx(1 / 3, rel=1e-6)


def test_a_heavy_tail_is_seen() -> None:
    first = jnp.ones((1, 200)).at[0, 5].set(1000.0).at[0, 77].set(801.0)
    found = linearization_error(Changes(first, first, 0 * first))
    assert found.top_share[0] == pytest.approx(1801 / 1999)


def test_a_constant_representation_gives_zeros() -> None:
    alpha, other = (jnp.asarray(array, jnp.float32) for array in make_alpha())
    changes = linearize_changes(lambda a: 0 * a, alpha, other, jnp.array([0.5, 1.0]))
    for values in linearization_error(changes):
        np.testing.assert_array_equal(values, [0, 0])


def test_one_program_serves_every_step() -> None:
    alpha, other = (jnp.asarray(array, jnp.float32) for array in make_alpha())
    compiled = jax.jit(lambda steps: linearize_changes(smooth, alpha, other, steps))
    for steps in ([0.1, 1.0], [0.5, 0.2]):
        eager = linearize_changes(smooth, alpha, other, jnp.array(steps))
        for one, two in zip(compiled(jnp.array(steps)), eager, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_derivatives(x64: None) -> None:
    def total(alpha: jax.Array, other: jax.Array) -> jax.Array:
        steps = jnp.array([0.5, 1.0])
        return jnp.stack(linearize_changes(smooth, alpha, other, steps))

    arrays = tuple(jnp.asarray(array) for array in make_alpha(2, 3))
    check_grads(jax.jit(total), arrays, order=1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("alpha", "other", "steps", "expected"),
    [
        ((4,), (4,), (1,), r"alpha must be \[B, P\]"),
        ((4, 2), (4, 2), (), "steps must be a vector"),
        ((4, 2), (4, 3), (1,), "alpha and alpha_other must be of one shape"),
    ],
)
def test_other_shapes_are_refused(alpha, other, steps, expected) -> None:
    with pytest.raises(ValueError, match=expected):
        linearize_changes(linear, *map(jnp.ones, (alpha, other, steps)))


def test_a_representation_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"what represent returns must be \[B, D\]"):
        linearize_changes(jnp.sum, jnp.ones((2, 2)), jnp.ones((2, 2)), jnp.ones(1))


def test_changes_of_no_example_are_refused() -> None:
    with pytest.raises(ValueError, match="B >= 1 examples"):
        linearization_error(Changes(*3 * [jnp.ones((2, 0))]))
