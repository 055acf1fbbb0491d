"""Ridge regression in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.evaluation.probes import (
    fit_ridge,
    mean_squared_error,
    predict,
)

SHAPES = {"tall": (12, 5), "square": (6, 6), "wide": (5, 11)}
TARGETS = 3


def make_data(batch: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(batch * 100 + features)
    h = generator.normal(size=(batch, features)) + 2
    y = generator.normal(size=(batch, TARGETS)) - 1
    return h, y


def objective(
    h: np.ndarray, y: np.ndarray, kernel: np.ndarray, bias: np.ndarray, l2: float
) -> float:
    """The objective, sums written out."""
    total = 0.0
    for b in range(len(y)):
        for t in range(y.shape[1]):
            error = bias[t] - y[b, t]
            for d in range(h.shape[1]):
                error += h[b, d] * kernel[d, t]
            total += error**2
    penalty = sum(weight**2 for weight in np.ravel(kernel))
    return total / y.size + l2 * penalty


def normal_equations(
    h: np.ndarray, y: np.ndarray, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    """The minimum of the objective, bias as a column of ones, target after target."""
    batch, features = h.shape
    kernel = np.zeros((features, y.shape[1]))
    bias = np.zeros(y.shape[1])
    design = np.concatenate([h, np.ones((batch, 1))], axis=1)
    for t in range(y.shape[1]):
        system = np.zeros((features + 1, features + 1))
        right = np.zeros(features + 1)
        for b in range(batch):
            system += np.outer(design[b], design[b]) / y.size
            right += design[b] * y[b, t] / y.size
        for d in range(features):
            system[d, d] += l2
        solution = np.linalg.solve(system, right)
        kernel[:, t], bias[t] = solution[:-1], solution[-1]
    return kernel, bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", [1e-4, 0.3])
def test_ridge_agrees_with_the_normal_equations(
    x64: None, shape: str, l2: float
) -> None:
    h, y = make_data(*SHAPES[shape])
    probe = fit_ridge(jnp.asarray(h), jnp.asarray(y), l2=l2)
    kernel, bias = normal_equations(h, y, l2)
    np.testing.assert_allclose(probe.kernel, kernel, atol=1e-8)
    np.testing.assert_allclose(probe.bias, bias, atol=1e-8)
    assert probe.kernel.dtype == probe.bias.dtype == jnp.float64


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_ridge_agrees_with_the_normal_equations(shape: str) -> None:
    h, y = make_data(*SHAPES[shape])
    probe = fit_ridge(jnp.asarray(h, jnp.float32), jnp.asarray(y, jnp.float32), l2=0.1)
    kernel, bias = normal_equations(h, y, 0.1)
    np.testing.assert_allclose(probe.kernel, kernel, atol=1e-5)
    np.testing.assert_allclose(probe.bias, bias, atol=1e-5)
    assert probe.kernel.dtype == jnp.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_no_small_step_lowers_the_objective(x64: None, shape: str) -> None:
    h, y = make_data(*SHAPES[shape])
    probe = fit_ridge(jnp.asarray(h), jnp.asarray(y), l2=0.05)
    kernel, bias = np.asarray(probe.kernel), np.asarray(probe.bias)
    least = objective(h, y, kernel, bias, 0.05)
    generator = np.random.default_rng(0)
    for _ in range(20):
        step = 1e-3 * generator.normal(size=kernel.shape)
        shift = 1e-3 * generator.normal(size=bias.shape)
        assert objective(h, y, kernel + step, bias + shift, 0.05) > least


@pytest.mark.parametrize("l2", ["1e-05", "0.01"])
def test_ridge_agrees_with_the_reference(
    x64: None, reference: dict[str, np.ndarray], l2: str
) -> None:
    h, y = reference["probe_x"], reference["probe_y"]
    kernel, bias = reference[f"ridge_w_{l2}"], reference[f"ridge_b_{l2}"]
    probe = fit_ridge(jnp.asarray(h), jnp.asarray(y), l2=float(l2))
    # The reference stopped its L-BFGS at 4e-6 of the minimum in the weights, which is
    # the square of that in the error: the latter is the sharper comparison.
    np.testing.assert_allclose(probe.kernel, kernel, atol=2e-5)
    np.testing.assert_allclose(probe.bias, bias, atol=2e-5)
    error = jnp.mean(mean_squared_error(predict(probe, jnp.asarray(h)), jnp.asarray(y)))
    np.testing.assert_allclose(error, reference[f"ridge_mse_{l2}"], rtol=1e-6)
    ours = objective(h, y, np.asarray(probe.kernel), np.asarray(probe.bias), float(l2))
    assert ours <= objective(h, y, kernel, bias, float(l2))


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_agrees_with_scikit_learn(x64: None, shape: str) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    h, y = make_data(*SHAPES[shape])
    theirs = linear_model.Ridge(alpha=0.02 * y.size).fit(h, y)
    probe = fit_ridge(jnp.asarray(h), jnp.asarray(y), l2=0.02)
    np.testing.assert_allclose(probe.kernel, theirs.coef_.T, atol=1e-8)
    np.testing.assert_allclose(probe.bias, theirs.intercept_, atol=1e-8)


def test_tall_and_wide_forms_agree_across_the_border(x64: None) -> None:
    h, y = make_data(6, 6)
    padded = np.concatenate([h, np.zeros((6, 1))], axis=1)
    tall = fit_ridge(jnp.asarray(h), jnp.asarray(y), l2=0.01)
    wide = fit_ridge(jnp.asarray(padded), jnp.asarray(y), l2=0.01)
    np.testing.assert_allclose(wide.kernel[:6], tall.kernel, atol=1e-9)
    np.testing.assert_allclose(wide.kernel[6], 0, atol=1e-12)
    np.testing.assert_allclose(wide.bias, tall.bias, atol=1e-9)


def minimum_norm(h: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least-squares kernel of minimum norm, by the singular values of centred h."""
    kernel = np.linalg.lstsq(h - h.mean(axis=0), y - y.mean(axis=0), rcond=1e-9)[0]
    return kernel, y.mean(axis=0) - h.mean(axis=0) @ kernel


def make_singular(shape: str) -> tuple[np.ndarray, np.ndarray]:
    """A repeated column, a column of zeros and a constant one: rank below min(B, D)."""
    h, y = make_data(*SHAPES[shape])
    h[:, 1] = h[:, 0]
    h[:, 2] = 0
    h[:, 3] = 4
    return h, y


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_penalty_on_a_singular_system_gives_the_minimum_norm(
    x64: None, shape: str, dtype: str
) -> None:
    h, y = make_singular(shape)
    h = h.astype(np.float32).astype(float)
    probe = fit_ridge(jnp.asarray(h, dtype), jnp.asarray(y, dtype), l2=0.0)
    kernel, bias = minimum_norm(h, y)
    tolerance = {"float32": 1e-3, "float64": 1e-9}[dtype] * np.max(np.abs(kernel))
    np.testing.assert_allclose(probe.kernel, kernel, atol=tolerance)
    np.testing.assert_allclose(probe.bias, bias, atol=10 * tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tiny_penalty_on_a_singular_system_is_near_none(
    x64: None, shape: str
) -> None:
    h, y = (jnp.asarray(array) for array in make_singular(shape))
    tiny, none = fit_ridge(h, y, l2=1e-9), fit_ridge(h, y, l2=0.0)
    np.testing.assert_allclose(tiny.kernel, none.kernel, atol=1e-6)


@pytest.mark.parametrize(("ratio", "kept"), [(4e-14, True), (1e-16, False)])
def test_directions_below_the_documented_cutoff_are_dropped(
    x64: None, ratio: float, kept: bool
) -> None:
    # Two orthogonal directions with eigenvalues 1 and ratio; the cut-off is 2 eps.
    waves = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    h = jnp.asarray(waves * np.array([1, np.sqrt(ratio)]))
    y = jnp.asarray(waves[:, 1:], jnp.float64)
    kernel = fit_ridge(h, y, l2=0.0).kernel
    expected = 1 / np.sqrt(ratio) if kept else 0.0
    np.testing.assert_allclose(kernel[1, 0], expected, rtol=0.05, atol=1e-12)


def test_a_penalty_above_the_cutoff_drops_nothing(x64: None) -> None:
    waves = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    h = jnp.asarray(waves * np.array([1, 1e-8]))
    y = jnp.asarray(waves[:, 1:], jnp.float64)
    # The closed form of one direction: 1e-8 / (1e-16 + l2).
    kernel = fit_ridge(h, y, l2=1e-12).kernel
    np.testing.assert_allclose(kernel[1, 0], 1e-8 / (1e-16 + 1e-12), rtol=1e-2)


def test_constant_features_leave_the_mean_of_the_targets() -> None:
    _, y = make_data(7, 2)
    probe = fit_ridge(jnp.full((7, 2), 0.1), jnp.asarray(y, jnp.float32), l2=0.0)
    prediction = predict(probe, jnp.full((1, 2), 0.1))
    np.testing.assert_allclose(prediction[0], y.mean(axis=0), rtol=1e-5)


def test_one_example_is_predicted_by_the_bias_alone() -> None:
    probe = fit_ridge(jnp.ones((1, 4)), jnp.asarray([[3.0, -1.0]]), l2=0.0)
    np.testing.assert_array_equal(probe.kernel, 0)
    np.testing.assert_array_equal(probe.bias, [3.0, -1.0])


@pytest.mark.parametrize("shape", SHAPES)
def test_tiny_features_do_not_underflow(shape: str) -> None:
    h, y = make_data(*SHAPES[shape])
    h, y = jnp.asarray(h, jnp.float32), jnp.asarray(y, jnp.float32)
    scale = 2.0**-80  # Its square is no float32.
    plain, tiny = fit_ridge(h, y, l2=0.0), fit_ridge(h * scale, y, l2=0.0)
    assert np.any(np.asarray(plain.kernel) != 0)
    np.testing.assert_allclose(tiny.kernel * scale, plain.kernel, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_scaled_features_with_a_scaled_penalty_predict_the_same(
    x64: None, shape: str
) -> None:
    h, y = (jnp.asarray(array) for array in make_data(*SHAPES[shape]))
    plain, scaled = fit_ridge(h, y, l2=0.1), fit_ridge(3 * h, y, l2=0.9)
    np.testing.assert_allclose(3 * scaled.kernel, plain.kernel, atol=1e-10)
    np.testing.assert_allclose(scaled.bias, plain.bias, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_shifted_features_and_targets_move_only_the_bias(x64: None, shape: str) -> None:
    h, y = (jnp.asarray(array) for array in make_data(*SHAPES[shape]))
    plain, moved = fit_ridge(h, y, l2=0.1), fit_ridge(h + 5, y - 7, l2=0.1)
    np.testing.assert_allclose(moved.kernel, plain.kernel, atol=1e-10)
    np.testing.assert_allclose(predict(moved, h + 5), predict(plain, h) - 7, atol=1e-10)


def test_permuted_examples_change_nothing(x64: None) -> None:
    h, y = make_data(8, 3)
    plain = fit_ridge(jnp.asarray(h), jnp.asarray(y), l2=0.1)
    turned = fit_ridge(jnp.asarray(h[::-1].copy()), jnp.asarray(y[::-1].copy()), l2=0.1)
    np.testing.assert_allclose(turned.kernel, plain.kernel, atol=1e-12)


def test_a_larger_penalty_shrinks_the_kernel(x64: None) -> None:
    h, y = (jnp.asarray(array) for array in make_data(8, 3))
    norms = [
        float(jnp.sum(fit_ridge(h, y, l2=l2).kernel ** 2)) for l2 in (0.0, 0.1, 1.0, 10)
    ]
    assert norms == sorted(norms, reverse=True) and norms[-1] < norms[0] / 4


def test_an_exact_linear_map_is_found(x64: None) -> None:
    h, _ = make_data(20, 4)
    kernel = np.arange(8.0).reshape(4, 2) - 3
    probe = fit_ridge(jnp.asarray(h), jnp.asarray(h @ kernel + 5), l2=0.0)
    np.testing.assert_allclose(probe.kernel, kernel, atol=1e-10)
    np.testing.assert_allclose(probe.bias, 5, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_under_jit_and_vmap_equals_eager(x64: None, shape: str) -> None:
    h, y = (jnp.asarray(array) for array in make_data(*SHAPES[shape]))
    fits = [fit_ridge(h, y, l2=l2) for l2 in (0.01, 1.0)]
    penalties = jnp.asarray([0.01, 1.0])
    compiled = jax.jit(lambda l2: fit_ridge(h, y, l2=l2))
    mapped = jax.vmap(lambda l2: fit_ridge(h, y, l2=l2))(penalties)
    for index, fit in enumerate(fits):
        np.testing.assert_allclose(
            compiled(penalties[index]).kernel, fit.kernel, atol=1e-10
        )
        np.testing.assert_allclose(mapped.kernel[index], fit.kernel, atol=1e-10)
        np.testing.assert_allclose(mapped.bias[index], fit.bias, atol=1e-10)


def test_a_feature_that_is_not_a_number_is_not_hidden() -> None:
    h, y = make_data(8, 3)
    h[2, 1] = np.nan
    probe = fit_ridge(jnp.asarray(h, jnp.float32), jnp.asarray(y, jnp.float32), l2=0.1)
    assert np.all(np.isnan(probe.kernel))


def test_a_traced_penalty_that_is_not_a_number_is_not_hidden() -> None:
    h, y = (jnp.asarray(array, jnp.float32) for array in make_data(8, 3))
    probe = jax.jit(lambda l2: fit_ridge(h, y, l2=l2))(jnp.float32(np.nan))
    assert np.all(np.isnan(probe.kernel))


def test_mixed_dtypes_are_promoted(x64: None) -> None:
    h, y = make_data(8, 3)
    single, double = jnp.asarray(h, jnp.float32), jnp.asarray(y)
    assert fit_ridge(single, double, l2=0.1).kernel.dtype == jnp.float64
    half = fit_ridge(single.astype(jnp.bfloat16), y.astype(jnp.bfloat16), l2=0.1)
    assert half.kernel.dtype == half.bias.dtype == jnp.float32


@pytest.mark.parametrize(
    ("h", "y", "message"),
    [
        (jnp.zeros(4), jnp.zeros((4, 1)), r"h must be \[B, D\]"),
        (jnp.zeros((4, 2)), jnp.zeros(4), r"y must be \[B, T\]"),
        (jnp.zeros((4, 2)), jnp.zeros((5, 1)), "have 4 and 5 rows"),
        (jnp.zeros((0, 2)), jnp.zeros((0, 1)), "have 0 and 0 rows"),
    ],
)
def test_ridge_refuses_shapes(h: jax.Array, y: jax.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_ridge(h, y, l2=0.1)


@pytest.mark.parametrize("l2", [-1e-9, float("nan"), np.float32(-1), "array"])
def test_ridge_refuses_a_negative_penalty(l2: Any) -> None:
    value = jnp.float32(-2) if l2 == "array" else l2
    with pytest.raises(ValueError, match="l2 must be 0 or more; found"):
        fit_ridge(jnp.zeros((4, 2)), jnp.zeros((4, 1)), l2=value)


def test_ridge_refuses_a_penalty_per_target() -> None:
    with pytest.raises(ValueError, match=r"l2 must be a number; found .* shape \[3\]"):
        fit_ridge(jnp.zeros((4, 2)), jnp.zeros((4, 3)), l2=jnp.ones(3))
