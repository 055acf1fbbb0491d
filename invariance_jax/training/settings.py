"""From a configuration to settings: validate, derive, freeze.

Everything is checked before anything is compiled or written; each error names the key,
the value found and what was expected.
"""

import difflib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from invariance_jax.losses.invariance import NORMALIZATIONS
from invariance_jax.models.registry import ENCODERS, PRECISIONS
from invariance_jax.training.optimizers import OPTIMIZERS, SCHEDULES
from invariance_jax.transforms import spirograph

_CHOICES = {
    "precision": tuple(PRECISIONS),
    "penalty.normalization": NORMALIZATIONS,
    "penalty.batch_statistics": ("coupled", "example"),
    "encoder.name": ENCODERS,
    "encoder.final": ("linear", "norm_relu"),
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "data.name": ("spirograph",),
    "data.normalization": spirograph.NORMALIZATIONS,
    "evaluation.split": ("validation", "test"),
}

_POSITIVE = (
    "seeds batch_size epochs steps temperature steps_per_call penalty.example_limit "
    "penalty.batch_limit penalty.directions encoder.width encoder.depth "
    "encoder.projection optimizer.learning_rate optimizer.trust_coefficient "
    "data.train_examples data.validation_examples data.test_examples data.image_size "
    "data.num_points data.extent checkpoints.every_steps checkpoints.keep "
    "checkpoints.keep_every_steps logging.every_steps logging.probe_train_examples "
    "logging.probe_validation_examples evaluation.train_examples "
    "evaluation.batch_size evaluation.variance_examples evaluation.variance_views"
).split()

_NOT_NEGATIVE = (
    "seed penalty.weight penalty.warmup_steps batchnorm.group_size "
    "optimizer.weight_decay data.seed logging.probe_every_steps evaluation.l2 "
    "evaluation.seed"
).split()

_SHARES = ("optimizer.momentum", "optimizer.warmup_fraction")

# The numbers that need not be whole.
_REAL = (
    "temperature penalty.weight penalty.example_limit penalty.batch_limit "
    "optimizer.learning_rate optimizer.trust_coefficient optimizer.weight_decay "
    "data.extent evaluation.l2"
).split() + list(_SHARES)

# What may be left empty.
_OPTIONAL = (
    "epochs steps penalty.example_limit penalty.batch_limit "
    "checkpoints.keep_every_steps evaluation.train_examples"
).split()

_NUMBERS = (*_POSITIVE, *_NOT_NEGATIVE, *_SHARES)
_BOUNDS = tuple(f"data.bounds.{name}" for name in spirograph.PARAMETERS)
_KEYS = (*_CHOICES, *_NUMBERS, *_BOUNDS, "data.targets", "evaluation.num_views")


def resolve(config: ConfigDict) -> FrozenConfigDict:
    """Returns the configuration, checked, with derived quantities under `derived`.

    Args:
      config: a configuration with the keys of `configs/base.py`.

    Returns:
      The same keys, and `derived`: steps, steps_per_epoch, peak_learning_rate, bounds
      (`[10][2]`, in the order of the Spirograph parameters).

    Raises:
      ValueError: if a key is missing or unknown, or a value is of the wrong type, out
        of range or at odds with another one.
    """
    values = dict(flatten(config))
    _check_keys(values)
    _check_types(values)
    for key in _CHOICES:
        _check_choice(key, values[key], _CHOICES[key])
    for key in _POSITIVE:
        value = values[key]
        _require(value is None or value > 0, key, value, "a positive number")
    for key in _NOT_NEGATIVE:
        value = values[key]
        _require(value >= 0, key, value, "0 or a positive number")
    for key in _SHARES:
        value = values[key]
        _require(0 <= value < 1, key, value, "a number in [0, 1)")
    bounds = _check_spirograph(values)
    _check_evaluation(values)
    steps_per_epoch = _check_batch(values)
    steps = values["steps"] or values["epochs"] * steps_per_epoch
    warmup = values["penalty.warmup_steps"]
    _require(warmup <= steps, "penalty.warmup_steps", warmup, f"at most {steps} steps")
    settings = ConfigDict(config.to_dict())
    scale = values["batch_size"] / 256
    settings.derived = {
        "steps": steps,
        "steps_per_epoch": steps_per_epoch,
        "peak_learning_rate": values["optimizer.learning_rate"] * scale,
        "bounds": bounds.tolist(),
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
    share = batch // num_devices
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
    for key in sorted({*values} - {*_KEYS}):
        (close,) = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.0)
        raise ValueError(f"{key} is not a key; the closest is {close}.")
    for key in _KEYS:
        if key not in values:
            raise ValueError(f"{key} is missing from the configuration.")


def _require(condition: bool, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise ValueError(f"{key} is {value!r}; expected {expected}.")


def _check_types(values: dict[str, Any]) -> None:
    for key in _NUMBERS:
        value = values[key]
        if value is None and key in _OPTIONAL:
            continue
        number = _is_integer(value) or (isinstance(value, float) and key in _REAL)
        number = number and math.isfinite(value)
        _require(number, key, value, "a number" if key in _REAL else "an integer")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"{key} is {value!r}; expected one of {', '.join(map(repr, choices))}{hint}"
        )


def _check_spirograph(values: dict[str, Any]) -> np.ndarray:
    """Returns the bounds `[10, 2]`, with the errors of the transformation."""
    rows = [values[key] for key in _BOUNDS]
    for key, row in zip(_BOUNDS, rows, strict=True):
        pair = isinstance(row, tuple | list) and len(row) == 2
        pair = pair and all(_is_integer(end) or isinstance(end, float) for end in row)
        _require(pair, key, row, "(lower end, upper end)")
    bounds = np.array(rows, np.float64)
    targets = values["data.targets"]
    _require(isinstance(targets, tuple | list), "data.targets", targets, "a tuple")
    try:
        spirograph.make_transformation(targets=targets, bounds=bounds)
    except ValueError as error:
        message = str(error).replace("bounds of ", "bounds.")
        raise ValueError(f"data.{message}") from error
    return bounds


def _check_evaluation(values: dict[str, Any]) -> None:
    views = values["evaluation.num_views"]
    increasing = isinstance(views, tuple | list) and len(views) > 0
    increasing = increasing and all(_is_integer(m) and m > 0 for m in views)
    increasing = increasing and list(views) == sorted(set(views))
    _require(increasing, "evaluation.num_views", views, "an increasing tuple, M >= 1")
    count = values["evaluation.variance_views"]
    _require(count >= 2, "evaluation.variance_views", count, "2 views or more")


def _check_batch(values: dict[str, Any]) -> int:
    """Returns the steps per epoch."""
    batch, group = values["batch_size"], values["batchnorm.group_size"]
    examples = values["data.train_examples"]
    _require(batch >= 2, "batch_size", batch, "2 examples or more")
    _require(batch <= examples, "batch_size", batch, f"at most {examples} examples")
    if group:
        divides = batch % group == 0
        _require(divides, "batchnorm.group_size", group, f"0 or a divisor of {batch}")
    if (values["steps"] is None) == (values["epochs"] is None):
        raise ValueError(
            f"steps is {values['steps']} and epochs is {values['epochs']}; expected "
            "exactly one of them to be given."
        )
    return examples // batch
