"""Laws of alpha that are moved, widened, or drawn in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.transforms import (
    Transformation,
    View,
    check_transformation,
    shifts,
)

NAMES = ("first", "second", "third")
BOUNDS = np.array([[0.0, 2.0], [1.0, 5.0], [-2.0, 4.0]])
MOVE, SCALE = np.array([0.0, 0.5, -1.0]), np.array([1.0, 1.0, 1.5])


def sample(key: jax.Array, batch_size: int) -> View:
    low, high = jnp.asarray(BOUNDS.T, jnp.float32)[:, None]
    unit = jax.random.uniform(key, (batch_size, 3))
    gates = jax.random.bernoulli(key, 0.5, (batch_size,))
    return View(low + (high - low) * unit, {"gate": gates})


def apply(x: jax.Array, view: View) -> jax.Array:
    """Images that show x, alpha and the gate as they are."""
    gate = view.held["gate"][:, None].astype(jnp.float32)
    row = jnp.concatenate([x, view.alpha, gate], axis=1)
    return jnp.broadcast_to(row[:, None, :, None], (*row.shape[:1], 1, row.shape[1], 3))


PLAIN = Transformation(NAMES, BOUNDS, sample, apply)


def shown(images: jax.Array) -> np.ndarray:
    return np.asarray(images[:, 0, :, 0])


def loop_shift(alpha: np.ndarray, move: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The definition, one number after the other."""
    shifted = np.zeros(alpha.shape)
    for b, row in enumerate(alpha):
        for p, value in enumerate(row):
            middle = (BOUNDS[p, 0] + BOUNDS[p, 1]) / 2
            shifted[b, p] = middle + scale[p] * (value - middle) + move[p]
    return shifted


def test_draws_are_moved_and_widened_about_the_middle() -> None:
    key = jax.random.key(0)
    plain, shifted = sample(key, 20), shifts.shift(PLAIN, MOVE, SCALE).sample(key, 20)
    expected = loop_shift(np.asarray(plain.alpha), MOVE, SCALE)
    np.testing.assert_allclose(shifted.alpha, expected, rtol=1e-6, atol=1e-6)
    assert shifted.alpha.dtype == jnp.float32
    np.testing.assert_array_equal(shifted.held["gate"], plain.held["gate"])


def test_bounds_follow() -> None:
    bounds = shifts.shift(PLAIN, MOVE, SCALE).bounds
    np.testing.assert_allclose(bounds, loop_shift(BOUNDS.T, MOVE, SCALE).T, rtol=1e-12)
    np.testing.assert_allclose(bounds, [[0, 2], [1.5, 5.5], [-4.5, 4.5]], rtol=1e-12)


def test_no_shift_changes_no_bit() -> None:
    key = jax.random.key(1)
    same = shifts.shift(PLAIN, np.zeros(3), np.ones(3))
    np.testing.assert_array_equal(same.sample(key, 50).alpha, sample(key, 50).alpha)
    np.testing.assert_array_equal(same.bounds, BOUNDS)


def test_the_scale_0_leaves_the_middle() -> None:
    point = shifts.shift(PLAIN, np.zeros(3), np.zeros(3))
    alpha = point.sample(jax.random.key(0), 4).alpha
    np.testing.assert_allclose(alpha, np.tile([1.0, 3.0, 1.0], (4, 1)), atol=1e-6)


def test_one_program_serves_every_shift() -> None:
    traces = []

    @jax.jit
    def draw(move: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        traces.append(None)
        shifted = shifts.shift(PLAIN, move, scale)
        return shifted.sample(jax.random.key(0), 5).alpha, shifted.bounds

    for move, scale in [(MOVE, SCALE), (0 * MOVE, SCALE), (MOVE, 2 * SCALE)]:
        alpha, bounds = draw(move, scale)
        eager = shifts.shift(PLAIN, move, scale)
        expected = eager.sample(jax.random.key(0), 5).alpha
        np.testing.assert_allclose(alpha, expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(bounds, eager.bounds, rtol=1e-6)
    assert len(traces) == 1


def test_a_shifted_transformation_keeps_the_promises() -> None:
    check_transformation(shifts.shift(PLAIN, MOVE, SCALE), jnp.ones((2, 1)))


@pytest.mark.parametrize(
    ("what", "expected"),
    [("h", [1, 0, 0, 0, 0, 0]), ("background", [0, 1, 0, 1, 0, 1])],
)
def test_columns_of_a_parameter_and_of_a_group(what: str, expected: list) -> None:
    names = ("h", "rback", "gfore", "gback", "bfore", "bback")
    found = shifts.find_columns(names, what=what)
    np.testing.assert_array_equal(found, np.array(expected, bool))


def test_a_group_of_which_one_is_no_column_is_refused() -> None:
    names = ("h", "rback", "gfore", "gback", "bfore", "bback")
    with pytest.raises(ValueError, match="'foreground', and alpha has no column 'rfo"):
        shifts.find_columns(names, what="foreground")


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="what is 'size'.*expected some of first, sec"):
        shifts.find_columns(NAMES, what="size")


@pytest.mark.parametrize(
    ("move", "scale", "name"),
    [(np.zeros(2), np.ones(3), "move"), (np.zeros(3), np.ones((1, 3)), "scale")],
)
def test_a_shift_of_another_shape_is_refused(
    move: np.ndarray, scale: np.ndarray, name: str
) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be \[3\]"):
        shifts.shift(PLAIN, move, scale)


def test_a_negative_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be 0 or more"):
        shifts.shift(PLAIN, np.zeros(3), np.array([1.0, -1.0, 1.0]))


@pytest.mark.parametrize("column", range(3))
def test_a_redraw_of_one_parameter_leaves_all_else(column: int) -> None:
    x = jnp.arange(8, dtype=jnp.float32)[:, None]
    kept, drawn = sample(jax.random.key(2), 8), sample(jax.random.key(3), 8)
    chosen = np.arange(3) == column
    images = shifts.redraw(PLAIN, chosen).apply((x, kept), drawn)
    for b, row in enumerate(shown(images)):
        assert row[0] == x[b, 0]
        for p in range(3):
            origin = drawn if p == column else kept
            assert row[1 + p] == origin.alpha[b, p]
        assert row[4] == kept.held["gate"][b]


def test_a_redraw_samples_as_the_transformation_does() -> None:
    key = jax.random.key(0)
    redrawn = shifts.redraw(PLAIN, np.ones(3, bool)).sample(key, 4)
    np.testing.assert_array_equal(redrawn.alpha, sample(key, 4).alpha)


def test_the_choice_of_the_columns_may_be_traced() -> None:
    x, kept = jnp.zeros((4, 1)), sample(jax.random.key(2), 4)
    drawn = sample(jax.random.key(3), 4)

    def images(chosen: jax.Array) -> jax.Array:
        return shifts.redraw(PLAIN, chosen).apply((x, kept), drawn)

    for chosen in np.eye(3, dtype=bool):
        np.testing.assert_array_equal(jax.jit(images)(chosen), images(chosen))


def test_a_choice_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chosen must be \[3\]"):
        shifts.redraw(PLAIN, np.ones(4, bool))
