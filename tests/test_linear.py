"""Predictions of a linear probe."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from invariance_jax.evaluation.probes import LinearProbe, predict


def test_predict_agrees_with_the_loop(x64):
    h, kernel = np.random.default_rng(0).normal(size=(4, 3)), np.arange(6.0) - 2
    kernel, bias = kernel.reshape(3, 2), np.array([1.0, -2.0])
    expected = np.zeros((4, 2))
    for b, t in np.ndindex(4, 2):
        expected[b, t] = bias[t] + sum(h[b, d] * kernel[d, t] for d in range(3))
    probe = LinearProbe(jnp.asarray(kernel), jnp.asarray(bias))
    result = predict(probe, jnp.asarray(h))
    assert_allclose(result, expected, atol=1e-12)
    assert result.dtype == jnp.float64


@pytest.mark.parametrize(
    ("kernel", "bias", "h", "message"),
    [
        ((3, 2), (2,), (4,), r"h must be \[B, D\]"),
        ((3,), (2,), (4, 3), r"probe.kernel must be \[D, T\]"),
        ((3, 2), (2,), (4, 5), r"h must be \[B, 3\].*\[4, 5\]"),
        ((3, 2), (3,), (4, 3), r"probe.bias \[2\].*\[3\]"),
    ],
)
def test_predict_refuses_shapes(kernel, bias, h, message):
    with pytest.raises(ValueError, match=message):
        predict(LinearProbe(jnp.zeros(kernel), jnp.zeros(bias)), jnp.zeros(h))
