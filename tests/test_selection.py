"""Ridge regression whose penalty is chosen on held-out examples."""

import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.evaluation import (
    fit_logistic,
    fit_logistic_selected,
    fit_ridge_selected,
    predict,
)

L2 = (1e-6, 1e-2, 1.0, 100.0)


def make_problem(
    examples: int = 60, features: int = 4, noise: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Features of different scale, and two targets: a linear one and one of noise."""
    generator = np.random.default_rng(5)
    h = generator.normal(size=(examples, features)) * 10.0 ** np.arange(features) + 3
    linear = h @ (10.0 ** -np.arange(features)) + noise * generator.normal(size=len(h))
    return h, np.stack([linear, generator.normal(size=len(h))], axis=1)


def loop_fit(h: np.ndarray, y: np.ndarray, l2: float) -> tuple:
    """The normal equations of one target on standardized features."""
    mean, deviation = h.mean(axis=0), h.std(axis=0)
    deviation[deviation == 0] = 1
    z = (h - mean) / deviation
    gram = z.T @ z / len(z) + l2 * np.eye(z.shape[1])
    kernel = np.linalg.solve(gram, z.T @ (y - y.mean()) / len(z)) / deviation
    return kernel, y.mean() - mean @ kernel


def loop_selected(h: np.ndarray, y: np.ndarray, held_out: int) -> tuple:
    kernels, biases, chosen = [], [], []
    for t in range(y.shape[1]):
        errors = []
        for l2 in L2:
            kernel, bias = loop_fit(h[:-held_out], y[:-held_out, t], l2)
            residual = h[-held_out:] @ kernel + bias - y[-held_out:, t]
            errors.append((residual**2).mean())
        chosen.append(L2[int(np.argmin(errors))])
        kernel, bias = loop_fit(h, y[:, t], chosen[-1])
        kernels.append(kernel)
        biases.append(bias)
    return np.stack(kernels, axis=1), np.array(biases), np.array(chosen)


def select(h: np.ndarray, y: np.ndarray, held_out: int = 12) -> tuple:
    return fit_ridge_selected(
        jnp.asarray(h), jnp.asarray(y), l2=L2, num_held_out=held_out
    )


def test_agrees_with_the_loop(x64: None) -> None:
    h, y = make_problem()
    probe, l2 = select(h, y)
    kernel, bias, chosen = loop_selected(h, y, 12)
    np.testing.assert_array_equal(l2, chosen)
    np.testing.assert_allclose(probe.kernel, kernel, rtol=1e-7)
    np.testing.assert_allclose(probe.bias, bias, rtol=1e-7)


def test_each_target_has_its_own_weight(x64: None) -> None:
    _, l2 = select(*make_problem())
    assert l2[0] < 1e-3 < l2[1]


def test_another_target_changes_nothing(x64: None) -> None:
    h, y = make_problem()
    both, alone = select(h, y), select(h, y[:, :1])
    np.testing.assert_allclose(both[0].kernel[:, :1], alone[0].kernel, rtol=1e-9)
    assert both[1][0] == alone[1][0]


def test_what_is_held_out_chooses_and_is_fitted_in_the_end(x64: None) -> None:
    h, y = make_problem(noise=0.0)
    # Examples that contradict the others, and are many: they choose much shrinkage.
    y[-12:] = -y[-12:]
    assert select(h, y)[1][0] == L2[-1]
    assert select(h, y, held_out=48)[1][0] < L2[-1]


def test_a_constant_feature_is_left_out(x64: None) -> None:
    h, y = make_problem()
    wider = np.concatenate([h, np.full((len(h), 1), 0.1)], axis=1)
    probe, _ = select(wider, y)
    np.testing.assert_allclose(probe.kernel[:-1], select(h, y)[0].kernel, rtol=1e-9)
    np.testing.assert_array_equal(probe.kernel[-1], 0)


def test_a_linear_target_is_recovered(x64: None) -> None:
    h, y = make_problem(noise=0.0)
    probe, _ = select(h, y)
    found = predict(probe, jnp.asarray(h))[:, 0]
    np.testing.assert_allclose(found, y[:, 0], rtol=0, atol=1e-4)


def test_float32_agrees_with_the_loop() -> None:
    h, y = make_problem()
    probe, l2 = select(h.astype(np.float32), y.astype(np.float32))
    kernel, _, chosen = loop_selected(h, y, 12)
    np.testing.assert_allclose(l2, chosen, rtol=1e-6)
    np.testing.assert_allclose(probe.kernel, kernel, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("held_out", [0, 60, 61])
def test_a_choice_without_examples_is_refused(held_out: int) -> None:
    with pytest.raises(ValueError, match="num_held_out must be an .* from 1 to 59"):
        select(*make_problem(), held_out=held_out)


def test_nothing_to_choose_from_is_refused() -> None:
    h, y = (jnp.asarray(array) for array in make_problem())
    with pytest.raises(ValueError, match="l2 must hold a weight"):
        fit_ridge_selected(h, y, l2=(), num_held_out=5)


def test_the_least_held_out_cross_entropy_chooses(x64: None) -> None:
    generator = np.random.default_rng(3)
    h = generator.normal(size=(80, 25))
    # The first feature tells the class, noisily; the others are noise to overfit.
    labels = (h[:, 0] + generator.normal(size=80) > 0).astype(int)
    h, labels = jnp.asarray(h), jnp.asarray(labels)
    errors = []
    for weight in L2:
        probe = fit_logistic(h[:60], labels[:60], num_classes=2, l2=weight)
        logits = np.asarray(predict(probe, h[60:]))
        partition = np.logaddexp.reduce(logits, axis=1)
        errors.append((partition - logits[np.arange(20), labels[60:]]).mean())
    assert 0 < np.argmin(errors) < len(L2) - 1  # the problem can tell
    probe, l2 = fit_logistic_selected(h, labels, num_classes=2, l2=L2, num_held_out=20)
    assert l2 == L2[int(np.argmin(errors))]
    expected = fit_logistic(h, labels, num_classes=2, l2=l2)
    np.testing.assert_allclose(probe.kernel, expected.kernel)


def test_no_weight_and_no_example_to_choose_on_are_refused() -> None:
    h, labels = jnp.zeros((4, 2)), jnp.array([0, 1, 0, 1])
    with pytest.raises(ValueError, match="l2 must hold a weight"):
        fit_logistic_selected(h, labels, num_classes=2, l2=(), num_held_out=1)
    with pytest.raises(ValueError, match="num_held_out must be an integer from 1 to 3"):
        fit_logistic_selected(h, labels, num_classes=2, l2=L2, num_held_out=4)
