"""Ridge regression whose penalty is chosen on held-out examples."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.evaluation import (
    fit_logistic,
    fit_logistic_selected,
    fit_ridge_selected,
    predict,
)

L2 = (1e-6, 1e-2, 1.0, 100.0)


def make_problem(examples=60, features=4):
    """Features of different scale, and two targets: a linear one and one of noise."""
    generator = np.random.default_rng(5)
    h = generator.normal(size=(examples, features)) * 10.0 ** np.arange(features) + 3
    linear = h @ (10.0 ** -np.arange(features)) + 0.1 * generator.normal(size=len(h))
    return h, np.stack([linear, generator.normal(size=len(h))], axis=1)


def loop_fit(h, y, l2):
    """The normal equations of one target on standardized features."""
    mean, deviation = h.mean(axis=0), h.std(axis=0)
    deviation[deviation == 0] = 1
    z = (h - mean) / deviation
    gram = z.T @ z / len(z) + l2 * np.eye(z.shape[1])
    kernel = np.linalg.solve(gram, z.T @ (y - y.mean()) / len(z)) / deviation
    return kernel, y.mean() - mean @ kernel


def loop_selected(h, y, held_out):
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


def select(h, y):
    return fit_ridge_selected(jnp.asarray(h), jnp.asarray(y), l2=L2, num_held_out=12)


def test_a_constant_feature_is_left_out(x64):
    h, y = make_problem()
    wider = np.concatenate([h, np.full((len(h), 1), 0.1)], axis=1)
    probe, _ = select(wider, y)
    assert_allclose(probe.kernel[:-1], select(h, y)[0].kernel, rtol=1e-9)
    assert_array_equal(probe.kernel[-1], 0)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-7), (np.float32, 1e-3)])
def test_agrees_with_the_loop(dtype, tolerance, x64):
    h, y = make_problem()
    probe, l2 = select(h.astype(dtype), y.astype(dtype))
    kernel, bias, chosen = loop_selected(h, y, 12)
    assert chosen[0] < 1e-3 < chosen[1]  # each target has its own
    assert_allclose(l2, chosen, rtol=1e-6)
    assert_allclose(probe.kernel, kernel, rtol=tolerance, atol=tolerance / 100)
    assert_allclose(probe.bias, bias, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "fit",
    [fit_ridge_selected, partial(fit_logistic_selected, num_classes=2)],
    ids=["ridge", "logistic"],
)
def test_no_weight_and_no_example_to_choose_on_are_refused(fit):
    h, y = jnp.zeros((4, 2)), jnp.array([0, 1, 0, 1])
    y = y[:, None] if fit == fit_ridge_selected else y
    with pytest.raises(ValueError, match="l2 must hold a weight"):
        fit(h, y, l2=(), num_held_out=1)
    for number in (0, 4):
        with pytest.raises(ValueError, match="num_held_out must be an integer"):
            fit(h, y, l2=L2, num_held_out=number)


def test_the_least_held_out_cross_entropy_chooses(x64):
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
    assert_allclose(probe.kernel, expected.kernel)
