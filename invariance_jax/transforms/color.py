"""Colour operations on images, differentiable in their parameters.

Brightness, contrast, saturation, hue and grayscale as in Foster, Pukdee, Rainforth
(ICLR 2021) and their released code, and the colouring of grey images as in Spirograph.
Conventions of the whole file: images are float `[B, H, W, 3]`, red, green, blue, values
in [0, 1]; every parameter has one value per example; results have the common dtype of
images and parameters, at least float32. A ValueError is raised if images or parameters
have another shape or images are not floating.

Brightness, contrast and saturation clip to [0, 1], hue does not, as in the paper.
Gradients are with respect to images and parameters, of any order; a value that is 0 or
1 or beyond before a clip has derivative 0 in all inputs.
"""

import math
from functools import partial

import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import promote_images, promote_rows
from invariance_jax.numerics import clip_to_unit
from invariance_jax.types import Array

JITTER_NAMES = ("brightness", "contrast", "saturation", "hue")
"""The columns of alpha of `jitter`: three factors, and a hue angle in turns."""

COLORIZE_NAMES = ("rfore", "rback", "gfore", "gback", "bfore", "bback")
"""The columns of alpha of `colorize`, in the order of Spirograph."""

_promote = partial(promote_rows, channels=3)

_LUMA = (0.299, 0.587, 0.114)

_RGB_TO_YIQ = np.array([_LUMA, (0.596, -0.274, -0.321), (0.211, -0.523, 0.311)])
_YIQ_TO_RGB = np.array([(1, 0.956, 0.621), (1, -0.272, -0.647), (1, -1.107, 1.705)])

# The hue matrix is _HUE_FIXED + cos _HUE_COS + sin _HUE_SIN: it keeps Y, turns (I, Q).
_HUE_FIXED = _YIQ_TO_RGB[:, :1] @ _RGB_TO_YIQ[:1]
_HUE_COS = _YIQ_TO_RGB[:, 1:] @ _RGB_TO_YIQ[1:]
_HUE_SIN = _YIQ_TO_RGB[:, 1:] @ np.array([[0, -1], [1, 0]]) @ _RGB_TO_YIQ[1:]


def adjust_brightness(images: Array, factor: Array) -> Array:
    """Returns the images times a factor, `c * image`, clipped.

    Args:
      images: float `[B, H, W, 3]`, values in [0, 1].
      factor: `[B]`, 0 for black, 1 for no change.

    Returns:
      `[B, H, W, 3]`, values in [0, 1].
    """
    images, factor = _promote(images, "factor", factor)
    return clip_to_unit(_per_image(factor) * images)


def adjust_contrast(images: Array, factor: Array) -> Array:
    """Returns `c * image + (1 - c) * mean luma of the image`, clipped.

    Args:
      images: float `[B, H, W, 3]`, values in [0, 1].
      factor: `[B]`, c, 0 for a uniformly grey image, 1 for no change.

    Returns:
      `[B, H, W, 3]`, values in [0, 1].
    """
    images, factor = _promote(images, "factor", factor)
    # Mean before luma, one axis at a time: four times as fast with XLA on CPU.
    rows = jnp.mean(images, axis=1, keepdims=True)
    return _blend(images, _luma(jnp.mean(rows, axis=2, keepdims=True)), factor)


def adjust_saturation(images: Array, factor: Array) -> Array:
    """Returns `c * image + (1 - c) * luma of each pixel`, clipped.

    Args:
      images: float `[B, H, W, 3]`, values in [0, 1].
      factor: `[B]`, c, 0 for a grey image, 1 for no change.

    Returns:
      `[B, H, W, 3]`, values in [0, 1].
    """
    images, factor = _promote(images, "factor", factor)
    return _blend(images, _luma(images), factor)


def adjust_hue(images: Array, turns: Array) -> Array:
    """Returns the images with the (I, Q) plane of YIQ rotated, not clipped.

    Computes `I' = I cos - Q sin`, `Q' = I sin + Q cos` for the angle `2 pi turns`. The
    two colour matrices of the paper are not exact inverses: 0 turns change a grey image
    by up to 2.8e-3.

    Args:
      images: float `[B, H, W, 3]`, values in [0, 1].
      turns: `[B]`, full turns of the hue circle.

    Returns:
      `[B, H, W, 3]`, values may leave [0, 1].
    """
    images, turns = _promote(images, "turns", turns)
    angle = (2 * math.pi * turns)[:, None, None, None]
    fixed, cos, sin = (
        jnp.asarray(matrix[None, None, None], turns.dtype)
        for matrix in (_HUE_FIXED, _HUE_COS, _HUE_SIN)
    )
    cos, sin = cos * jnp.cos(angle)[..., None], sin * jnp.sin(angle)[..., None]
    from_red, from_green, from_blue = jnp.unstack(fixed + cos + sin, axis=-1)
    red, green, blue = jnp.split(images, 3, axis=-1)
    # XLA fuses these products with neighbouring operations, but would not fuse a dot.
    return red * from_red + green * from_green + blue * from_blue


def to_grayscale(images: Array) -> Array:
    """Returns the luma of the images in three equal channels.

    Args:
      images: float `[B, H, W, 3]`, values in [0, 1].

    Returns:
      `[B, H, W, 3]`, values in the range of the images.
    """
    images = promote_images(images, channels=3)
    return jnp.repeat(_luma(images), 3, axis=-1)


def jitter(images: Array, alpha: Array) -> Array:
    """Returns the images with brightness, contrast, saturation, then hue adjusted.

    The order is fixed, as in the released code; the result is not clipped after hue.

    Args:
      images: float `[B, H, W, 3]`, values in [0, 1].
      alpha: `[B, 4]`, columns in the order of `JITTER_NAMES`; hue in turns.

    Returns:
      `[B, H, W, 3]`; the hue may move values out of [0, 1].
    """
    images, alpha = _promote(images, "alpha", alpha, JITTER_NAMES)
    brightness, contrast, saturation, hue = jnp.unstack(alpha, axis=1)
    images = adjust_brightness(images, brightness)
    images = adjust_contrast(images, contrast)
    images = adjust_saturation(images, saturation)
    return adjust_hue(images, hue)


def solarize(images: Array, threshold: Array) -> Array:
    """Returns the images with their bright values inverted, 1 - c where c >= threshold.

    Args:
      images: float `[B, H, W, 3]`, values in [0, 1].
      threshold: `[B]`, .5 in BYOL; above 1 the images do not change.

    Returns:
      `[B, H, W, 3]`, values in [0, 1].

    Gradients: with respect to images; 0 with respect to threshold.
    """
    images, threshold = _promote(images, "threshold", threshold)
    # Values above 1, which a hue adjustment may leave, invert to 0.
    inverted = 1 - jnp.minimum(images, 1)
    return jnp.where(images >= _per_image(threshold), inverted, images)


def colorize(images: Array, alpha: Array) -> Array:
    """Returns grey images coloured with a foreground and a background colour.

    Computes `intensity * foreground + (1 - intensity) * background` per channel, as
    Spirograph does. The intensity is the luma of the image, which equals each channel
    of a grey image.

    Args:
      images: float `[B, H, W, 3]`, values in [0, 1].
      alpha: `[B, 6]`, columns in the order of `COLORIZE_NAMES`, colours in [0, 1].

    Returns:
      `[B, H, W, 3]`, values in the range of the colours.
    """
    images, alpha = _promote(images, "alpha", alpha, COLORIZE_NAMES)
    intensity = _luma(images)
    fore, back = alpha[:, None, None, 0::2], alpha[:, None, None, 1::2]
    return intensity * fore + (1 - intensity) * back


def _blend(images: Array, other: Array, factor: Array) -> Array:
    factor = _per_image(factor)
    return clip_to_unit(factor * images + (1 - factor) * other)


def _luma(images: Array) -> Array:
    """Returns the luma of the images, `[B, H, W, 1]`."""
    red, green, blue = jnp.split(images, 3, axis=-1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _per_image(factor: Array) -> Array:
    return factor[:, None, None, None]
