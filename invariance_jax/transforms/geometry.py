"""Geometric operations on images: crop, erased box, central square, affine map.

The crop is that of Foster, Pukdee, Rainforth (ICLR 2021). Crop and affine map are
differentiable in their parameters. Conventions of the whole file: images are float
`[B, H, W, C]` with any number of channels C, values in [0, 1]; lengths are in pixels,
rows run downwards and columns to the right, and pixel p covers [p, p + 1]; results have
the common dtype of images and parameters, at least float32.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import (
    check_choice,
    check_integer,
    promote_images,
    promote_rows,
)
from invariance_jax.numerics import clip_to_unit, safe_divide
from invariance_jax.types import Array

BOX_NAMES = ("top", "left", "height", "width")
"""The columns of the boxes of `crop_and_resize`, in pixels."""

MAX_SIZE = 2**16
"""Largest number of rows, and of columns, of a result, pixels."""

AFFINE_NAMES = ("rotation", "scaling", "shear", "rows", "columns")
"""The columns of alpha of `affine`: radians, factor, slope, fractions of the sides."""

AFFINE_IDENTITY = (0.0, 1.0, 0.0, 0.0, 0.0)
"""The alpha of `affine` that leaves an image as it is."""


def crop_and_resize(
    images: Array,
    boxes: Array,
    *,
    size: int | tuple[int, int],
    method: str = "lanczos3",
) -> Array:
    """Returns the part of each image inside its box, resized with antialiasing.

    Computes two matrix products per image, along the columns and then along the rows.
    Output i weighs source pixel p by `share * kernel((p + .5 - center) / max(scale,
    1))`, normalized to sum 1, with `scale = length / size`, `center = start + (i + .5)
    scale` and share the fraction of pixel p inside the box. The result equals Pillow's
    crop and resize for boxes of whole pixels and is continuous in between. Each pass is
    clipped to [0, 1], as in Pillow. Deviations: nothing is rounded to 8 bits, and the
    columns always come first, while Pillow 13 and later reverse the order for some
    boxes taller than the output.

    Args:
      images: float `[B, H, W, C]`, values in [0, 1].
      boxes: `[B, 4]`, columns in the order of `BOX_NAMES`, real-valued. The part
        outside the image is cut off; if nothing is left, the result is black.
      size: output rows and columns, or one number for both, pixels.
      method: "lanczos3", or "bilinear" (the triangle kernel, Pillow's BILINEAR).

    Returns:
      `[B, *size, C]`, values in [0, 1].

    Raises:
      ValueError: if images or boxes have another shape, images are not floating, a size
        is not positive, or the method is unknown.

    Gradients: with respect to images and boxes, finite. Where a box edge lies on a
      whole pixel or a scale is 1, the derivative is the mean of the two one-sided ones
      (another value where several such kinks coincide). It is 0 where a pass reaches 0
      or 1. A box much smaller than a pixel has large derivatives.
    Cost: `size (H W + size H)` products per image and channel.
    """
    images, boxes = promote_rows(images, "boxes", boxes, BOX_NAMES)
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size must be one number or two; found {size}.")
    rows, columns = (check_integer("size", side, most=MAX_SIZE) for side in sides)
    check_choice("method", method, METHODS)
    top, left, height, width = jnp.unstack(boxes, axis=1)
    kernel = _KERNELS[method]
    column_weights = _weights(left, width, images.shape[2], columns, kernel)
    row_weights = _weights(top, height, images.shape[1], rows, kernel)
    # "highest": accelerators otherwise round float32 factors to 8 or 11 bits.
    # Channels stand before the columns so that both passes are plain matrix products.
    images = jnp.swapaxes(images, 2, 3)
    images = jnp.einsum("bhcw,bqw->bhcq", images, column_weights, precision="highest")
    images = clip_to_unit(images)
    images = jnp.einsum("bph,bhcq->bpcq", row_weights, images, precision="highest")
    return jnp.swapaxes(clip_to_unit(images), 2, 3)


# Compiled even if the caller is not: one operation at a time it is slow.
@partial(jax.jit, static_argnames=["num_pixels", "size", "kernel"])
def _weights(
    start: Array,
    length: Array,
    num_pixels: int,
    size: int,
    kernel: Callable[[Array], Array],
) -> Array:
    """Returns `[B, size, num_pixels]`, the weight of each source pixel per output."""
    end = start + length
    low, high = (jnp.clip(side, 0, num_pixels)[:, None] for side in (start, end))
    scale = (high - low) / size
    center = low + scale * (jnp.arange(size, dtype=start.dtype) + 0.5)[None]
    pixel = jnp.arange(num_pixels, dtype=start.dtype)[None]
    # The ends of the uncut box have one kink each at a whole pixel. The cut ends would
    # have two that coincide, whose derivative would be too small.
    share = jnp.minimum(end[:, None], pixel + 1)
    share = jnp.maximum(share - jnp.maximum(start[:, None], pixel), 0)
    distance = pixel[:, None] + 0.5 - center[..., None]
    weights = kernel(distance / jnp.maximum(scale, 1)[..., None]) * share[:, None]
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights * safe_divide(jnp.ones_like(total), total)


def _lanczos3(x: Array) -> Array:
    """Returns sinc(x) sinc(x / 3) within |x| < 3 and 0 beyond.

    With y = pi x / 3 and t = sin(y) / y this is `t^2 (1 - 4/3 sin^2 y)`. The power
    series of t is exact to 1e-15 on [-pi, pi] and needs neither a sine nor a division.
    Its derivatives of any order are exact near 0, where those of sin(y) / y cancel.
    """
    square = jnp.square(x * (np.pi / 3))
    inside = jnp.abs(x) < 3
    square = jnp.where(inside, square, 0)
    t = jnp.ones_like(square)
    for k in range(13, 0, -1):
        t = 1 - square * t / (2 * k * (2 * k + 1))
    t = jnp.square(t)
    return jnp.where(inside, t * (1 - square * t * (4 / 3)), 0)


def _triangle(x: Array) -> Array:
    return jnp.maximum(1 - jnp.abs(x), 0)


_KERNELS = {"lanczos3": _lanczos3, "bilinear": _triangle}

METHODS = tuple(_KERNELS)
"""The kernels of `crop_and_resize`."""


def erase(images: Array, boxes: Array, *, value: Sequence[float]) -> Array:
    """Returns the images with a box of one colour in each, Zhong et al. (2020).

    A pixel is erased if its centre lies inside the box.

    Args:
      images: float `[B, H, W, C]`.
      boxes: `[B, 4]`, columns in the order of `BOX_NAMES`.
      value: the colour, C numbers, or one number for all channels.

    Returns:
      `[B, H, W, C]`.

    Raises:
      ValueError: if images, boxes or value have another shape or images are not
        floating.

    Gradients: with respect to images; 0 in the boxes.
    """
    images, boxes = promote_rows(images, "boxes", boxes, BOX_NAMES)
    channels = images.shape[3]
    if np.shape(value) not in ((), (1,), (channels,)):
        raise ValueError(f"value must be one number or {channels}; found {value}.")
    starts, sizes = jnp.split(boxes, 2, axis=1)
    inside = []
    for axis in (0, 1):
        centre = jnp.arange(images.shape[1 + axis], dtype=boxes.dtype)[None] + 0.5
        start, size = starts[:, axis, None], sizes[:, axis, None]
        inside.append((centre >= start) & (centre < start + size))
    rows, columns = inside
    box = (rows[:, :, None] & columns[:, None])[..., None]
    colour = jnp.broadcast_to(jnp.asarray(value, images.dtype), (channels,))
    return jnp.where(box, colour[None, None, None], images)


def central_square(images: Array, *, size: int, method: str = "lanczos3") -> Array:
    """Returns the largest central square of the images, resized.

    Args:
      images: float `[B, H, W, C]`, values in [0, 1].
      size: S, pixels per side; a square that already has it is not resampled.
      method: see `crop_and_resize`.

    Returns:
      `[B, S, S, C]`, values in [0, 1].

    Raises:
      ValueError: if images have another shape or are not floating, the size is not
        positive, or the method is unknown.

    Gradients: with respect to images.
    """
    images = promote_images(images)
    size = check_integer("size", size, most=MAX_SIZE)
    check_choice("method", method, METHODS)
    side = min(images.shape[1:3])
    top, left = ((length - side) // 2 for length in images.shape[1:3])
    images = images[:, top : top + side, left : left + side]
    if side == size:
        return images
    box = jnp.array([[0, 0, side, side]], images.dtype)

    def resize(image: Array) -> Array:
        return crop_and_resize(image[None], box, size=size, method=method)[0]

    return jax.vmap(resize)(images)  # one pair of weight matrices for all images


def affine(images: Array, alpha: Array) -> Array:
    """Returns the images under an affine map about their centre, black outside.

    A source point (row, column) relative to the centre is sheared to (row, column +
    shear row), rotated counterclockwise, scaled, and moved by `rows` and `columns`,
    fractions of the image's sides. Each output pixel samples the source at the inverse
    map, bilinearly between the four nearest pixel centres, with zeros outside the
    image. The identity, `AFFINE_IDENTITY`, returns the images exactly.

    Args:
      images: float `[B, H, W, C]`.
      alpha: `[B, 5]`, columns in the order of `AFFINE_NAMES`, scaling not 0.

    Returns:
      `[B, H, W, C]`, values between the extremes of the images and 0.

    Raises:
      ValueError: if images or alpha have another shape, or images are not floating.

    Gradients: with respect to both. Where a sampled row or column is a whole number,
      as everywhere at the identity, the derivative is that for an increase of it.
    """
    images, alpha = promote_rows(images, "alpha", alpha, AFFINE_NAMES)
    num_rows, num_columns = images.shape[1:3]
    row, column = _source_points(alpha, num_rows, num_columns)
    # A border of one black pixel represents everything outside.
    images = jnp.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)])
    upper, down = _cell(row, num_rows)
    left, right = _cell(column, num_columns)
    flat = images.reshape(images.shape[0], -1, images.shape[3])

    def pixels(row: Array, column: Array) -> Array:
        index = (row * (num_columns + 2) + column).reshape(row.shape[0], -1, 1)
        values = jnp.take_along_axis(flat, index, axis=1, mode="clip")
        return values.reshape(*row.shape, -1)

    above = (1 - right) * pixels(upper, left) + right * pixels(upper, left + 1)
    below = (1 - right) * pixels(upper + 1, left) + right * pixels(upper + 1, left + 1)
    return (1 - down) * above + down * below


def _source_points(
    alpha: Array, num_rows: int, num_columns: int
) -> tuple[Array, Array]:
    """Returns the source row and column of each output pixel, each `[B, H, W]`."""
    rotation, scaling, shear, rows, columns = (
        value[:, None, None] for value in jnp.unstack(alpha, axis=1)
    )
    center_row, center_column = (num_rows - 1) / 2, (num_columns - 1) / 2
    row = jnp.arange(num_rows, dtype=alpha.dtype)[None, :, None] - center_row
    column = jnp.arange(num_columns, dtype=alpha.dtype)[None, None] - center_column
    row, column = row - rows * num_rows, column - columns * num_columns
    cos, sin = (safe_divide(wave(rotation), scaling) for wave in (jnp.cos, jnp.sin))
    row, column = cos * row + sin * column, cos * column - sin * row
    return row + center_row, column - shear * row + center_column


def _cell(position: Array, num_pixels: int) -> tuple[Array, Array]:
    """Returns the padded pixel before each position, and the next one's weight."""
    # Not `jnp.clip`, which halves the derivative at the ends.
    position = jnp.where(position >= num_pixels, num_pixels, position)
    position = jnp.where(position < -1, -1, position) + 1
    before = jnp.minimum(jnp.floor(position), num_pixels)
    return before.astype(jnp.int32), (position - before)[..., None]
