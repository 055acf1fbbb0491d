"""Gaussian blur, differentiable in its width."""

import functools

import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_shape, promote
from invariance_jax.types import Array

# Below it, in squared pixels, the kernel is one pixel; keeps derivatives finite at 0.
_LEAST_VARIANCE = 1e-4


def gaussian_blur(images: Array, sigma: Array) -> Array:
    """Returns images convolved with a Gaussian, one matrix product along each axis.

    Weights `exp(-d^2 / (2 sigma^2))` of the distance d in pixels between centres,
    normalized to sum 1, over all pixels of a row or column and their reflection beyond
    its ends (without repeating the last pixel). Deviation from torchvision: the kernel
    is not cut off.

    Args:
      images: float `[B, H, W, C]`.
      sigma: `[B]`, standard deviation in pixels, 0 or more; 0 leaves an image as it is.

    Returns:
      `[B, H, W, C]`, in the dtype of images, at least float32.

    Raises:
      ValueError: if images or sigma have another shape or hold no real numbers.

    Gradients: with respect to both, of any order; 0 in sigma where it is below .01.
    Cost: `B H W C (H + W)` multiply-adds.
    """
    check_shape("images", images, (None,) * 4, expected="[B, H, W, C]")
    size = images.shape[:1]
    check_shape("sigma", sigma, size, expected="[B], one number per image")
    images, sigma = promote(images=images, sigma=sigma)
    rows, columns = (_weights(size, sigma) for size in images.shape[1:3])
    return _einsum("bij,bkl,bjlc->bikc", rows, columns, images)


# Accelerators would round pixels to 8 or 11 bits.
_einsum = functools.partial(jnp.einsum, optimize=True, precision="highest")


def _weights(size: int, sigma: Array) -> Array:
    """Returns the weight `[B, size, size]` of each pixel in each blurred one."""
    variance = jnp.maximum(jnp.square(sigma), _LEAST_VARIANCE)[:, None]
    distance = np.arange(1 - size, size)
    weights = jnp.exp(-jnp.square(distance)[None] / (2 * variance))
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)
    # Where each distance from each pixel leads: |p| and its mirror image at the end.
    target = np.abs(np.arange(size)[:, None] + distance[None])
    target = np.where(target >= size, 2 * (size - 1) - target, target)
    folded = target[:, :, None] == np.arange(size)[None, None]
    return _einsum("bd,idj->bij", weights, jnp.asarray(folded, weights.dtype))
