"""Multinomial logistic regression: minimum, invariances, degenerate problems."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from invariance_jax.evaluation.probes import (
    LinearProbe,
    accuracy,
    cross_entropy,
    fit_logistic,
    logistic_objective,
    predict,
)

CLASSES = 3
SHAPES = {"tall": (60, 5), "wide": (20, 30)}


def make_data(batch: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap, features of unlike means and sizes."""
    generator = np.random.default_rng(batch * 100 + features)
    h = generator.normal(size=(batch, features))
    noise = generator.gumbel(size=(batch, CLASSES))
    labels = np.argmax(h[:, :CLASSES] + noise, axis=1)
    return 2 + h * np.linspace(0.3, 3, features), labels


def objective(
    h: np.ndarray, labels: np.ndarray, kernel: np.ndarray, bias: np.ndarray, l2: float
) -> float:
    """The objective, one example at a time."""
    total = 0.0
    for row, label in zip(h, labels, strict=True):
        logits = [
            bias[c] + sum(row[d] * kernel[d, c] for d in range(len(row)))
            for c in range(len(bias))
        ]
        total += np.log(sum(np.exp(logit) for logit in logits)) - logits[label]
    return total / len(labels) + l2 * sum(weight**2 for weight in np.ravel(kernel))


def fit(h: np.ndarray, labels: np.ndarray, l2: Any, dtype: Any = None) -> LinearProbe:
    h = jnp.asarray(h, dtype)
    return fit_logistic(h, jnp.asarray(labels), num_classes=CLASSES, l2=l2)


@pytest.mark.parametrize("l2", ["1e-05", "0.01"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_objective_agrees_with_the_reference(
    x64: None, reference: dict[str, np.ndarray], dtype: str, l2: str
) -> None:
    h, labels = jnp.asarray(reference["probe_x"], dtype), reference["probe_label"]
    probe = fit(h, labels, float(l2))
    assert probe.kernel.dtype == probe.bias.dtype == dtype
    found = logistic_objective(probe, h, jnp.asarray(labels), l2=float(l2))
    expected = reference[f"logistic_objective_{l2}"]
    np.testing.assert_allclose(found.value, expected, rtol=0, atol=1e-6)
    loss = cross_entropy(predict(probe, h), jnp.asarray(labels))
    np.testing.assert_allclose(loss, reference[f"logistic_ce_{l2}"], rtol=0, atol=1e-6)
    exact = objective(reference["probe_x"], labels, *map(np.float64, probe), float(l2))
    # That of the reference is above the minimum by 1e-10, where its L-BFGS stopped.
    assert exact < expected + {"float32": 1e-6, "float64": 0}[dtype]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", [1e-4, 0.1])
def test_gradient_vanishes_at_the_fit(x64: None, shape: str, l2: float) -> None:
    h, labels = make_data(*SHAPES[shape])
    found = logistic_objective(
        fit(h, labels, l2), jnp.asarray(h), jnp.asarray(labels), l2=l2
    )
    assert found.gradient_norm < 1e-8


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("l2", [1e-4, 0.1])
def test_logistic_agrees_with_scikit_learn(x64: None, shape: str, l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    h, labels = make_data(*SHAPES[shape])
    # Theirs is C times the sum of losses plus half the square of the kernel.
    theirs = linear_model.LogisticRegression(
        C=1 / (2 * l2 * len(labels)), solver="newton-cholesky", tol=1e-12
    ).fit(h, labels)
    probe = fit(h, labels, l2)
    np.testing.assert_allclose(probe.kernel, theirs.coef_.T, atol=1e-6)
    bias = theirs.intercept_ - theirs.intercept_.mean()
    np.testing.assert_allclose(probe.bias, bias, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_objective_agrees_with_the_loop(x64: None, shape: str) -> None:
    h, labels = make_data(*SHAPES[shape])
    generator = np.random.default_rng(1)
    kernel = 0.1 * generator.normal(size=(h.shape[1], CLASSES))
    bias = generator.normal(size=CLASSES)
    expected = objective(h, labels, kernel, bias, 0.3)
    probe = LinearProbe(jnp.asarray(kernel), jnp.asarray(bias))
    arguments = probe, jnp.asarray(h), jnp.asarray(labels)
    for function in (logistic_objective, jax.jit(logistic_objective)):
        found = function(*arguments, l2=0.3).value
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gradient_norm_is_the_slope_of_steepest_ascent(x64: None) -> None:
    h, labels = make_data(12, 4)
    probe = LinearProbe(0.1 * jnp.ones((4, CLASSES)), jnp.arange(3.0))

    def value(probe: LinearProbe) -> jax.Array:
        return logistic_objective(
            probe, jnp.asarray(h), jnp.asarray(labels), l2=0.1
        ).value

    gradient = jax.grad(value)(probe)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in gradient))
    step = jax.tree.map(lambda p, g: p + 1e-6 * g / norm, probe, gradient)
    slope = (value(step) - value(probe)) / 1e-6
    found = logistic_objective(probe, jnp.asarray(h), jnp.asarray(labels), l2=0.1)
    np.testing.assert_allclose(found.gradient_norm, slope, rtol=1e-4)


def test_derivatives_of_the_objective(x64: None) -> None:
    h, labels = make_data(5, 3)
    probe = LinearProbe(0.1 * jnp.ones((3, CLASSES)), jnp.arange(3.0))
    check_grads(
        jax.jit(lambda p, h: logistic_objective(p, h, jnp.asarray(labels), l2=0.1)),
        (probe, jnp.asarray(h)),
        order=2,
        modes=["fwd", "rev"],
        rtol=1e-5,
        atol=1e-5,
    )


def test_float32_fit_has_the_objective_of_float64(x64: None) -> None:
    h, labels = make_data(60, 5)
    values = [
        objective(h, labels, *map(np.float64, fit(h, labels, 1e-5, dtype)), 1e-5)
        for dtype in ("float32", "float64")
    ]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-7)


def test_features_of_sizes_far_apart_all_count() -> None:
    h, labels = make_data(60, 5)
    h = (h - h.mean(axis=0)) / h.std(axis=0)
    sizes = 10.0 ** -np.arange(0, 10, 2)  # Their squares are not all above eps.
    losses = [
        cross_entropy(
            predict(fit(x, labels, 0.0, "float32"), jnp.asarray(x, "float32")),
            jnp.asarray(labels),
        )
        for x in (h, h * sizes)
    ]
    np.testing.assert_allclose(*losses, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_and_bias_sum_to_zero_over_classes(shape: str) -> None:
    h, labels = make_data(*SHAPES[shape])
    probe = fit(h, labels, 0.01, "float32")
    np.testing.assert_allclose(jnp.sum(probe.kernel, axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(probe.bias), 0, atol=1e-5)


def test_shifted_features_move_only_the_bias(x64: None) -> None:
    h, labels = make_data(60, 5)
    plain, moved = fit(h, labels, 0.01), fit(h + 5, labels, 0.01)
    np.testing.assert_allclose(moved.kernel, plain.kernel, atol=1e-7)
    np.testing.assert_allclose(
        predict(moved, jnp.asarray(h + 5)), predict(plain, jnp.asarray(h)), atol=1e-6
    )


def test_scaled_features_with_a_scaled_penalty_predict_the_same(x64: None) -> None:
    h, labels = make_data(60, 5)
    plain, scaled = fit(h, labels, 0.01), fit(3 * h, labels, 0.09)
    np.testing.assert_allclose(3 * scaled.kernel, plain.kernel, atol=1e-7)
    np.testing.assert_allclose(scaled.bias, plain.bias, atol=1e-6)


@pytest.mark.parametrize("power", [-60, 40])
def test_tiny_and_huge_features_stay_in_the_float_range(power: int) -> None:
    h, labels = make_data(60, 5)
    h = h.astype(np.float32)
    plain, scaled = (fit(x, labels, 0.0) for x in (h, h * np.float32(2.0**power)))
    expected = plain.kernel * 2.0**-power
    np.testing.assert_allclose(scaled.kernel, expected, rtol=2e-3)


def test_renamed_classes_permute_the_probe(x64: None) -> None:
    h, labels = make_data(60, 5)
    order = np.array([2, 0, 1])
    plain, renamed = fit(h, labels, 0.01), fit(h, order[labels], 0.01)
    np.testing.assert_allclose(renamed.kernel[:, order], plain.kernel, atol=1e-7)
    np.testing.assert_allclose(renamed.bias[order], plain.bias, atol=1e-6)


def test_permuted_examples_change_nothing(x64: None) -> None:
    h, labels = make_data(60, 5)
    plain, turned = fit(h, labels, 0.01), fit(h[::-1], labels[::-1], 0.01)
    np.testing.assert_allclose(turned.kernel, plain.kernel, atol=1e-7)


def test_constant_features_leave_the_frequencies_of_the_classes(x64: None) -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    for l2 in (0.0, 0.1):
        probe = fit(np.full((6, 2), 0.1), labels, l2)
        probability = jax.nn.softmax(predict(probe, jnp.full((1, 2), 0.1)))
        np.testing.assert_allclose(probability[0], [1 / 2, 1 / 3, 1 / 6], atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_collinear_features_without_a_penalty_share_no_drift(
    x64: None, dtype: str
) -> None:
    h, labels = make_data(60, 5)
    singular = np.concatenate([h, h[:, :2], np.zeros((60, 1))], axis=1)
    probe, plain = fit(singular, labels, 0.0, dtype), fit(h, labels, 0.0)
    assert np.max(np.abs(probe.kernel)) <= 1.01 * np.max(np.abs(plain.kernel))
    logits = predict(probe, jnp.asarray(singular, dtype))
    expected = predict(plain, jnp.asarray(h))
    expected = expected - jnp.mean(expected, axis=1, keepdims=True)
    logits = logits - jnp.mean(logits, axis=1, keepdims=True)
    # Float32 stops where its rounding hides what is left of the objective.
    atol = {"float32": 2e-2, "float64": 1e-5}[dtype]
    np.testing.assert_allclose(logits, expected, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_separable_classes_without_a_penalty_end(x64: None, dtype: str) -> None:
    h, _ = make_data(60, 5)
    labels = np.argmax(h[:, :CLASSES], axis=1)
    probe = fit(h, labels, 0.0, dtype)
    logits = predict(probe, jnp.asarray(h, dtype))
    assert np.all(np.isfinite(probe.kernel))
    assert accuracy(logits, jnp.asarray(labels)) == 1
    assert cross_entropy(logits, jnp.asarray(labels)) < 1e-4


def test_classes_without_examples_get_no_probability() -> None:
    h, labels = make_data(60, 5)
    h, labels = jnp.asarray(h, jnp.float32), jnp.asarray(labels % 2)
    probe = fit_logistic(h, labels, num_classes=4, l2=1e-3)
    probability = jax.nn.softmax(predict(probe, h), axis=1)
    assert np.max(probability[:, 2:]) < 1e-5
    two = fit_logistic(h, labels, num_classes=2, l2=1e-3)
    expected = jax.nn.softmax(predict(two, h), axis=1)
    np.testing.assert_allclose(probability[:, :2], expected, atol=1e-4)


def test_a_single_class_is_learned() -> None:
    h, _ = make_data(60, 5)
    probe = fit(h, np.ones(60, int), 1e-3, "float32")
    probability = jax.nn.softmax(predict(probe, jnp.asarray(h, jnp.float32)), axis=1)
    assert np.min(probability[:, 1]) > 1 - 1e-5


def test_max_iterations_limits_the_steps(x64: None) -> None:
    h, labels = make_data(60, 5)
    h, labels = jnp.asarray(h), jnp.asarray(labels)
    norms = []
    for steps in (1, 2, 20):
        probe = fit_logistic(
            h, labels, num_classes=CLASSES, l2=1e-4, max_iterations=steps
        )
        norms.append(logistic_objective(probe, h, labels, l2=1e-4).gradient_norm)
    assert norms[0] > norms[1] > 1e5 * norms[2]


@pytest.mark.parametrize("shape", SHAPES)
def test_logistic_under_jit_and_vmap_equals_eager(x64: None, shape: str) -> None:
    h, labels = (jnp.asarray(array) for array in make_data(*SHAPES[shape]))

    def fit_at(l2: Any, labels: Any) -> LinearProbe:
        return fit_logistic(h, labels, num_classes=CLASSES, l2=l2)

    penalties = jnp.asarray([0.01, 1.0])
    mapped = jax.vmap(fit_at, (0, None))(penalties, labels)
    for index, l2 in enumerate((0.01, 1.0)):
        eager, compiled = fit_at(l2, labels), jax.jit(fit_at)(l2, labels)
        np.testing.assert_allclose(compiled.kernel, eager.kernel, atol=1e-7)
        np.testing.assert_allclose(mapped.kernel[index], eager.kernel, atol=1e-6)
        np.testing.assert_allclose(mapped.bias[index], eager.bias, atol=1e-6)


def test_a_feature_or_penalty_that_is_not_a_number_is_not_hidden() -> None:
    h, labels = make_data(60, 5)
    broken = h.copy()
    broken[2, 1] = np.nan
    assert np.all(np.isnan(fit(broken, labels, 0.1, "float32").kernel))
    traced = jax.jit(lambda l2: fit(h, labels, l2, "float32"))(jnp.float32(np.nan))
    assert np.all(np.isnan(traced.kernel))


def test_half_precision_features_are_fitted_in_float32() -> None:
    h, labels = make_data(60, 5)
    probe = fit(h, labels, 0.1, jnp.bfloat16)
    assert probe.kernel.dtype == probe.bias.dtype == jnp.float32


@pytest.mark.parametrize(
    ("h", "labels", "settings", "message"),
    [
        (jnp.zeros(4), jnp.zeros(4, int), {}, r"h must be \[B, D\]"),
        (jnp.zeros((4, 2), int), jnp.zeros(4, int), {}, "h must have a float dtype"),
        (jnp.zeros((4, 2)), jnp.zeros(3, int), {}, r"are 4, .* found shape \[3\]"),
        (jnp.zeros((4, 2)), jnp.zeros((4, 1), int), {}, r"found shape \[4, 1\]"),
        (jnp.zeros((0, 2)), jnp.zeros(0, int), {}, "at least one"),
        (jnp.zeros((4, 2)), jnp.zeros(4), {}, "integer dtype, not float32"),
        (jnp.zeros((4, 2)), jnp.arange(4), {}, "0 to 2 for 3 classes.* 0 to 3"),
        (jnp.zeros((4, 2)), jnp.arange(-1, 3), {}, "0 to 2 for 3 classes.* -1 to 2"),
        (jnp.zeros((4, 2)), jnp.zeros(4, int), {"num_classes": 1}, "num_classes must"),
        (jnp.zeros((4, 2)), jnp.zeros(4, int), {"num_classes": 2.0}, "not 2.0"),
        (
            jnp.zeros((4, 2)),
            jnp.zeros(4, int),
            {"max_iterations": 0},
            "max_iter.*not 0",
        ),
        (jnp.zeros((4, 2)), jnp.zeros(4, int), {"l2": -1e-9}, "l2 must be 0 or more"),
        (jnp.zeros((4, 2)), jnp.zeros(4, int), {"l2": jnp.ones(3)}, "l2 must be a num"),
    ],
)
def test_logistic_refuses(h: Any, labels: Any, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_logistic(h, labels, **{"num_classes": CLASSES, "l2": 0.1, **settings})


@pytest.mark.parametrize(
    ("h", "labels", "l2", "message"),
    [
        (jnp.zeros((4, 3)), jnp.zeros(4, int), 0.1, r"h must be \[B, 2\]"),
        (jnp.zeros((4, 2), int), jnp.zeros(4, int), 0.1, "h must have a float dtype"),
        (jnp.zeros((4, 2)), jnp.zeros(3, int), 0.1, r"found shape \[3\]"),
        (jnp.zeros((4, 2)), jnp.full(4, 3), 0.1, "are from 3 to 3"),
        (jnp.zeros((4, 2)), jnp.zeros(4, int), -1.0, "l2 must be 0 or more"),
    ],
)
def test_objective_refuses(h: Any, labels: Any, l2: float, message: str) -> None:
    probe = LinearProbe(jnp.zeros((2, CLASSES)), jnp.zeros(CLASSES))
    with pytest.raises(ValueError, match=message):
        logistic_objective(probe, h, labels, l2=l2)
