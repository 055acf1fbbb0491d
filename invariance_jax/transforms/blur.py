"""Gaussian blur, differentiable in its width."""

import functools

import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_shape, promote
from invariance_jax.types import Array

# In squared pixels; at or below it the kernel is one pixel, with finite derivatives.
_LEAST_VARIANCE = 1e-4


def gaussian_blur(images: Array, sigma: Array) -> Array:
    """Returns images convolved with a Gaussian, one matrix product along each axis.

    The weights are `exp(-d^2 / (2 sigma^2))`, d being the distance of pixel centres in
    pixels, normalized to sum 1. They cover all pixels of a row or column and their
    reflection beyond its ends (the last pixel is not repeated). Deviation from
    torchvision: the kernel is not cut off.

    Args:
      images: float `[B, H, W, C]`.
      sigma: `[B]`, standard deviation in pixels, 0 or more; 0 changes nothing.

    Returns:
      `[B, H, W, C]`, in the common dtype of images and sigma, at least float32.

    Raises:
      ValueError: if images or sigma have another shape or hold no real numbers.

    Gradients: with respect to both, of any order; 0 with respect to a sigma below .01.
    Cost: `B H W C (H + W)` multiply-adds.
    """
    check_shape("images", images, (None,) * 4, expected="[B, H, W, C]")
    batch = images.shape[:1]
    check_shape("sigma", sigma, batch, expected="[B], one number per image")
    images, sigma = promote(images=images, sigma=sigma)
    rows, columns = (_weights(size, sigma) for size in images.shape[1:3])
    return _einsum("bij,bkl,bjlc->bikc", rows, columns, images)


# "highest": accelerators otherwise round float32 factors to 8 or 11 bits.
_einsum = functools.partial(jnp.einsum, optimize=True, precision="highest")


def _weights(size: int, sigma: Array) -> Array:
    """Returns `[B, size, size]`, the weight of each pixel in each blurred pixel."""
    variance = jnp.maximum(jnp.square(sigma), _LEAST_VARIANCE)[:, None]
    distance = np.arange(1 - size, size)
    weights = jnp.exp(-jnp.square(distance)[None] / (2 * variance))
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    # The pixel at each distance from each pixel, reflected at both ends.
    target = np.abs(np.arange(size)[:, None] + distance[None])
    target = np.where(target >= size, 2 * (size - 1) - target, target)
    folded = target[:, :, None] == np.arange(size)[None, None]
    return _einsum("bd,idj->bij", weights, jnp.asarray(folded, weights.dtype))
