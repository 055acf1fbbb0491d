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
"""Boxes that are drawn at most until one fits into the image."""


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

    Area uniform, aspect log-uniform, the box anywhere inside the image; drawn until it
    fits, after `CROP_TRIES` misses the largest central box of an allowed aspect.

    Args:
      source_size: H and W, pixels.
      area: least and greatest area, shares of the image's.
      aspect: least and greatest width over height.
      whole_pixels: whether height and width are rounded, as in the paper, before it is
        seen whether they fit; if not the distribution is the same without rounding.
      squashed: whether images of many sizes are squashed into source_size, a square:
        `draw_sized` draws boxes of these aspects in the image as it was, and gives them
        in the pixels of the square.
      name: of the family: its columns are "NAME.top", ..., as `geometry.BOX_NAMES`.

    Returns:
      A `Family`.

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
    if squashed:  # a box of a very long image may have any height or width
        bounds = np.array([[0.0] * 4, [*source_size] * 2])

    def place(unit: Array, change: Array, fallback: Array) -> Array:
        tries = unit[:, 2:], change, source_size, area, aspect, whole_pixels
        sizes, fits = _sizes(*tries)
        first = jnp.argmax(fits, axis=1)[:, None, None]
        size = jnp.take_along_axis(sizes, first, axis=1)[:, 0]
        room = jnp.asarray(source_size, jnp.float32)[None] - size
        # Every one of the room + 1 whole places is as likely; rounding may reach + 1.
        whole = jnp.minimum(jnp.floor(unit[:, :2] * (room + 1)), room)
        start = whole if whole_pixels else unit[:, :2] * room
        boxes = jnp.concatenate([start, size], axis=1)
        return jnp.where(jnp.any(fits, axis=1)[:, None], boxes, fallback)

    def draw(unit: Array) -> Array:
        fallback = jnp.asarray(central, jnp.float32)[None]
        return place(unit, jnp.ones((1, 1), jnp.float32), fallback)

    def draw_sized(unit: Array, sizes: Array) -> Array:
        change = (sizes[:, :1] / sizes[:, 1:]).astype(jnp.float32)
        fallback = _central_boxes(change, source_size, aspect, whole_pixels)
        return place(unit, change, fallback)

    names = tuple(f"{name}.{column}" for column in geometry.BOX_NAMES)
    sized = draw_sized if squashed else None
    return Family(names, bounds.T, 2 + 2 * CROP_TRIES, draw, sized)


def _sizes(
    unit: Array,
    change: Array,
    source_size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    whole_pixels: bool,
) -> tuple[Array, Array]:
    """Returns heights and widths `[B, tries, 2]`, and whether each try fits.

    Change `[B or 1, 1]` is what squashing has multiplied the aspects by.
    """
    share, turn = jnp.split(unit, 2, axis=1)
    share = area[0] + (area[1] - area[0]) * share
    # The logarithm of the square root of the aspect.
    log_low, log_high = (math.log(value) / 2 for value in aspect)
    stretch = jnp.exp(log_low + (log_high - log_low) * turn) * jnp.sqrt(change)
    side = jnp.sqrt(share * (source_size[0] * source_size[1]))
    sizes = jnp.stack([side / stretch, side * stretch], axis=-1)
    if whole_pixels:
        sizes = jnp.round(sizes)
    limits = jnp.asarray(source_size, jnp.float32)[None, None]
    return sizes, jnp.all((sizes > 0) & (sizes <= limits), axis=-1)


def _central_boxes(
    change: PyTree,
    source_size: tuple[int, int],
    aspect: tuple[float, float],
    whole_pixels: bool,
    xp: ModuleType = jnp,
) -> PyTree:
    """Returns the largest central boxes whose aspect is allowed, `[B, 4]`.

    Of squashed images, by jax.numpy or numpy; change as in `_sizes`.
    """
    rows, columns = source_size
    height = xp.minimum(rows, columns / (aspect[0] * change))
    width = xp.minimum(columns, rows * aspect[1] * change)
    size = xp.concatenate([height, width], axis=1)
    if whole_pixels:
        size = xp.maximum(xp.round(size), 1)
    start = (xp.asarray(source_size, change.dtype)[None] - size) / 2
    start = xp.floor(start) if whole_pixels else start
    return xp.concatenate([start, size], axis=1)
