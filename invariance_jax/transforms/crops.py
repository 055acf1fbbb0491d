"""The distribution of the box of a random resized crop."""

import math
from types import ModuleType

import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_range
from invariance_jax.transforms import geometry
from invariance_jax.transforms.operations import Family
from invariance_jax.types import Array, PyTree

CROP_TRIES = 10
"""Largest number of boxes that are drawn until one fits into the image."""


def crop_family(
    *,
    source_size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    whole_pixels: bool,
    squashed: bool = False,
    name: str = "crop",
) -> Family:
    """Returns the distribution of the box of the random resized crop.

    The area is uniform, the aspect log-uniform, and the position uniform inside the
    image. Boxes are drawn until one fits. After `CROP_TRIES` misses, the largest
    central box of an allowed aspect is used.

    Args:
      source_size: H and W, pixels.
      area: least and greatest area, fractions of the image's.
      aspect: least and greatest width over height.
      whole_pixels: whether boxes have whole pixels: height and width are rounded before
        the test whether they fit, as in the paper. False: nothing is rounded.
      squashed: whether images are `Squashed` into source_size, a square. `draw_sized`
        then draws boxes of these aspects in the original image and returns them in
        pixels of the square.
      name: name of the family; its columns are "NAME.top", ..., as in
        `geometry.BOX_NAMES`.

    Returns:
      The `Family` of the box.

    Raises:
      ValueError: if area or aspect is reversed or not positive, or an area exceeds 1.
    """
    check_range(f"{name}_area", area, most=1.0)
    check_range(f"{name}_aspect", aspect)
    rows, columns = source_size
    (central,) = _central_boxes(
        np.ones((1, 1)), source_size, aspect, whole_pixels, xp=np
    )
    pixels = np.array(area) * rows * columns
    low = np.sqrt([pixels[0] / aspect[1], pixels[0] * aspect[0]])
    high = np.sqrt([pixels[1] / aspect[0], pixels[1] * aspect[1]])
    if whole_pixels:
        low, high = np.round(low), np.round(high)
    low = np.minimum(low, central[2:])
    high = np.maximum(np.minimum(high, source_size), central[2:])
    bounds = np.array([[0, 0, *low], [*(np.array(source_size) - low), *high]])
    if squashed:  # the box of a very long image may have any height or width
        bounds = np.array([[0.0] * 4, [*source_size] * 2])

    def first_that_fits(unit: Array, stretch: Array, fallback: Array) -> Array:
        limits = source_size, area, aspect, whole_pixels
        sizes, fits = _sizes(unit[:, 2:], stretch, *limits)
        first = jnp.argmax(fits, axis=1)[:, None, None]
        size = jnp.take_along_axis(sizes, first, axis=1)[:, 0]
        room = jnp.asarray(source_size, jnp.float32)[None] - size
        # The room + 1 whole positions are equally likely; rounding may reach room + 1.
        whole = jnp.minimum(jnp.floor(unit[:, :2] * (room + 1)), room)
        start = whole if whole_pixels else unit[:, :2] * room
        boxes = jnp.concatenate([start, size], axis=1)
        return jnp.where(jnp.any(fits, axis=1)[:, None], boxes, fallback)

    def draw(unit: Array) -> Array:
        fallback = jnp.asarray(central, jnp.float32)[None]
        return first_that_fits(unit, jnp.ones((1, 1), jnp.float32), fallback)

    def draw_sized(unit: Array, sizes: Array) -> Array:
        stretch = (sizes[:, :1] / sizes[:, 1:]).astype(jnp.float32)
        fallback = _central_boxes(stretch, source_size, aspect, whole_pixels)
        return first_that_fits(unit, stretch, fallback)

    names = tuple(f"{name}.{column}" for column in geometry.BOX_NAMES)
    sized = draw_sized if squashed else None
    return Family(names, bounds.T, 2 + 2 * CROP_TRIES, draw, sized)


def _sizes(
    unit: Array,
    stretch: Array,
    source_size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    whole_pixels: bool,
) -> tuple[Array, Array]:
    """Returns heights and widths `[B, tries, 2]`, and whether each try fits.

    `stretch`, `[B or 1, 1]`, is the factor by which squashing multiplies the aspect.
    """
    area_unit, aspect_unit = jnp.split(unit, 2, axis=1)
    fraction = area[0] + (area[1] - area[0]) * area_unit
    # The square root of the aspect is log-uniform too.
    log_low, log_high = (math.log(value) / 2 for value in aspect)
    root = jnp.exp(log_low + (log_high - log_low) * aspect_unit) * jnp.sqrt(stretch)
    side = jnp.sqrt(fraction * (source_size[0] * source_size[1]))
    sizes = jnp.stack([side / root, side * root], axis=-1)
    if whole_pixels:
        sizes = jnp.round(sizes)
    limits = jnp.asarray(source_size, jnp.float32)[None, None]
    return sizes, jnp.all((sizes > 0) & (sizes <= limits), axis=-1)


def _central_boxes(
    stretch: PyTree,
    source_size: tuple[int, int],
    aspect: tuple[float, float],
    whole_pixels: bool,
    xp: ModuleType = jnp,
) -> PyTree:
    """Returns the largest central boxes of an allowed aspect, `[B, 4]`.

    `stretch` is that of `_sizes`; `xp` is jax.numpy or numpy.
    """
    rows, columns = source_size
    height = xp.minimum(rows, columns / (aspect[0] * stretch))
    width = xp.minimum(columns, rows * aspect[1] * stretch)
    size = xp.concatenate([height, width], axis=1)
    if whole_pixels:
        size = xp.maximum(xp.round(size), 1)
    start = (xp.asarray(source_size, stretch.dtype)[None] - size) / 2
    start = xp.floor(start) if whole_pixels else start
    return xp.concatenate([start, size], axis=1)
