"""Image sets in the settings: checks, and the values that are read from the set."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from invariance_jax.data import loading
from invariance_jax.data.sets import NAMES, find, folder_of_sets
from invariance_jax.training import grids
from invariance_jax.training.checks import (
    are_numbers,
    check_choices,
    is_increasing,
    require,
)
from invariance_jax.transforms import color, image

FAMILIES = ("all", "color", "crop")
BASELINES = ("pixels", "untrained")

# What is read from the set.
_OF_SET = (
    "data.num_classes",
    "data.source_size",
    "data.mean",
    "data.std",
    "data.train_examples",
    "data.test_examples",
)

# What stands in for the values of the set while the rest is checked.
_STAND_IN = {"source_size": (32, 32), "image_size": 32, "mean": (0.5,) * 3}
_STAND_IN |= {"std": (0.5,) * 3}


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of an image set that were left empty, with its values.

    Everything else is checked first: a set that has not been prepared is downloaded and
    prepared here. If no key is empty, the set is not touched.

    Args:
      values: dotted key -> value, of the right types.

    Returns:
      dotted key -> value, for the keys that `values` has empty.

    Raises:
      ValueError: if a value is invalid or at odds with the set, or there is no such
        set.
    """
    _check(values)
    grids.check_strengths(values)
    filled = {}
    if any(values[key] is None for key in _OF_SET):
        filled = _read(values)
    whole = filled | {key: values[key] for key in _OF_SET if values[key] is not None}
    _check_neighbors(values, whole["data.train_examples"])
    grids.check_classes(
        values,
        num_examples=whole["data.train_examples"],
        num_classes=whole["data.num_classes"],
    )
    filled["data.image_size"] = min(whole["data.source_size"])
    return {key: value for key, value in filled.items() if values[key] is None}


def check_prepared(config: ConfigDict) -> None:
    """Refuses a set that `complete` would download and prepare.

    Args:
      config: a configuration, which need not be checked yet.

    Raises:
      ValueError: if the set is a known one that is not there; it names the command that
        prepares it.
    """
    name, folder = config.data.name, config.data.data_dir
    root = folder_of_sets(folder)
    if name in NAMES and find(root, name) is None:
        place = f" --data_dir={folder}" if folder else ""
        raise ValueError(
            f"data.name is {name!r}, which is not prepared in {root}; expected a set "
            f"that is: python -m invariance_jax.data {name}{place}"
        )


def _check_neighbors(values: dict[str, Any], count: int) -> None:
    count = min(count, values["evaluation.train_examples"] or count)
    count = int(values["evaluation.label_fraction"] * count)
    neighbors = values["evaluation.neighbors"]
    expected = f"at most the {count} examples that the probe is fitted on"
    require(
        max(neighbors, default=0) <= count, "evaluation.neighbors", neighbors, expected
    )


def _check_validation(values: dict[str, Any]) -> None:
    """Checks that nothing asks for a validation split if none is held out."""
    if values["data.validation_examples"] > 0:
        return
    asked = {
        "logging.probe_every_steps": values["logging.probe_every_steps"] > 0,
        "evaluation.split": values["evaluation.split"] == "validation",
        "embedding.splits": "validation" in values["embedding.splits"],
    }
    for key, is_asked in asked.items():
        expected = "none of the validation split, as data.validation_examples is 0"
        require(not is_asked, key, values[key], expected)


def make_transformation(data: Any, augmentation: Any, family: str = "all") -> Any:
    """Returns the transformation of an image set, or the part of it of a family.

    Args:
      data: the section of the settings (or a mapping), with no key of the set empty.
      augmentation: the section of the settings (or a mapping).
      family: "all"; "color": without crop, flip and affine map; "crop": without colour.

    Returns:
      The transformation. Of a part of it, nothing is differentiated.

    Raises:
      ValueError: if a setting is invalid.
    """
    geometric, colored = family in ("all", "crop"), family in ("all", "color")
    return image.make_transformation(
        source_size=tuple(data["source_size"]),
        image_size=data["image_size"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        strength=augmentation["strength"],
        jitter_probability=augmentation["jitter_probability"] * colored,
        gray_probability=augmentation["gray_probability"] * colored,
        crop=augmentation["crop"] and geometric,
        flip=augmentation["flip"] and geometric,
        differentiate=tuple(augmentation["differentiate"]) if family == "all" else (),
        crop_area=tuple(augmentation["crop_area"]),
        crop_aspect=tuple(augmentation["crop_aspect"]),
        resampling=augmentation["resampling"],
        colorize=augmentation["colorize"] and colored,
        rotation=augmentation["rotation"] * geometric,
        scaling=augmentation["scaling"] * geometric,
        shear=augmentation["shear"] * geometric,
        translation=augmentation["translation"] * geometric,
    )


def make_jitter(data: Any, augmentation: Any) -> Any:
    """Returns colour jitter of strength 1 of plain images, of every view, and no more.

    Args:
      data: as in `make_transformation`.
      augmentation: as in `make_transformation`.

    Returns:
      The transformation; its alpha has the columns of `color.JITTER_NAMES`.
    """
    return image.make_transformation(
        source_size=tuple(data["source_size"]),
        image_size=data["image_size"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        strength=1.0,
        jitter_probability=1.0,
        gray_probability=0.0,
        crop=False,
        flip=False,
        resampling=augmentation["resampling"],
    )


def _read(values: dict[str, Any]) -> dict[str, Any]:
    name, held_out = values["data.name"], values["data.validation_examples"]
    found = loading.describe(name, data_dir=values["data.data_dir"])
    less = f"less than the {found.num_train} training images of {name}"
    require(held_out < found.num_train, "data.validation_examples", held_out, less)
    filled = {
        "data.train_examples": found.num_train - held_out,
        "data.test_examples": found.num_test,
        "data.num_classes": found.num_classes,
        "data.source_size": tuple(found.image_shape[:2]),
        "data.mean": tuple(found.mean),
        "data.std": tuple(found.std),
    }
    for key in ("data.num_classes", "data.source_size"):
        given, there = values[key], filled[key]
        same = given is None or given == there or tuple(np.ravel(given)) == there
        require(same, key, given, f"{there}, that of {name}, or nothing")
    for key in ("data.train_examples", "data.test_examples"):
        wanted, there = values[key], filled[key]
        few = wanted is None or wanted <= there
        require(few, key, wanted, f"at most {there}, what {name} has")
    return filled


def _jitters(values: dict[str, Any]) -> bool:
    names = ("jitter_probability", "strength")
    return all(values[f"augmentation.{name}"] > 0 for name in names)


def _check_derivative(values: dict[str, Any], names: tuple[str, ...]) -> None:
    """Checks that the penalty has parameters along which views change."""
    takes = values["penalty.weight"] > 0 and values["penalty.kind"] == "gradient"
    idle = set() if _jitters(values) else {*color.JITTER_NAMES}
    key = "augmentation.differentiate"
    expected = "a part that is switched on, as penalty.weight is not 0"
    require(bool({*names} - idle) or not takes, key, values[key], expected)
    key = "penalty.parameters"
    check_choices(key, values[key], names, least=0)
    chosen = {*(values[key] or names)}
    expected = "one that is switched on, as penalty.weight is not 0"
    require(bool(chosen - idle) or not takes, key, values[key], expected)


def _check(values: dict[str, Any]) -> None:
    for key, count in (("source_size", 2), ("mean", 3), ("std", 3)):
        value = values[f"data.{key}"]
        valid = value is None or are_numbers(value, count)
        require(valid, f"data.{key}", value, f"{count} numbers")
    for key in ("crop_area", "crop_aspect"):
        value = values[f"augmentation.{key}"]
        require(are_numbers(value, 2), f"augmentation.{key}", value, "(lower, upper)")
    for key in ("crop", "flip", "colorize"):
        value = values[f"augmentation.{key}"]
        require(isinstance(value, bool), f"augmentation.{key}", value, "True or False")
    key = "augmentation.differentiate"
    check_choices(key, values[key], image.FAMILIES, least=0)
    neighbors = values["evaluation.neighbors"]
    require(
        neighbors == () or is_increasing(neighbors),
        "evaluation.neighbors",
        neighbors,
        "an increasing tuple, k >= 1",
    )
    _check_validation(values)
    _check_derivative(values, _names(values))


def _names(values: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of the columns of alpha, with the transformation's errors."""
    data, augmentation = (
        {
            key.removeprefix(section): value
            for key, value in values.items()
            if key.startswith(section)
        }
        for section in ("data.", "augmentation.")
    )
    data |= {name: given for name, given in _STAND_IN.items() if data[name] is None}
    try:
        return make_transformation(data, augmentation).names
    except ValueError as error:
        message = str(error)
        section = "data" if message.startswith(tuple(_STAND_IN)) else "augmentation"
        raise ValueError(f"{section}.{message}") from error
