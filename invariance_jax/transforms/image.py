"""The transformation of images: crop, flip, affine, colours, normalization.

The SimCLR family of Foster, Pukdee, Rainforth (ICLR 2021), section 5, on the device and
differentiable in the parameters that are chosen; affine maps and the colouring of grey
images beside it. What is drawn for one key does not depend on what is differentiated,
the rounding of crop boxes aside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import (
    check_choice,
    check_integer,
    check_number,
    check_shape,
    promote,
)
from invariance_jax.transforms import blur, color, distributions, geometry
from invariance_jax.transforms.base import Squashed, Transformation, View
from invariance_jax.transforms.distributions import FAMILIES
from invariance_jax.types import Array, Key


def make_transformation(
    *,
    source_size: int | tuple[int, int],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    strength: float,
    jitter_probability: float,
    gray_probability: float,
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
    blur_probability: float = 0.0,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    solarize_probability: float = 0.0,
    solarize_threshold: float = 0.5,
    squashed: bool = False,
) -> Transformation:
    """Returns the transformation of images, in this order of operations.

    1. "crop": random resized crop to image_size: area uniform, aspect log-uniform, up
       to 10 tries until the box fits, then the largest central box of an allowed
       aspect. Boxes have whole pixels, except where "crop" is differentiated: there the
       share that a box covers of a pixel has a kink. Without crop the largest central
       square is resized, or left as it is where it has image_size already.
    2. flip: left and right exchanged, with probability 1/2.
    3. "affine": `geometry.affine`, where a range is above 0.
    4. "colorize": `color.colorize`, foreground U(.4, 1), background U(0, .6).
    5. "color": `color.jitter` with jitter_probability; with s the strength, brightness,
       contrast and saturation are U(1 - .8 s, 1 + .8 s), hue U(-.2 s, .2 s) turns.
    6. gray: `color.to_grayscale` with gray_probability.
    7. "blur": `blur.gaussian_blur` with blur_probability, sigma uniform.
    8. solarization: `color.solarize` with solarize_probability.
    9. normalization of each channel, `(image - mean) / std`.

    The examples x are uint8, or floating in [0, 1], `[B, H, W, 1 or 3]`; uint8 is
    divided by 255, one channel is repeated to three. `plain` is the central square,
    normalized. Alpha holds the columns of what is differentiated, in the order of
    `FAMILIES`; all other random choices are in held. Where a gate is off alpha has no
    effect and its derivative is exactly zero.

    Args:
      source_size: H and W of the examples, or one number for both, pixels.
      image_size: S, pixels per side of a view.
      mean: of each of the three channels, or a single one for all, in [0, 1] as the
        values of the images are.
      std: standard deviations likewise, above 0 and at most 1.
      strength: s, of the colour jitter, 0 to 1.25, where a factor may reach 0.
      jitter_probability: of the colour jitter; at 0 alpha of "color" has no effect.
      gray_probability: of grayscale.
      crop: whether views are random resized crops.
      flip: whether views are flipped, each with probability 1/2.
      differentiate: the families in alpha; `()` for views without a derivative, P = 0.
      crop_area: least and greatest area of a box, shares of the image's.
      crop_aspect: least and greatest width of a box over its height.
      resampling: method of `geometry.crop_and_resize`.
      colorize: whether grey images get a foreground and a background colour.
      rotation: r, angles are U(-r, r), radians, at most pi.
      scaling: r below 1, factors are U(1 - r, 1 + r).
      shear: r, slopes are U(-r, r), at most 2.
      translation: r, shares of the sides are U(-r, r), at most 1.
      blur_probability: of the blur.
      blur_sigma: least and greatest standard deviation of the blur, pixels of the view.
      solarize_probability: of the solarization.
      solarize_threshold: the value from which on it inverts, in [0, 1].
      squashed: whether examples are `Squashed` into source_size, a square: crops then
        have area and aspect in the image as it was, and the central square is its.

    Returns:
      A `Transformation` with the names "crop.top", ..., "affine.rotation", ...,
      "rfore", ..., "brightness", ..., "blur.sigma", those that are differentiated. A
      sampler's draws are float32; apply refuses x of another size or dtype with a
      ValueError.

    Raises:
      ValueError: if an argument is outside its range or in another unit, or
        differentiate names an unknown family, one twice, or one that is switched off.
    """
    _check_switches(crop=crop, flip=flip, colorize=colorize, squashed=squashed)
    source, image_size = _source(source_size), check_integer("image_size", image_size)
    check_choice("resampling", resampling, geometry.METHODS)
    _check_channels(mean=mean, std=std, threshold=solarize_threshold)
    gates = _gates(
        flip=flip / 2,
        jitter=jitter_probability,
        gray=gray_probability,
        blur=blur_probability,
        solarize=solarize_probability,
    )
    families = {
        "crop": distributions.crop_family(
            source_size=source,
            area=crop_area,
            aspect=crop_aspect,
            whole_pixels="crop" not in differentiate,
            squashed=squashed,
        ),
        "affine": distributions.affine_family(
            rotation=rotation, scaling=scaling, shear=shear, translation=translation
        ),
        "colorize": distributions.colorize_family(),
        "color": distributions.jitter_family(strength=strength),
        "blur": distributions.blur_family(sigma=blur_sigma),
    }
    moved = max(rotation, scaling, shear, translation) > 0
    colored = jitter_probability > 0 or "color" in differentiate
    on = crop, moved, colorize, colored, blur_probability > 0
    families = {f: families[f] for f, is_on in zip(FAMILIES, on, strict=True) if is_on}
    free = distributions.in_order(families, differentiate=differentiate)
    return _Operations(
        source=source,
        image_size=image_size,
        resampling=resampling,
        mean=tuple(mean),
        std=tuple(std),
        free={name: families.pop(name) for name in free},
        held=families,
        gates=gates,
        threshold=solarize_threshold,
        squashed=squashed,
    ).transformation()


@dataclass(frozen=True)
class _Operations:
    """What the functions of a transformation share; free is in the order of alpha."""

    source: tuple[int, int]
    image_size: int
    resampling: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    free: dict[str, distributions.Family]
    held: dict[str, distributions.Family]
    gates: dict[str, float]
    threshold: float
    squashed: bool

    def transformation(self) -> Transformation:
        families = list(self.free.values())
        sized = self.squashed and "crop" in self.free | self.held
        return Transformation(
            names=tuple(name for family in families for name in family.names),
            bounds=np.concatenate([np.zeros((0, 2)), *(f.bounds for f in families)]),
            sample=self.sample,
            apply=self.apply,
            plain=self.plain,
            sample_sized=self.sample_sized if sized else None,
        )

    def sample_sized(self, key: Key, sizes: Array) -> View:
        return self.sample(key, len(sizes), sizes)

    def sample(self, key: Key, batch_size: int, sizes: Array | None = None) -> View:
        families = self.free | self.held
        on = [name for name in FAMILIES if name in families]
        counts = [len(self.gates), *(families[name].num_uniform for name in on)]
        # One call for all numbers: each would take long to compile.
        unit = jax.random.uniform(key, (batch_size, sum(counts)), jnp.float32)
        doors, *parts = jnp.split(unit, np.cumsum(counts)[:-1], axis=1)
        drawn = {
            name: distributions.draw(families[name], part, sizes)
            for name, part in zip(on, parts, strict=True)
        }
        for column, (name, probability) in enumerate(self.gates.items()):
            drawn[name] = doors[:, column] < probability
        alpha = [drawn.pop(name) for name in self.free]
        empty = jnp.zeros((batch_size, 0), jnp.float32)
        return View(jnp.concatenate([empty, *alpha], axis=1), drawn)

    def apply(self, x: Array | Squashed, view: View) -> Array:
        (alpha,) = promote(alpha=view.alpha)
        images, sizes = self._floating(x, alpha.dtype)
        parameters = self._parameters(View(alpha, view.held), images.shape[0])
        if "crop" in parameters:
            images = geometry.crop_and_resize(
                images,
                parameters["crop"],
                size=self.image_size,
                method=self.resampling,
            )
        else:
            images = self._central_square(images, sizes)
        images = _transform(images, parameters, self.threshold)
        return self._normalize(images)

    def plain(self, x: Array | Squashed) -> Array:
        images, sizes = self._floating(x, jnp.float32)
        return self._normalize(_three_channels(self._central_square(images, sizes)))

    def _parameters(self, view: View, batch_size: int) -> dict[str, Array]:
        """Returns what each operation needs, from alpha and held."""
        sizes = [len(family.names) for family in self.free.values()]
        expected = (batch_size, sum(sizes))
        check_shape(
            "alpha", view.alpha, expected, expected=f"{list(expected)}, a row per x"
        )
        held, names = dict(view.held), {*self.held, *self.gates}
        if set(held) != names:
            raise ValueError(
                f"view.held must have {sorted(names)}, as sample draws it; found "
                f"{sorted(held)}."
            )
        ends = np.cumsum(sizes, dtype=int)
        parts = jnp.split(view.alpha, ends, axis=1)  # behind the last end is nothing
        return held | dict(zip(self.free, parts, strict=False))

    def _floating(self, x: Array | Squashed, dtype: Any) -> tuple[Array, Array | None]:
        """Returns floating images, uint8 divided by 255 in the dtype, and sizes."""
        rows, columns = self.source
        if isinstance(x, Squashed):
            return self._floating(x.pixels, dtype)[0], x.sizes
        if x.shape[1:] not in [(rows, columns, 1), (rows, columns, 3)]:
            raise ValueError(
                f"x must be [B, {rows}, {columns}, 1 or 3], as source_size says; found "
                f"{list(x.shape)}."
            )
        if x.dtype == jnp.uint8:
            return jnp.asarray(x).astype(dtype) / 255, None
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"x must be uint8, or floating with values in [0, 1]; found {x.dtype}."
            )
        return promote(x=x)[0], None

    def _central_square(self, images: Array, sizes: Array | None) -> Array:
        if self.squashed and sizes is not None:
            side = jnp.min(sizes, axis=1, keepdims=True) / sizes * images.shape[1]
            boxes = jnp.concatenate([(images.shape[1] - side) / 2, side], axis=1)
            return geometry.crop_and_resize(
                images,
                boxes.astype(images.dtype),
                size=self.image_size,
                method=self.resampling,
            )
        return geometry.central_square(
            images, size=self.image_size, method=self.resampling
        )

    def _normalize(self, images: Array) -> Array:
        mean, std = (
            jnp.broadcast_to(jnp.asarray(value, images.dtype), (1, 1, 1, 3))
            for value in (self.mean, self.std)
        )
        return (images - mean) / std


def _transform(images: Array, parameters: dict[str, Array], threshold: float) -> Array:
    """Returns what follows the crop, up to the normalization."""
    if "flip" in parameters:
        images = geometry.flip_horizontal(images, parameters["flip"])
    if "affine" in parameters:
        images = geometry.affine(images, parameters["affine"])
    images = _three_channels(images)
    if "colorize" in parameters:
        images = color.colorize(images, parameters["colorize"])
    if "jitter" in parameters:
        jittered = color.jitter(images, parameters["color"])
        images = jnp.where(_gate(parameters["jitter"]), jittered, images)
    if "gray" in parameters:
        gray = color.to_grayscale(images)
        images = jnp.where(_gate(parameters["gray"]), gray, images)
    if "blurred" in parameters:
        blurred = blur.gaussian_blur(images, parameters["blur"][:, 0])
        images = jnp.where(_gate(parameters["blurred"]), blurred, images)
    if "solarize" in parameters:
        at = jnp.full(len(images), threshold, images.dtype)
        inverted = color.solarize(images, at)
        images = jnp.where(_gate(parameters["solarize"]), inverted, images)
    return images


def _gate(chosen: Array) -> Array:
    return chosen[:, None, None, None]


def _three_channels(images: Array) -> Array:
    return jnp.broadcast_to(images, (*images.shape[:3], 3))


def _source(source_size: int | tuple[int, int]) -> tuple[int, int]:
    sides = np.ravel(source_size).tolist()
    if len(sides) not in (1, 2) or any(side != int(side) or side < 1 for side in sides):
        raise ValueError(
            "source_size must be the positive rows and columns of the examples, or one "
            f"number for both; found {source_size}."
        )
    return int(sides[0]), int(sides[-1])


def _gates(**probabilities: float) -> dict[str, float]:
    """Returns the probability of what is switched on and random."""
    for name, value in probabilities.items():
        check_number(f"{name}_probability", value, low=0, high=1)
    probabilities["blurred"] = probabilities.pop("blur")  # "blur" is the family
    return {name: value for name, value in probabilities.items() if value > 0}


def _check_switches(**switches: bool) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool | np.bool_):
            raise ValueError(
                f"{name} must be True or False, and no probability; found {value!r}."
            )


def _check_channels(threshold: float, **channels: Sequence[float]) -> None:
    unit = "of values in [0, 1]: divide those of 8-bit images by 255"
    check_number("solarize_threshold", threshold, low=0, high=1, unit=unit)
    for name, values in channels.items():
        if np.ndim(values) != 1 or len(values) not in (1, 3):
            raise ValueError(
                f"{name} must be three finite numbers, one per channel, or a single "
                f"one for all; found {values}."
            )
        for value in values:
            above = name == "std"
            check_number(name, value, low=0, high=1, above=above, unit=unit)
