"""From a configuration to settings: validate, derive, freeze.

Everything is checked before anything is compiled or written; each error names the key,
the value found and what was expected.
"""

import difflib
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from invariance_jax.runtime.compilation import OFF
from invariance_jax.training import grids, images, keys
from invariance_jax.training.checks import (
    are_numbers,
    check_choice,
    check_choices,
    check_steps,
    is_increasing,
    is_integer,
    require,
)
from invariance_jax.training.fractions import one_in
from invariance_jax.transforms import spirograph


def resolve(config: ConfigDict) -> FrozenConfigDict:
    """Returns the configuration, checked and completed, with `derived` quantities.

    An image set that is used for the first time is downloaded and prepared, after all
    that can be checked without it.

    Args:
      config: a configuration with the keys of `configs/base.py`.

    Returns:
      The same keys, those of an image set filled in and limits of 0 left empty, and
      `derived`: steps,
      steps_per_epoch, peak_learning_rate, profile_steps (the two ends, or nothing),
      and for Spirograph bounds (`[10][2]`, in the order of the parameters).

    Raises:
      ValueError: if a key is missing or unknown, or a value is of the wrong type, out
        of range or at odds with another one or with the image set.
    """
    values = dict(flatten(config))
    _check_keys(values)
    _check_values(values)
    _check_objective(values)
    _check_length(values)
    settings = ConfigDict(config.to_dict())
    for name in ("example_limit", "batch_limit"):
        # A command line can say 0, but not None.
        settings.penalty[name] = values[f"penalty.{name}"] or None
    # Absolute, so that a run is evaluated from any folder.
    for key in keys.PATHS:
        if values[key] not in (None, OFF) and "://" not in values[key]:
            values[key] = os.path.abspath(os.path.expanduser(values[key]))
            settings.update_from_flattened_dict({key: values[key]})
    derived: dict[str, Any] = {}
    if values["data.name"] == "spirograph":
        derived["bounds"] = _check_spirograph(values).tolist()
    else:
        for key, value in images.complete(values).items():
            section, name = key.split(".")
            settings[section][name] = values[key] = value
    steps_per_epoch = _check_batch(values)
    steps = values["steps"] or values["epochs"] * steps_per_epoch
    warmup = values["penalty.warmup_steps"]
    require(warmup <= steps, "penalty.warmup_steps", warmup, f"at most {steps} steps")
    scale = values["batch_size"] / 256
    settings.derived = derived | {
        "steps": steps,
        "steps_per_epoch": steps_per_epoch,
        "profile_steps": check_steps(
            "logging.profile_steps", values["logging.profile_steps"], steps
        ),
        "peak_learning_rate": values["optimizer.learning_rate"] * scale,
    }
    return FrozenConfigDict(settings)


def check_devices(settings: FrozenConfigDict, num_devices: int) -> None:
    """Checks that the batch can be spread over the devices.

    Args:
      settings: the result of `resolve`.
      num_devices: devices of all processes.

    Raises:
      ValueError: if the devices do not divide the batch, or the share of a device and
        `batchnorm.group_size` do not divide one another.
    """
    batch, group = settings.batch_size, settings.batchnorm.group_size
    if batch % num_devices:
        raise ValueError(
            f"batch_size is {batch}; expected a multiple of the {num_devices} devices."
        )
    share, count = batch // num_devices, one_in(settings.penalty.fraction)
    part = share // settings.microbatches
    if share % settings.microbatches or part % count or part == 0:
        raise ValueError(
            f"microbatches is {settings.microbatches}; expected a divisor of the "
            f"{share} examples that each of the {num_devices} devices has"
            + (f", into parts of a multiple of {count}." if count > 1 else ".")
        )
    if settings.microbatches > 1 and group and part % group:
        raise ValueError(
            f"batchnorm.group_size is {group}; expected a divisor of the {part} "
            f"examples of each of the {settings.microbatches} microbatches."
        )
    if group and share % group and group % share:
        raise ValueError(
            f"batchnorm.group_size is {group}; expected a divisor or a multiple of the "
            f"{share} examples that each of the {num_devices} devices has."
        )


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted key and value of every leaf of a nested configuration.

    Args:
      config: a ConfigDict or a dict.
      prefix: put before every key.

    Yields:
      `(key, value)`; an empty placeholder has the value None.
    """
    for name in sorted(config):
        value = config[name]
        if isinstance(value, dict | ConfigDict | FrozenConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check_keys(values: dict[str, Any]) -> None:
    for key in sorted({*values} - {*keys.KEYS}):
        (close,) = difflib.get_close_matches(key, keys.KEYS, n=1, cutoff=0.0)
        raise ValueError(f"{key} is not a key; the closest is {close}.")
    for key in keys.KEYS:
        if key not in values:
            raise ValueError(f"{key} is missing from the configuration.")


def _check_values(values: dict[str, Any]) -> None:
    for key in keys.TEXTS:
        value = values[key]
        valid = isinstance(value, str) or (value is None and key in keys.OPTIONAL)
        require(valid, key, value, "a text")
    for key in keys.NUMBERS:
        _check_number(key, values[key], values["data.name"])
    for key, choices in keys.CHOICES.items():
        check_choice(key, values[key], choices)
    for key, choices in keys.SETS.items():
        check_choices(key, values[key], choices, least=key != "evaluation.baselines")
    for key in keys.BOOLEANS:
        require(isinstance(values[key], bool), key, values[key], "True or False")
    for key in keys.NUMBER_TUPLES:
        value = values[key]
        valid = isinstance(value, tuple | list) and are_numbers(value, len(value))
        valid = valid and (len(value) > 0 or key == "evaluation.l2_grid")
        valid = valid and all(0 <= number < math.inf for number in value)
        require(valid, key, value, "a tuple of numbers, 0 or more")
    grids.check(values)
    views = values["evaluation.num_views"]
    expected = "an increasing tuple, M >= 1"
    require(is_increasing(views), "evaluation.num_views", views, expected)
    count = values["evaluation.variance_views"]
    require(count >= 2, "evaluation.variance_views", count, "2 views or more")
    fraction = values["evaluation.label_fraction"]
    require(fraction > 0, "evaluation.label_fraction", fraction, "a share in (0, 1]")


def _check_objective(values: dict[str, Any]) -> None:
    """Checks that the options of the penalty go together."""
    fraction = values["penalty.fraction"]
    whole = 0 < fraction <= 1 and one_in(fraction) > 0
    require(whole, "penalty.fraction", fraction, "1, 1/2, 1/3, ...")
    views = values["penalty.views"]
    require(views in (1, 2), "penalty.views", views, "1 or 2")
    _check_microbatches(values)
    if values["penalty.kind"] != "consistency":
        return
    for key, value in keys.WITHOUT_DERIVATIVE.items():
        found = values[key]
        expected = f"{value!r}, as penalty.kind 'consistency' takes no derivative"
        same = found == value or not (found or value)  # lists come from JSON
        require(same, key, found, expected)


def _check_microbatches(values: dict[str, Any]) -> None:
    """Checks that nothing which a part computes alone needs the whole batch."""
    parts, penalized = values["microbatches"], values["penalty.weight"] > 0
    if parts == 1 or not penalized:
        return
    at_h, gradient = values["penalty.at"] == "h", values["penalty.kind"] == "gradient"
    expected = "1, as the head normalizes over the whole batch and penalty.at is 'z'"
    require(at_h, "microbatches", parts, expected)
    of_batch = gradient and values["penalty.normalization"] == "batch"
    expected = "1, as penalty.normalization 'batch' is the variance of the whole batch"
    require(not of_batch, "microbatches", parts, expected)


def _check_number(key: str, value: Any, data: str) -> None:
    empty = key in keys.OPTIONAL or (key in keys.OF_IMAGES and data != "spirograph")
    if value is None and empty:
        return
    number = is_integer(value) or (isinstance(value, float) and key in keys.REAL)
    number = number and math.isfinite(value)
    require(number, key, value, "a number" if key in keys.REAL else "an integer")
    if key in keys.POSITIVE:
        require(value > 0, key, value, "a positive number")
    elif key in keys.NOT_NEGATIVE:
        require(value >= 0, key, value, "0 or a positive number")
    elif key in keys.SHARES:
        require(0 <= value < 1, key, value, "a number in [0, 1)")
    else:
        require(0 <= value <= 1, key, value, "a number in [0, 1]")


def _check_spirograph(values: dict[str, Any]) -> np.ndarray:
    """Returns the bounds `[10, 2]`, with the errors of the transformation."""
    rows = [values[key] for key in keys.BOUNDS]
    for key, row in zip(keys.BOUNDS, rows, strict=True):
        require(are_numbers(row, 2), key, row, "(lower end, upper end)")
    count = values["data.validation_examples"]
    require(count > 0, "data.validation_examples", count, "a positive number")
    families = values["evaluation.families"]
    require(tuple(families) == ("all",), "evaluation.families", families, '("all",)')
    views = values["embedding.num_views"]
    require(views > 0, "embedding.num_views", views, "M >= 1, as no image is plain")
    bounds = np.array(rows, np.float64)
    targets = values["data.targets"]
    require(isinstance(targets, tuple | list), "data.targets", targets, "a tuple")
    try:
        names = spirograph.make_transformation(targets=targets, bounds=bounds).names
    except ValueError as error:
        message = str(error).replace("bounds of ", "bounds.")
        raise ValueError(f"data.{message}") from error
    key = "penalty.parameters"
    check_choices(key, values[key], names, least=0)
    grids.check_laws(values, bounds)
    return bounds


def _check_length(values: dict[str, Any]) -> None:
    if (values["steps"] is None) == (values["epochs"] is None):
        raise ValueError(
            f"steps is {values['steps']} and epochs is {values['epochs']}; expected "
            "exactly one of them to be given."
        )


def _check_batch(values: dict[str, Any]) -> int:
    """Returns the steps per epoch."""
    batch, group = values["batch_size"], values["batchnorm.group_size"]
    examples = values["data.train_examples"]
    require(batch >= 2, "batch_size", batch, "2 examples or more")
    require(batch <= examples, "batch_size", batch, f"at most {examples} examples")
    if group:
        divides = batch % group == 0
        require(divides, "batchnorm.group_size", group, f"0 or a divisor of {batch}")
    count = one_in(values["penalty.fraction"])
    for key, size in (("batch_size", batch), ("batchnorm.group_size", group)):
        expected = f"a multiple of {count}, as penalty.fraction is 1/{count}"
        require(size % count == 0, key, size, expected)
    parts = values["microbatches"]
    divides = batch % (parts * count) == 0
    require(divides, "microbatches", parts, f"a divisor of {batch // count}")
    return examples // batch
