"""Gaussian blur against loops in NumPy, and its derivatives in sigma."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import along_and_gradient
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from invariance_jax.transforms.blur import gaussian_blur

IMAGES = np.random.default_rng(0).uniform(0, 1, (3, 5, 7, 2))
SIGMA = np.array([0.4, 1.3, 3.0])


def oracle(images, sigma):
    """A convolution with reflected ends, one pixel after the other."""
    found = np.zeros_like(images)
    for b, width in enumerate(sigma):
        for axis in (0, 1):
            source = images[b] if axis == 0 else found[b].copy()
            size = source.shape[axis]
            distance = np.arange(1 - size, size)
            weight = np.exp(-(distance**2) / (2 * width**2))
            padded = np.pad(
                source,
                [(size - 1, size - 1) if n == axis else (0, 0) for n in range(3)],
                mode="reflect",
            )
            for i in range(size):
                rows = np.take(padded, range(i, i + 2 * size - 1), axis=axis)
                mean = np.tensordot(weight / weight.sum(), rows, ([0], [axis]))
                found[b][(slice(None),) * axis + (i,)] = mean
    return found


def test_blur_is_a_convolution_with_reflected_ends(x64):
    found = gaussian_blur(jnp.asarray(IMAGES), jnp.asarray(SIGMA))
    assert_allclose(found, oracle(IMAGES, SIGMA), atol=1e-12)


def test_derivatives(x64):
    check_grads(partial(gaussian_blur, jnp.asarray(IMAGES)), (jnp.asarray(SIGMA),), 2)


def test_sigma_0_leaves_an_image_as_it_is_with_finite_derivatives():
    images, sigma = jnp.asarray(IMAGES, jnp.float32), jnp.zeros(3)
    blur = partial(gaussian_blur, images)
    assert_allclose(blur(sigma), images, atol=1e-6)
    for values in along_and_gradient(blur, sigma):
        assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("images", "sigma", "expected"),
    [
        (IMAGES[0], SIGMA, r"\[B, H, W, C\]"),
        (IMAGES, SIGMA[:2], r"sigma must be \[B\]"),
    ],
)
def test_other_shapes_are_refused(images, sigma, expected):
    with pytest.raises(ValueError, match=expected):
        gaussian_blur(jnp.asarray(images), jnp.asarray(sigma))
