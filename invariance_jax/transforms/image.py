"""The transformation of images: crop, flip, affine, colours, blur, normalization.

The SimCLR transformation of Foster, Pukdee, Rainforth (ICLR 2021), section 5, and
further operations. It runs on the device and is differentiable in chosen parameters.
The draws for a key do not depend on what is differentiated, with two exceptions: if
they are differentiated, crop boxes are not rounded, and a jitter of probability 0 is
drawn.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from invariance_jax.arguments import (
    check_choice,
    check_integer,
    check_number,
    check_pair,
    check_range,
    promote,
)
from invariance_jax.transforms import blur, color, geometry
from invariance_jax.transforms.base import Squashed, Transformation
from invariance_jax.transforms.crops import crop_family
from invariance_jax.transforms.operations import (
    Family,
    Operation,
    Probability,
    compose,
    uniform_family,
)
from invariance_jax.types import Array

FAMILIES = ("crop", "affine", "colorize", "color", "blur")
"""Operations that may be differentiated, in the order of their columns in alpha."""

MAX_STRENGTH = 1.25
"""The largest strength of colour jitter: a factor may reach 0."""

JITTER_RANGES = (0.8, 0.8, 0.8, 0.2)
"""Half-widths of brightness, contrast, saturation and hue (turns) at strength 1."""

_SWITCHES = {
    "crop": "set crop=True",
    "affine": "give rotation, scaling, shear or translation a range above 0",
    "colorize": "set colorize=True",
    "blur": "give blur_probability a value above 0",
}
"""How to switch on an operation that is to be differentiated."""

_SIMCLR = {
    "strength": 0.5,
    "jitter_ranges": JITTER_RANGES,
    "blur_probability": 0.0,
    "solarize_probability": 0.0,
}
RECIPES: dict[str, dict[str, object]] = {
    "simclr_cifar": _SIMCLR,
    "simclr_imagenet": {**_SIMCLR, "strength": 1.0, "blur_probability": 0.5},
    "byol_imagenet": {
        "strength": 0.5,
        "jitter_ranges": (0.8, 0.8, 0.4, 0.2),
        "blur_probability": (1.0, 0.1),
        "solarize_probability": (0.0, 0.2),
    },
}
"""Arguments of `make_transformation` on which papers differ.

Chen et al. (2020), appendices A and B.9; Grill et al. (2020), appendix B, which Barlow
Twins, VICReg and MoCo v3 use too. All share a crop of .08 to 1 of the area, a flip,
jitter with probability .8 and grey with probability .2.
"""


def make_transformation(
    *,
    source_size: int | tuple[int, int],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    strength: float,
    jitter_probability: Probability,
    gray_probability: Probability,
    crop: bool,
    flip: bool,
    differentiate: Sequence[str] = ("color",),
    crop_area: tuple[float, float] = (0.08, 1.0),
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3),
    resampling: str = "lanczos3",
    colorize: bool = False,
    rotation: float = 0.0,
    scaling: float = 0.0,
    shear: float = 0.0,
    translation: float = 0.0,
    jitter_ranges: Sequence[float] = JITTER_RANGES,
    blur_probability: Probability = 0.0,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    solarize_probability: Probability = 0.0,
    solarize_threshold: float = 0.5,
    erase_probability: Probability = 0.0,
    erase_area: tuple[float, float] = (0.02, 0.33),
    squashed: bool = False,
    more: Sequence[Operation] = (),
) -> Transformation:
    """Returns the transformation that applies these operations to images, in order.

    1. "crop": random resized crop to image_size: area uniform, aspect log-uniform, up
       to 10 tries until the box fits, then the largest central box of an allowed
       aspect. Boxes have whole pixels unless "crop" is differentiated, because views
       have kinks at whole pixels. Without crop, the largest central square is resized,
       or left unchanged if it has image_size already.
    2. flip: left and right exchanged, with probability 1/2.
    3. "affine": `geometry.affine`, if a range is above 0.
    4. "colorize": `color.colorize`, foreground U(.4, 1), background U(0, .6).
    5. "color": `color.jitter` with jitter_probability; with s the strength, brightness,
       contrast and saturation are U(1 - .8 s, 1 + .8 s), hue U(-.2 s, .2 s) turns.
    6. gray: `color.to_grayscale` with gray_probability.
    7. "blur": `blur.gaussian_blur` with blur_probability, sigma uniform.
    8. solarize: `color.solarize` with solarize_probability.
    9. erase: `geometry.erase` with erase_probability, filled with the mean.
    10. normalization of each channel, `(image - mean) / std`.

    The examples x are uint8, or floating in [0, 1], `[B, H, W, 1 or 3]`; uint8 is
    divided by 255, one channel is repeated to three. `plain` is the central square,
    normalized. Alpha holds the columns of the differentiated operations, in the order
    of `FAMILIES`; all other random choices are in held. A probability may be a pair:
    for the first and for the second view of an example.

    Args:
      source_size: H and W of the examples, or one number for both, pixels.
      image_size: S, pixels per side of a view.
      mean: mean of each of the three channels, or one for all, in [0, 1] as the values
        of the images are.
      std: standard deviations likewise, above 0 and at most 1.
      strength: s, strength of the colour jitter, from 0 to 1.25, where a factor may
        reach 0.
      jitter_probability: probability of the colour jitter; at 0 the columns of "color"
        have no effect.
      gray_probability: probability of grayscale.
      crop: whether views are random resized crops.
      flip: whether views are flipped, each with probability 1/2.
      differentiate: operations whose parameters are in alpha; `()` for views without a
        derivative, P = 0.
      crop_area: least and greatest area of a box, fractions of the image's.
      crop_aspect: least and greatest width of a box over its height.
      resampling: method of `geometry.crop_and_resize`.
      colorize: whether grey images get a foreground and a background colour.
      rotation: r, at most pi: angles are U(-r, r), radians.
      scaling: r, below 1: factors are U(1 - r, 1 + r).
      shear: r, at most 2: slopes are U(-r, r).
      translation: r, at most 1: moves are U(-r, r), fractions of the sides.
      jitter_ranges: half-widths at strength 1, in place of .8, .8, .8 and .2 above.
      blur_probability: probability of the blur.
      blur_sigma: least and greatest standard deviation of the blur, pixels of the view.
      solarize_probability: probability of the solarization.
      solarize_threshold: values at or above it are inverted, in [0, 1].
      erase_probability: probability of the erased box.
      erase_area: least and greatest area of that box, fractions of the view's.
      squashed: whether examples are `Squashed` into source_size, a square. Areas and
        aspects of crops, and the central square, then refer to the original image.
      more: your own operations, applied after these and before the normalization.

    Returns:
      A `Transformation` whose names are the parameters of the differentiated
      operations: "crop.top", ..., "affine.rotation", ..., "rfore", ..., "brightness",
      ..., "blur.sigma". Draws are float32. `apply` and `plain` raise a ValueError if x
      has another size or dtype.

    Raises:
      ValueError: if an argument is outside its range, or differentiate names an unknown
        operation, one twice, or one that is switched off.
    """
    _check_switches(crop=crop, flip=flip, colorize=colorize, squashed=squashed)
    source, image_size = _source(source_size), check_integer("image_size", image_size)
    check_choice("resampling", resampling, geometry.METHODS)
    _check_channels(mean=mean, std=std, threshold=solarize_threshold)
    probability = partial(check_pair, low=0, high=1)
    jitter = probability("jitter_probability", jitter_probability)
    blurring = probability("blur_probability", blur_probability)
    erasing = probability("erase_probability", erase_probability)
    resize = partial(geometry.crop_and_resize, size=image_size, method=resampling)
    floating = partial(_floating, source=source)
    square = partial(_square, source=source, resize=resize)
    normalize = partial(_normalize, mean=mean, std=std)
    box = crop_family(
        source_size=source,
        area=crop_area,
        aspect=crop_aspect,
        whole_pixels="crop" not in differentiate,
        squashed=squashed,
    )
    affine_family = _affine_family(rotation, scaling, shear, translation)
    jitter_family = _jitter_family(strength, jitter_ranges)
    check_range("blur_sigma", blur_sigma)
    blur_family = uniform_family(bounds={"blur.sigma": blur_sigma})
    erased_box = _erase_family(image_size, erase_area)
    erase = partial(geometry.erase, value=mean)
    invert = partial(_solarized, threshold=solarize_threshold)
    has_affine = max(rotation, scaling, shear, translation) > 0
    has_jitter = max(jitter) > 0 or "color" in differentiate
    switched = [
        (crop, Operation("crop", resize, box)),
        (flip, Operation("flip", _mirrored, probability=0.5)),
        (has_affine, Operation("affine", geometry.affine, affine_family)),
        (True, Operation("channels", _three_channels)),
        (colorize, Operation("colorize", color.colorize, _COLOURS)),
        (has_jitter, Operation("color", color.jitter, jitter_family, jitter)),
        (True, Operation("gray", _gray, probability=gray_probability)),
        (max(blurring) > 0, Operation("blur", _blurred, blur_family, blurring)),
        (True, Operation("solarize", invert, probability=solarize_probability)),
        (max(erasing) > 0, Operation("erase", erase, erased_box, erasing)),
        *((True, operation) for operation in more),
        (True, Operation("normalization", normalize)),
    ]
    operations = [operation for is_on, operation in switched if is_on]
    names = {operation.name for operation in operations}
    off = [name for name in _SWITCHES if name in differentiate and name not in names]
    if off:
        raise ValueError(
            f"differentiate names {off[0]!r}, which is off: {_SWITCHES[off[0]]}."
        )
    return compose(
        operations,
        differentiate=differentiate,
        prepare=floating if crop else square,
        plain=lambda x: normalize(_three_channels(square(x, jnp.float32))),
    )


_COLOURS = uniform_family(
    bounds={
        name: (0.4, 1.0) if name.endswith("fore") else (0.0, 0.6)
        for name in color.COLORIZE_NAMES
    }
)
"""The distribution of the colours of `color.colorize`, as in Spirograph."""


def _jitter_family(strength: float, ranges: Sequence[float]) -> Family:
    """Returns the distribution of alpha of `color.jitter`, centred on no change."""
    unit = "as factors would be negative beyond"
    check_number("strength", strength, low=0, high=MAX_STRENGTH, unit=unit)
    if np.shape(ranges) != (4,):
        raise ValueError(f"jitter_ranges must be four numbers; found {ranges}.")
    for value, most in zip(ranges, (0.8, 0.8, 0.8, 0.4), strict=True):
        check_number("jitter_ranges", value, low=0, high=most)
    half = strength * np.array(ranges)
    return _centred((1.0, 1.0, 1.0, 0.0), half, color.JITTER_NAMES)


def _affine_family(
    rotation: float, scaling: float, shear: float, translation: float
) -> Family:
    """Returns the distribution of alpha of `geometry.affine`, about the identity."""
    for name, value, most, unit in [
        ("rotation", rotation, math.pi, "radians, not degrees"),
        ("scaling", scaling, 1 - 2**-20, "the factors' distance from 1"),
        ("shear", shear, 2.0, "a slope, not degrees"),
        ("translation", translation, 1.0, "fractions of the sides, not pixels"),
    ]:
        check_number(name, value, low=0, high=most, unit=unit)
    half = [rotation, scaling, shear, translation, translation]
    names = [f"affine.{name}" for name in geometry.AFFINE_NAMES]
    return _centred(geometry.AFFINE_IDENTITY, np.array(half), names)


def _centred(centre: Sequence[float], half: np.ndarray, names: Sequence[str]) -> Family:
    """Returns uniform distributions with these centres and half-widths."""
    ends = zip(np.array(centre) - half, np.array(centre) + half, strict=True)
    return uniform_family(bounds=dict(zip(names, ends, strict=True)))


def _erase_family(image_size: int, area: tuple[float, float]) -> Family:
    """Returns the distribution of the box of `geometry.erase`, Zhong et al. (2020)."""
    return crop_family(
        source_size=(image_size, image_size),
        area=area,
        aspect=(0.3, 3.3),
        whole_pixels=True,
        name="erase",
    )


def _floating(
    x: Array | Squashed, dtype: DTypeLike, *, source: tuple[int, int]
) -> Array:
    """Returns floating images; divides uint8 by 255 in the given dtype."""
    rows, columns = source
    x = x.pixels if isinstance(x, Squashed) else x
    if x.shape[1:] not in [(rows, columns, 1), (rows, columns, 3)]:
        raise ValueError(
            f"the images x must be [B, {rows}, {columns}, 1 or 3], the size of the "
            f"data set (source_size); found {list(x.shape)}."
        )
    if x.dtype == jnp.uint8:
        return jnp.asarray(x).astype(dtype) / 255
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            "the images x must be uint8, or floating with values in [0, 1]; found "
            f"{x.dtype}."
        )
    return promote(x=x)[0]


def _square(
    x: Array | Squashed,
    dtype: DTypeLike,
    *,
    source: tuple[int, int],
    resize: "partial[Array]",
) -> Array:
    """Returns the largest central squares, of the original images if squashed."""
    images = _floating(x, dtype, source=source)
    if not isinstance(x, Squashed):
        return geometry.central_square(images, **resize.keywords)
    sides = jnp.min(x.sizes, axis=1, keepdims=True) / x.sizes * source[0]
    boxes = jnp.concatenate([(source[0] - sides) / 2, sides], axis=1)
    result: Array = resize(images, boxes.astype(images.dtype))
    return result


def _mirrored(images: Array, _: Array) -> Array:
    return images[:, :, ::-1]


def _three_channels(images: Array, *_: Array) -> Array:
    return jnp.broadcast_to(images, (*images.shape[:3], 3))


def _gray(images: Array, _: Array) -> Array:
    return color.to_grayscale(images)


def _blurred(images: Array, sigma: Array) -> Array:
    return blur.gaussian_blur(images, sigma[:, 0])


def _solarized(images: Array, _: Array, *, threshold: float) -> Array:
    return color.solarize(images, jnp.full(len(images), threshold, images.dtype))


def _normalize(
    images: Array, *_: Array, mean: Sequence[float], std: Sequence[float]
) -> Array:
    shift, scale = (
        jnp.broadcast_to(jnp.asarray(value, images.dtype), (1, 1, 1, 3))
        for value in (mean, std)
    )
    return (images - shift) / scale


def _source(source_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = np.ravel(source_size).tolist()
    if len(sides) not in (1, 2) or any(side != int(side) or side < 1 for side in sides):
        raise ValueError(
            "source_size must be the positive rows and columns of the examples, or one "
            f"number for both; found {source_size}."
        )
    return int(sides[0]), int(sides[-1])


def _check_switches(**switches: bool) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(
                f"{name} must be True or False, not a probability; found {value!r}."
            )


def _check_channels(threshold: float, **channels: Sequence[float]) -> None:
    unit = "of values in [0, 1]: divide those of 8-bit images by 255"
    check_number("solarize_threshold", threshold, low=0, high=1, unit=unit)
    for name, values in channels.items():
        if np.ndim(values) != 1 or len(values) not in (1, 3):
            raise ValueError(
                f"{name} must be three finite numbers, one per channel, or one for "
                f"all; found {values}."
            )
        for value in values:
            above = name == "std"
            check_number(name, value, low=0, high=1, above=above, unit=unit)
