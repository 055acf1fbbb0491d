"""The distributions of the random parameters of an image transformation.

Section 5 of Foster, Pukdee, Rainforth (ICLR 2021) and the SimCLR augmentation. A family
is a group of parameters that are differentiated or held together; all are uniform and
independent, except the box of the random resized crop.
"""

import difflib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_number
from invariance_jax.transforms import color, geometry
from invariance_jax.types import Array, PyTree

FAMILIES = ("crop", "affine", "colorize", "color", "blur")
"""What may be differentiated, in the order of the columns of alpha."""

CROP_TRIES = 10
"""Boxes that are drawn at most until one fits into the image."""

MAX_STRENGTH = 1.25
"""The strength of colour jitter at which a factor may reach 0."""


JITTER_RANGES = (0.8, 0.8, 0.8, 0.2)
"""Ranges of brightness, contrast, saturation and hue (turns) at strength 1: SimCLR."""

_SWITCHES = {
    "crop": "set crop=True",
    "affine": "give rotation, scaling, shear or translation a range above 0",
    "colorize": "set colorize=True",
    "color": "give jitter_probability a value above 0",
    "blur": "give blur_probability a value above 0",
}


class Family(NamedTuple):
    """Parameters that go together, the columns of an array with a row per example.

    Attributes:
      names: of the columns.
      bounds: a row per column, the ends of its distribution.
      num_uniform: uniform numbers that one example takes.
      draw: the parameters as a function of these numbers in [0, 1), a row per example.
      draw_sized: the same of images of many sizes, of the numbers and of int32 `[B, 2]`
        heights and widths; None where they change nothing.
    """

    names: tuple[str, ...]
    bounds: np.ndarray
    num_uniform: int
    draw: Callable[[Array], Array]
    draw_sized: Callable[[Array, Array], Array] | None = None


NO_PARAMETERS = Family((), np.zeros((0, 2)), 0, lambda unit: unit)
"""That of an operation without parameters."""


def jitter_family(
    *, strength: float, ranges: Sequence[float] = JITTER_RANGES
) -> Family:
    """Returns the distribution of `color.jitter`.

    With s the strength and r the ranges: brightness, contrast and saturation
    U(1 - r s, 1 + r s), hue U(-r s, r s) turns.

    Args:
      strength: 0 to `MAX_STRENGTH`, .5 in the paper.
      ranges: of the four at strength 1, those of brightness, contrast and saturation at
        most .8, hue at most .4 turns; (.8, .8, .8, .2) in the paper.

    Returns:
      `Family`, columns in the order of `color.JITTER_NAMES`.

    Raises:
      ValueError: if the strength or a range is outside its own range.
    """
    unit = "as factors would be negative beyond"
    check_number("strength", strength, low=0, high=MAX_STRENGTH, unit=unit)
    if len(ranges) != 4:
        raise ValueError(f"jitter_ranges must be four numbers; found {ranges}.")
    for value, most in zip(ranges, (0.8, 0.8, 0.8, 0.4), strict=True):
        check_number("jitter_ranges", value, low=0, high=most)
    half, middle = strength * np.array(ranges), np.array([1, 1, 1, 0])
    return _uniform(color.JITTER_NAMES, np.stack([middle - half, middle + half], 1))


def colorize_family() -> Family:
    """Returns the distribution of `color.colorize`, that of Spirograph's colours.

    Returns:
      `Family`, columns in the order of `color.COLORIZE_NAMES`: foreground U(.4, 1),
      background U(0, .6).
    """
    return _uniform(color.COLORIZE_NAMES, 3 * [[0.4, 1.0], [0.0, 0.6]])


def blur_family(*, sigma: tuple[float, float]) -> Family:
    """Returns the distribution of `blur.gaussian_blur`, uniform.

    Args:
      sigma: least and greatest standard deviation, pixels, (.1, 2) in SimCLR.

    Returns:
      `Family`, of one column, "blur.sigma".

    Raises:
      ValueError: if the ends are not two positive numbers in order.
    """
    _check_range("blur_sigma", sigma, math.inf)
    return uniform_family(bounds={"blur.sigma": sigma})


def affine_family(
    *, rotation: float, scaling: float, shear: float, translation: float
) -> Family:
    """Returns the distribution of `geometry.affine`, uniform about the identity.

    Args:
      rotation: r, angles are U(-r, r), radians, at most pi.
      scaling: r below 1, factors are U(1 - r, 1 + r).
      shear: r, slopes are U(-r, r), at most 2.
      translation: r, shares of the sides are U(-r, r), at most 1.

    Returns:
      `Family`, columns in the order of `geometry.AFFINE_NAMES`, named "affine.NAME".

    Raises:
      ValueError: if a range is negative or larger than can be meant: in degrees, say.
    """
    for name, value, most, unit in [
        ("rotation", rotation, math.pi, "radians, not degrees"),
        ("scaling", scaling, 1 - 2**-20, "the factors' distance from 1"),
        ("shear", shear, 2.0, "a slope, not degrees"),
        ("translation", translation, 1.0, "shares of the sides, not pixels"),
    ]:
        check_number(name, value, low=0, high=most, unit=unit)
    half = np.array([rotation, scaling, shear, translation, translation])
    identity = np.array(geometry.AFFINE_IDENTITY)
    names = [f"affine.{name}" for name in geometry.AFFINE_NAMES]
    return _uniform(names, np.stack([identity - half, identity + half], axis=1))


def erase_family(*, image_size: int, area: tuple[float, float]) -> Family:
    """Returns the distribution of the box of `geometry.erase`, Zhong et al. (2020).

    That of a crop with an aspect of .3 to 3.3.

    Args:
      image_size: side of a view, pixels.
      area: least and greatest area, shares of the view's; (.02, .33) in torchvision.

    Returns:
      `Family`, columns in the order of `geometry.BOX_NAMES`, named "erase.NAME".

    Raises:
      ValueError: if the area is reversed, not positive, or exceeds 1.
    """
    _check_range("erase_area", area, 1.0)
    box = crop_family(
        source_size=(image_size, image_size),
        area=area,
        aspect=(0.3, 3.3),
        whole_pixels=True,
    )
    return box._replace(names=tuple(f"erase.{name}" for name in geometry.BOX_NAMES))


def crop_family(
    *,
    source_size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    whole_pixels: bool,
    squashed: bool = False,
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

    Returns:
      `Family`, columns in the order of `geometry.BOX_NAMES`, named "crop.NAME".

    Raises:
      ValueError: if area or aspect is reversed or not positive, or an area exceeds 1.
    """
    _check_range("crop_area", area, 1.0)
    _check_range("crop_aspect", aspect, math.inf)
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

    names = tuple(f"crop.{name}" for name in geometry.BOX_NAMES)
    sized = draw_sized if squashed else None
    return Family(names, bounds.T, 2 + 2 * CROP_TRIES, draw, sized)


def check_differentiated(on: Collection[str], *, differentiate: Sequence[str]) -> None:
    """Checks the names of the families that are differentiated.

    Args:
      on: the families that are switched on.
      differentiate: names of families in any order, or none.

    Raises:
      ValueError: if a name is unknown, given twice, or not among those that are on.
    """
    names = [differentiate] if isinstance(differentiate, str) else list(differentiate)
    for name in names:
        if name not in FAMILIES:
            near = difflib.get_close_matches(str(name), FAMILIES, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"differentiate names the unknown family {name!r}; expected some of "
                f"{', '.join(FAMILIES)}.{hint}"
            )
        if names.count(name) > 1:
            raise ValueError(f"differentiate must name {name!r} once; found {names}.")
        if name not in on:
            raise ValueError(
                f"differentiate names {name!r}, which is off: {_SWITCHES[name]}."
            )


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


def uniform_family(*, bounds: Mapping[str, Sequence[float]]) -> Family:
    """Returns the uniform distribution of some parameters.

    Args:
      bounds: the name of each and its ends, (least, greatest).

    Returns:
      `Family`, of columns with these names, in their order.

    Raises:
      ValueError: if there is not a pair of finite, ordered ends for each name.
    """
    for name, pair in bounds.items():
        if len(pair) != 2 or not -math.inf < pair[0] <= pair[1] < math.inf:
            raise ValueError(
                f"bounds of {name!r} must be (least, greatest), finite; found {pair}."
            )
    rows = np.array([*bounds.values()], np.float64)

    def draw(unit: Array) -> Array:
        low, high = jnp.asarray(rows.T, jnp.float32)[:, None]
        return low + (high - low) * unit

    return Family(tuple(bounds), rows, len(rows), draw)


def _uniform(names: Sequence[str], rows: np.ndarray | list[list[float]]) -> Family:
    return uniform_family(bounds=dict(zip(names, rows, strict=True)))


def _check_range(name: str, ends: tuple[float, float], limit: float) -> None:
    if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= limit or ends[1] == math.inf:
        raise ValueError(
            f"{name} must be (least, greatest), positive, ordered and at most {limit}; "
            f"found {tuple(ends)}."
        )
