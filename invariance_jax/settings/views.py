"""The built-in transformations that settings describe: Spirograph, views of images."""

from typing import Any

import numpy as np

from invariance_jax.settings.schema import Settings
from invariance_jax.transforms import Transformation, image, spirograph

PROBABILITIES = tuple(
    f"{name}_probability" for name in ("jitter", "gray", "blur", "solarize", "erase")
)
"""Keys of augmentation that may differ between the two views of an example."""


def make_spirograph(settings: Settings) -> Transformation:
    """Returns the transformation of the Spirograph data."""
    section = settings.data
    assert section.image_size is not None
    return spirograph.make_transformation(
        targets=section.targets,
        bounds=spirograph_bounds(settings),
        image_size=section.image_size,
        num_points=section.num_points,
        extent=section.extent,
        normalization=section.normalization,
    )


def spirograph_bounds(settings: Settings) -> np.ndarray:
    """Returns the bounds `[10, 2]`, rows in the order of `spirograph.PARAMETERS`."""
    bounds = settings.data.bounds
    rows = [getattr(bounds, name) for name in spirograph.PARAMETERS]
    return np.array(rows, np.float64)


def make_image_views(settings: Settings, family: str = "all") -> Transformation:
    """Returns the built-in transformation of an image set.

    The family "all" has all operations, "color" and "crop" have a part of them, "more"
    makes the further views of `more_views`, and "shift" jitters the colours of every
    image at strength 1, nothing else.
    """
    section, augmentation = settings.data, settings.augmentation
    whole = family in ("all", "more")
    geometric, colored = whole or family == "crop", whole or family == "color"
    size, area = section.image_size, augmentation.crop_area
    if family == "more":
        size, area = augmentation.more_size or size, augmentation.more_area or area
    assert section.source_size is not None and size is not None
    strength = augmentation.strength
    assert strength is not None and augmentation.jitter_ranges is not None
    differentiate = augmentation.differentiate if family == "all" else ()
    probabilities: dict[str, Any] = {}
    for name in PROBABILITIES:
        first = getattr(augmentation, name)
        both = first, augmentation.second_view.get(name, first)
        probabilities[name] = both if colored else 0.0
    if family == "shift":
        strength, differentiate = 1.0, ("color",)
        probabilities["jitter_probability"] = 1.0
    return image.make_transformation(
        source_size=section.source_size,
        image_size=size,
        mean=section.mean or (0.5,) * 3,
        std=section.std or (0.5,) * 3,
        strength=strength,
        jitter_ranges=augmentation.jitter_ranges,
        crop=augmentation.crop and geometric,
        flip=augmentation.flip and geometric,
        differentiate=differentiate,
        crop_area=area,
        crop_aspect=augmentation.crop_aspect,
        resampling=augmentation.resampling,
        colorize=augmentation.colorize and colored,
        rotation=augmentation.rotation * geometric,
        scaling=augmentation.scaling * geometric,
        shear=augmentation.shear * geometric,
        translation=augmentation.translation * geometric,
        blur_sigma=augmentation.blur_sigma,
        solarize_threshold=augmentation.solarize_threshold,
        erase_area=augmentation.erase_area,
        squashed=section.store_size is not None,
        **probabilities,
    )
