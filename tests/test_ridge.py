"""Ridge regression in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.evaluation.probes import fit_ridge, mean_squared_error, predict

SHAPES = {"tall": (12, 5), "square": (6, 6), "wide": (5, 11)}
TARGETS = 3


def make_data(batch, features, dtype=None):
    generator = np.random.default_rng(batch * 100 + features)
    h = generator.normal(size=(batch, features)) + 2
    y = generator.normal(size=(batch, TARGETS)) - 1
    return h.astype(dtype), y.astype(dtype)


def fit(h, y, l2):
    return fit_ridge(jnp.asarray(h), jnp.asarray(y), l2=l2)


def objective(h, y, kernel, bias, l2):
    """The objective, sums written out."""
    total = 0.0
    for b, t in np.ndindex(*y.shape):
        error = bias[t] - y[b, t]
        for d in range(h.shape[1]):
            error += h[b, d] * kernel[d, t]
        total += error**2
    return total / y.size + l2 * sum(weight**2 for weight in np.ravel(kernel))


def normal_equations(h, y, l2):
    """The minimum of the objective, bias as a column of ones, target after target."""
    batch, features = h.shape
    solutions = []
    design = np.concatenate([h, np.ones((batch, 1))], axis=1)
    for target in y.T:
        system = l2 * np.diag([1.0] * features + [0.0])
        right = np.zeros(features + 1)
        for row, value in zip(design, target, strict=True):
            system += np.outer(row, row) / y.size
            right += row * value / y.size
        solutions.append(np.linalg.solve(system, right))
    return np.array(solutions).T[:-1], np.array(solutions).T[-1]


shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@shapes
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-8), (np.float32, 1e-5)])
def test_ridge_agrees_with_the_normal_equations(x64, shape, dtype, tolerance):
    h, y = make_data(*shape)
    for l2 in (1e-4, 0.3) if dtype == np.float64 else (0.1,):
        probe = fit(h.astype(dtype), y.astype(dtype), l2)
        assert probe.kernel.dtype == probe.bias.dtype == dtype
        for found, expected in zip(probe, normal_equations(h, y, l2), strict=True):
            assert_allclose(found, expected, atol=tolerance)


@pytest.mark.parametrize("l2", ["1e-05", "0.01"])
def test_ridge_agrees_with_the_reference(x64, reference, l2):
    h, y = reference["probe_x"], reference["probe_y"]
    kernel, bias = reference[f"ridge_w_{l2}"], reference[f"ridge_b_{l2}"]
    probe = fit(h, y, float(l2))
    # The reference stopped its L-BFGS at 4e-6 of the minimum in the weights, which is
    # the square of that in the error: the latter is the sharper comparison.
    assert_allclose(probe.kernel, kernel, atol=2e-5)
    assert_allclose(probe.bias, bias, atol=2e-5)
    error = jnp.mean(mean_squared_error(predict(probe, jnp.asarray(h)), jnp.asarray(y)))
    assert_allclose(error, reference[f"ridge_mse_{l2}"], rtol=1e-6)
    ours = objective(h, y, *map(np.asarray, probe), float(l2))
    assert ours <= objective(h, y, kernel, bias, float(l2))


def minimum_norm(h, y):
    """The least-squares kernel of minimum norm, by the singular values of centred h."""
    kernel = np.linalg.lstsq(h - h.mean(axis=0), y - y.mean(axis=0), rcond=1e-9)[0]
    return kernel, y.mean(axis=0) - h.mean(axis=0) @ kernel


def make_singular(shape):
    """A repeated column, a column of zeros and a constant one: rank below min(B, D)."""
    h, y = make_data(*shape)
    h[:, 1], h[:, 2], h[:, 3] = h[:, 0], 0, 4
    return h, y


@shapes
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("float64", 1e-9)])
def test_no_penalty_on_a_singular_system_gives_the_minimum_norm(
    x64, shape, dtype, tolerance
):
    h, y = make_singular(shape)
    h = h.astype(np.float32).astype(float)
    probe = fit(h.astype(dtype), y.astype(dtype), 0.0)
    kernel, bias = minimum_norm(h, y)
    tolerance *= np.max(np.abs(kernel))
    assert_allclose(probe.kernel, kernel, atol=tolerance)
    assert_allclose(probe.bias, bias, atol=10 * tolerance)
    if dtype == "float64":  # a tiny penalty is near none
        assert_allclose(fit(h, y, 1e-9).kernel, kernel, atol=1e-6)


@pytest.mark.parametrize(
    "ratio, l2, expected",
    [
        (4e-14, 0.0, 1 / np.sqrt(4e-14)),
        (1e-16, 0.0, 0.0),
        (1e-16, 1e-12, 1e-8 / (1e-16 + 1e-12)),  # the closed form of one direction
    ],
)
def test_directions_below_the_documented_cutoff_are_dropped(x64, ratio, l2, expected):
    # Two orthogonal directions with eigenvalues 1 and ratio; the cut-off is 2 eps.
    waves = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    kernel = fit(waves * np.array([1, np.sqrt(ratio)]), waves[:, 1:], l2).kernel
    assert_allclose(kernel[1, 0], expected, rtol=0.05, atol=1e-12)


def test_constant_features_leave_the_mean_of_the_targets():
    _, y = make_data(7, 2, np.float32)
    probe = fit(jnp.full((7, 2), 0.1), y, 0.0)
    prediction = predict(probe, jnp.full((1, 2), 0.1))
    assert_allclose(prediction[0], y.mean(axis=0), rtol=1e-5)
    probe = fit(jnp.ones((1, 4)), y[:1], 0.0)  # one example
    assert_array_equal(probe.kernel, np.zeros((4, TARGETS)))
    assert_array_equal(probe.bias, y[0])


def test_tiny_features_do_not_underflow():
    scale = np.float32(2.0**-80)  # Its square is no float32.
    for shape in SHAPES.values():
        h, y = make_data(*shape, np.float32)
        plain, tiny = fit(h, y, 0.0), fit(h * scale, y, 0.0)
        assert np.any(np.asarray(plain.kernel) != 0)
        assert_allclose(tiny.kernel * scale, plain.kernel, rtol=1e-4)


@shapes
def test_scales_shifts_and_orders_change_the_probe_as_they_must(x64, shape):
    h, y = make_data(*shape)
    plain = fit(h, y, 0.1)
    scaled, moved = fit(3 * h, y, 0.9), fit(h + 5, y - 7, 0.1)
    turned = fit(h[::-1], y[::-1], 0.1)
    assert_allclose(3 * scaled.kernel, plain.kernel, atol=1e-10)
    assert_allclose(scaled.bias, plain.bias, atol=1e-10)
    for other in (moved, turned):
        assert_allclose(other.kernel, plain.kernel, atol=1e-10)
    expected = predict(plain, jnp.asarray(h)) - 7
    assert_allclose(predict(moved, jnp.asarray(h + 5)), expected, atol=1e-10)


def test_what_is_not_a_number_is_not_hidden():
    h, y = make_data(8, 3, np.float32)
    traced = jax.jit(lambda l2: fit(h, y, l2))
    assert np.all(np.isnan(traced(jnp.float32(np.nan)).kernel))
    h[2, 1] = np.nan
    assert np.all(np.isnan(fit(h, y, 0.1).kernel))


NEGATIVE = "l2 must be 0 or more; found"


@pytest.mark.parametrize(
    "h, y, l2, message",
    [
        ((4,), (4, 1), 0.1, r"h must be \[B, D\]"),
        ((4, 2), (4,), 0.1, r"y must be \[B, T\]"),
        ((4, 2), (5, 1), 0.1, "have 4 and 5 rows"),
        ((0, 2), (0, 1), 0.1, "have 0 and 0 rows"),
        ((4, 2), (4, 1), -1e-9, NEGATIVE),
        ((4, 2), (4, 1), float("nan"), NEGATIVE),
        ((4, 2), (4, 1), np.float32(-1), NEGATIVE),
        ((4, 2), (4, 1), jnp.float32(-2), NEGATIVE),
        ((4, 2), (4, 3), np.ones(3), r"l2 must be a number; found .* shape \[3\]"),
    ],
    ids=str,
)
def test_bad_input_is_refused(h, y, l2, message):
    with pytest.raises(ValueError, match=message):
        fit_ridge(jnp.zeros(h), jnp.zeros(y), l2=l2)
