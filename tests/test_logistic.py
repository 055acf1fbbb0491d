"""Multinomial logistic regression: minimum, invariances, degenerate problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from invariance_jax.evaluation.probes import (
    LinearProbe,
    accuracy,
    cross_entropy,
    fit_logistic,
    fit_logistic_in_blocks,
    logistic_objective,
    predict,
)

CLASSES = 3
TALL, WIDE = (60, 5), (20, 30)


def make_data(shape, dtype=None):
    """Classes that overlap, features of unlike means and sizes."""
    batch, features = shape
    generator = np.random.default_rng(batch * 100 + features)
    h = generator.normal(size=(batch, features))
    noise = generator.gumbel(size=(batch, CLASSES))
    labels = np.argmax(h[:, :CLASSES] + noise, axis=1)
    return (2 + h * np.linspace(0.3, 3, features)).astype(dtype or np.float64), labels


def objective(h, labels, kernel, bias, l2):
    """The objective, one example at a time."""
    total = 0.0
    for row, label in zip(h, labels, strict=True):
        logits = [b + sum(row * column) for b, column in zip(bias, kernel.T)]  # noqa: B905
        total += np.log(sum(np.exp(logit) for logit in logits)) - logits[label]
    return total / len(labels) + l2 * sum(weight**2 for weight in np.ravel(kernel))


def fit(h, labels, l2, dtype=None):
    h = jnp.asarray(h, dtype)
    return fit_logistic(h, jnp.asarray(labels), num_classes=CLASSES, l2=l2)


@pytest.mark.parametrize("l2", ["1e-05", "0.01"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_objective_agrees_with_the_reference(x64, reference, dtype, l2):
    h, labels = jnp.asarray(reference["probe_x"], dtype), reference["probe_label"]
    probe = fit(h, labels, float(l2))
    assert probe.kernel.dtype == probe.bias.dtype == dtype
    found = logistic_objective(probe, h, jnp.asarray(labels), l2=float(l2))
    expected = reference[f"logistic_objective_{l2}"]
    assert_allclose(found.value, expected, rtol=0, atol=1e-6)
    loss = cross_entropy(predict(probe, h), jnp.asarray(labels))
    # Near the minimum the loss may change where the objective does not.
    atol = {"float32": 1e-5, "float64": 1e-6}[dtype]
    assert_allclose(loss, reference[f"logistic_ce_{l2}"], rtol=0, atol=atol)
    exact = objective(reference["probe_x"], labels, *map(np.float64, probe), float(l2))
    # That of the reference is above the minimum by 1e-10, where its L-BFGS stopped.
    assert exact < expected + {"float32": 1e-6, "float64": 0}[dtype]


@pytest.mark.parametrize("shape, l2", [(TALL, 1e-4), (WIDE, 0.1)])
def test_logistic_agrees_with_scikit_learn(x64, shape, l2):
    linear_model = pytest.importorskip("sklearn.linear_model")
    h, labels = make_data(shape)
    # Theirs is C times the sum of losses plus half the square of the kernel.
    theirs = linear_model.LogisticRegression(
        C=1 / (2 * l2 * len(labels)), solver="newton-cholesky", tol=1e-12
    ).fit(h, labels)
    probe = fit(h, labels, l2)
    assert_allclose(probe.kernel, theirs.coef_.T, atol=1e-6)
    assert_allclose(probe.bias, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-6)
    found = logistic_objective(probe, jnp.asarray(h), jnp.asarray(labels), l2=l2)
    assert found.gradient_norm < 1e-8


def test_derivatives_of_the_objective_and_their_norm(x64):
    h, labels = map(jnp.asarray, make_data((5, 3)))
    probe = LinearProbe(0.1 * jnp.ones((3, CLASSES)), jnp.arange(3.0))

    @jax.jit
    def both(probe, h):
        return logistic_objective(probe, h, labels, l2=0.1)

    check_grads(both, (probe, h), order=2, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda probe: both(probe, h).value)(probe)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in gradient))
    assert_allclose(both(probe, h).gradient_norm, norm, rtol=1e-9)


def test_features_of_sizes_far_apart_all_count():
    h, labels = make_data(TALL)
    h = (h - h.mean(axis=0)) / h.std(axis=0)
    sizes = 10.0 ** -np.arange(0, 10, 2)  # Their squares are not all above eps.
    losses = []
    for x in (np.float32(h), np.float32(h * sizes)):
        logits = predict(fit(x, labels, 0.0), jnp.asarray(x))
        losses.append(cross_entropy(logits, jnp.asarray(labels)))
    assert_allclose(*losses, rtol=0, atol=1e-6)


def test_shifts_scales_names_and_orders_change_the_probe_as_they_must(x64):
    h, labels = make_data(TALL)
    plain = fit(h, labels, 0.01)
    assert_allclose(jnp.sum(plain.kernel, axis=1), 0, atol=1e-12)
    assert_allclose(jnp.sum(plain.bias), 0, atol=1e-12)
    moved = fit(h + 5, labels, 0.01)
    assert_allclose(moved.kernel, plain.kernel, atol=1e-7)
    assert_allclose(moved.bias + 5 * moved.kernel.sum(axis=0), plain.bias, atol=1e-6)
    scaled = fit(3 * h, labels, 0.09)
    assert_allclose(3 * scaled.kernel, plain.kernel, atol=1e-7)
    assert_allclose(scaled.bias, plain.bias, atol=1e-6)
    order = np.array([2, 0, 1])
    renamed = fit(h, order[labels], 0.01)
    assert_allclose(renamed.kernel[:, order], plain.kernel, atol=1e-7)
    turned = fit(h[::-1], labels[::-1], 0.01)
    assert_allclose(turned.kernel, plain.kernel, atol=1e-7)


@pytest.mark.parametrize("function", [fit_logistic, fit_logistic_in_blocks])
def test_tiny_and_huge_features_stay_in_the_float_range(function):
    h, labels = make_data(TALL, np.float32)
    settings = {"num_classes": CLASSES, "l2": 0.0}
    plain = function(h, labels, **settings)
    for power in (-70, 40, 70):
        scaled = function(h * np.float32(2.0**power), labels, **settings)
        atol = 2e-3 * np.max(np.abs(plain.kernel))
        assert_allclose(scaled.kernel * 2.0**power, plain.kernel, rtol=0, atol=atol)


def test_constant_features_leave_the_frequencies_of_the_classes(x64):
    labels = np.array([0, 0, 0, 1, 1, 2])
    for l2 in (0.0, 0.1):
        probe = fit(np.full((6, 2), 0.1), labels, l2)
        probability = jax.nn.softmax(predict(probe, jnp.full((1, 2), 0.1)))
        assert_allclose(probability[0], [1 / 2, 1 / 3, 1 / 6], atol=1e-7)


@pytest.mark.parametrize("dtype, atol", [("float32", 2e-2), ("float64", 1e-5)])
def test_collinear_features_without_a_penalty_share_no_drift(x64, dtype, atol):
    # Float32 stops where its rounding hides what is left of the objective.
    h, labels = make_data(TALL)
    singular = np.concatenate([h, h[:, :2], np.zeros((60, 1))], axis=1)
    probe, plain = fit(singular, labels, 0.0, dtype), fit(h, labels, 0.0)
    assert np.max(np.abs(probe.kernel)) <= 1.01 * np.max(np.abs(plain.kernel))
    found, expected = (
        logits - jnp.mean(logits, axis=1, keepdims=True)
        for logits in (
            predict(probe, jnp.asarray(singular, dtype)),
            predict(plain, jnp.asarray(h)),
        )
    )
    assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_separable_classes_without_a_penalty_end(x64, dtype):
    h, _ = make_data(TALL)
    labels = np.argmax(h[:, :CLASSES], axis=1)
    probe = fit(h, labels, 0.0, dtype)
    logits = predict(probe, jnp.asarray(h, dtype))
    assert np.all(np.isfinite(probe.kernel))
    assert accuracy(logits, jnp.asarray(labels)) == 1
    assert cross_entropy(logits, jnp.asarray(labels)) < 1e-4


def test_classes_without_examples_get_no_probability(x64):
    h, labels = map(jnp.asarray, make_data(TALL))
    for present in (2, 1):
        given = labels % present
        probe = fit_logistic(h, given, num_classes=4, l2=1e-3)
        probability = jax.nn.softmax(predict(probe, h), axis=1)
        assert np.max(probability[:, present:]) < 1e-5
    assert np.min(probability[:, 0]) > 1 - 1e-5
    labels = labels % 2
    four, two = (fit_logistic(h, labels, num_classes=c, l2=1e-3) for c in (4, 2))
    probabilities = [jax.nn.softmax(predict(p, h), axis=1)[:, :2] for p in (four, two)]
    assert_allclose(*probabilities, atol=1e-4)


def test_fits_with_several_penalties_under_vmap_are_those_of_each(x64):
    h, labels = make_data(TALL)
    penalties = jnp.array([1e-3, 1e-1])
    mapped = jax.vmap(lambda l2: fit(h, labels, l2).kernel)(penalties)
    each = [fit(h, labels, l2).kernel for l2 in penalties]
    assert_allclose(mapped, each, atol=1e-8)


def test_max_iterations_limits_the_steps(x64):
    h, labels = map(jnp.asarray, make_data(TALL))
    norms = []
    for steps in (1, 2, 20):
        settings = {"num_classes": CLASSES, "l2": 1e-4, "max_iterations": steps}
        probe = fit_logistic(h, labels, **settings)
        norms.append(logistic_objective(probe, h, labels, l2=1e-4).gradient_norm)
    assert norms[0] > norms[1] > 1e5 * norms[2]


def test_a_feature_or_penalty_that_is_not_a_number_is_not_hidden():
    h, labels = make_data(TALL)
    broken = h.copy()
    broken[2, 1] = np.nan
    assert np.all(np.isnan(fit(broken, labels, 0.1, "float32").kernel))
    traced = jax.jit(lambda l2: fit(h, labels, l2, "float32"))(jnp.float32(np.nan))
    assert np.all(np.isnan(traced.kernel))


H, LABELS = jnp.zeros((4, 2)), jnp.zeros(4, int)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"h": jnp.zeros(4)}, r"h must be \[B, D\]"),
        ({"h": jnp.zeros((4, 2), bool)}, "h must hold real numbers"),
        ({"labels": jnp.zeros(3, int)}, r"each of 4 .* found shape \[3\]"),
        ({"labels": jnp.zeros((4, 1), int)}, r"found shape \[4, 1\]"),
        ({"h": jnp.zeros((0, 2)), "labels": jnp.zeros(0, int)}, "at least one"),
        ({"labels": jnp.zeros(4)}, "integer dtype, not float32"),
        ({"labels": jnp.arange(4)}, "0 to 2 for 3 classes.* 0 to 3"),
        ({"labels": jnp.arange(-1, 3)}, "0 to 2 for 3 classes.* -1 to 2"),
        ({"num_classes": 1}, "num_classes must"),
        ({"num_classes": 2.0}, "found 2.0"),
        ({"max_iterations": 0}, "max_iter.*found 0"),
        ({"l2": -1e-9}, "l2 must be 0 or more"),
        ({"l2": jnp.ones(3)}, "l2 must be a num"),
        ({"labels": np.array([0, 1, 2, 2**32])}, "0 to 2 for 3 classes.* 0 to 4294967"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [fit_logistic, fit_logistic_in_blocks])
def test_logistic_refuses(function, changes, message):
    given = {"h": H, "labels": LABELS, "num_classes": CLASSES, "l2": 0.1, **changes}
    with pytest.raises(ValueError, match=message):
        function(given.pop("h"), given.pop("labels"), **given)


@pytest.mark.parametrize(
    "h, labels, l2, message",
    [
        (jnp.zeros((4, 3)), LABELS, 0.1, r"h must be \[B, 2\]"),
        (H, jnp.zeros(3, int), 0.1, r"found shape \[3\]"),
        (H, jnp.full(4, 3), 0.1, "are from 3 to 3"),
        (H, LABELS, -1.0, "l2 must be 0 or more"),
    ],
)
def test_objective_refuses(h, labels, l2, message):
    probe = LinearProbe(jnp.zeros((2, CLASSES)), jnp.zeros(CLASSES))
    with pytest.raises(ValueError, match=message):
        logistic_objective(probe, h, labels, l2=l2)


@pytest.mark.parametrize("l2", [1e-4, 1e-2])
def test_the_fit_in_blocks_is_that_of_all_features_at_once(l2):
    generator = np.random.default_rng(0)
    h = generator.normal(size=(300, 6)) * [1, 10, 0.1, 1, 1, 0] + 3
    scores = h @ generator.normal(size=(6, 4)) + generator.gumbel(size=(300, 4))
    labels = (scores - scores.mean(axis=0)).argmax(axis=1)
    options = {"num_classes": 4, "l2": l2}
    whole = fit_logistic(jnp.asarray(h, jnp.float32), labels, **options)
    blocks = fit_logistic_in_blocks(h, labels, block_size=77, **options)
    first, second = (
        jax.nn.softmax(predict(probe, jnp.asarray(h, jnp.float32)))
        for probe in (whole, blocks)
    )
    np.testing.assert_allclose(first, second, atol=1e-3)
