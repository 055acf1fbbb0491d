"""Laws of alpha that are moved, widened, or drawn in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.transforms import Transformation, View, check_transformation, shifts

NAMES = ("first", "second", "third")
BOUNDS = np.array([[0.0, 2.0], [1.0, 5.0], [-2.0, 4.0]])
MOVE, SCALE = np.array([0.0, 0.5, -1.0]), np.array([1.0, 1.0, 1.5])


def sample(key, batch_size):
    low, high = jnp.asarray(BOUNDS.T, jnp.float32)[:, None]
    unit = jax.random.uniform(key, (batch_size, 3))
    gates = jax.random.bernoulli(key, 0.5, (batch_size,))
    return View(low + (high - low) * unit, {"gate": gates})


def apply(x, view):
    """Images that show x, alpha and the gate as they are."""
    gate = view.held["gate"][:, None].astype(jnp.float32)
    row = jnp.concatenate([x, view.alpha, gate], axis=1)
    return jnp.broadcast_to(row[:, None, :, None], (*row.shape[:1], 1, row.shape[1], 3))


PLAIN = Transformation(NAMES, BOUNDS, sample, apply)


def loop_shift(alpha, move, scale):
    """The definition, one number after the other."""
    shifted = np.zeros(alpha.shape)
    for b, p in np.ndindex(*alpha.shape):
        middle = sum(BOUNDS[p]) / 2
        shifted[b, p] = middle + scale[p] * (alpha[b, p] - middle) + move[p]
    return shifted


def test_draws_and_bounds_are_moved_and_widened_about_the_middle():
    key = jax.random.key(0)
    plain, moved = sample(key, 20), shifts.shift(PLAIN, MOVE, SCALE)
    shifted = moved.sample(key, 20)
    expected = loop_shift(np.asarray(plain.alpha), MOVE, SCALE)
    assert_allclose(shifted.alpha, expected, rtol=1e-6, atol=1e-6)
    assert shifted.alpha.dtype == jnp.float32
    assert_array_equal(shifted.held["gate"], plain.held["gate"])
    assert_allclose(moved.bounds, [[0, 2], [1.5, 5.5], [-4.5, 4.5]], rtol=1e-12)
    check_transformation(moved, jnp.ones((2, 1)))
    same = shifts.shift(PLAIN, np.zeros(3), np.ones(3))  # changes no bit
    assert_array_equal(same.sample(key, 20).alpha, plain.alpha)
    assert_array_equal(same.bounds, BOUNDS)


def test_one_program_serves_every_shift():
    traces = []

    @jax.jit
    def draw(move, scale):
        traces.append(None)
        shifted = shifts.shift(PLAIN, move, scale)
        return shifted.sample(jax.random.key(0), 5).alpha, shifted.bounds

    for move, scale in [(MOVE, SCALE), (0 * MOVE, SCALE), (MOVE, 2 * SCALE)]:
        alpha, bounds = draw(move, scale)
        eager = shifts.shift(PLAIN, move, scale)
        expected = eager.sample(jax.random.key(0), 5).alpha
        assert_allclose(alpha, expected, rtol=1e-6, atol=1e-6)
        assert_allclose(bounds, eager.bounds, rtol=1e-6)
    assert len(traces) == 1


COLUMNS = ("h", "rback", "gfore", "gback", "bfore", "bback")


def test_columns_of_a_parameter_and_of_a_group():
    for what, expected in [("h", [0]), ("background", [1, 3, 5])]:
        found = shifts.find_columns(COLUMNS, what=what)
        assert_array_equal(np.flatnonzero(found), expected)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: shifts.find_columns(COLUMNS, what="foreground"),
            "'foreground', but alpha has no column 'rfo",
        ),
        (
            lambda: shifts.find_columns(NAMES, what="size"),
            "what is 'size'.*expected some of first, sec",
        ),
        (lambda: shifts.shift(PLAIN, np.zeros(2), SCALE), r"move must be \[3\]"),
        (lambda: shifts.shift(PLAIN, MOVE, SCALE[None]), r"scale must be \[3\]"),
        (lambda: shifts.shift(PLAIN, MOVE, -SCALE), "scale must be 0 or more"),
        (lambda: shifts.redraw(PLAIN, np.ones(4, bool)), r"chosen must be \[3\]"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_redraw_of_one_parameter_leaves_all_else():
    x = jnp.arange(8, dtype=jnp.float32)[:, None]
    kept, drawn = sample(jax.random.key(2), 8), sample(jax.random.key(3), 8)
    traced = jax.jit(lambda c: shifts.redraw(PLAIN, c).apply((x, kept), drawn))
    for chosen in np.eye(3, dtype=bool):
        redrawn = shifts.redraw(PLAIN, chosen)
        assert_array_equal(redrawn.sample(jax.random.key(3), 8).alpha, drawn.alpha)
        alpha = np.where(chosen[None], drawn.alpha, kept.alpha)
        gate = kept.held["gate"][:, None]
        images = redrawn.apply((x, kept), drawn)
        shown = np.concatenate([x, alpha, gate], axis=1)
        assert_array_equal(images[:, 0, :, 0], shown)
        assert_array_equal(traced(chosen), images)
