"""The grid of a sweep: its file, and the configurations and folders of its points."""

import difflib
import itertools
import re
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from invariance_jax.runs.workdir import tuples
from invariance_jax.training.settings import flatten, resolve


def read_grid(path: str) -> dict[str, tuple[Any, ...]]:
    """Returns the grid of a sweep file: key -> its values.

    Args:
      path: a Python file with a function `get_sweep()`.

    Raises:
      ValueError: if there is no such file or function, or it returns something else.
    """
    if not Path(path).is_file():
        raise ValueError(f"--sweep is {path}; expected a Python file")
    get_sweep = runpy.run_path(path).get("get_sweep")
    if not callable(get_sweep):
        raise ValueError(f"--sweep={path} has no function get_sweep()")
    grid = get_sweep()
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(
            f"get_sweep() of {path} returns {grid!r}; expected key -> values"
        )
    for key, values in grid.items():
        if not isinstance(values, tuple | list) or not values:
            raise ValueError(f"{path}: {key} is {values!r}; expected a tuple of values")
        if any(value in values[:n] for n, value in enumerate(values)):
            raise ValueError(f"{path}: {key} is {values!r}; expected each value once")
    return {key: tuples(list(values)) for key, values in grid.items()}


def make_points(
    config: ConfigDict, grid: Mapping[str, Sequence[Any]]
) -> dict[str, ConfigDict]:
    """Returns folder -> configuration of every point of a grid.

    Args:
      config: the configuration that all points share.
      grid: key -> values; the values of "seed" are seeds of every point.

    Returns:
      The points in the order of the grid, the last key the fastest; the folder of the
      only point of a grid over seeds is ".".

    Raises:
      ValueError: if a key is unknown, or seeds are not consecutive or given twice.
    """
    known = [key for key, _ in flatten(config) if key != "seeds"]
    for key in grid:
        if key not in known:
            (close,) = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise ValueError(f"sweep: {key} is not a key; the closest is {close}.")
    seed, seeds = _seeds(config, grid)
    axes = {key: values for key, values in grid.items() if key != "seed"}
    points: dict[str, ConfigDict] = {}
    for values in itertools.product(*axes.values()):
        point = ConfigDict(config.to_dict())
        changes = dict(zip(axes, values, strict=True))
        with point.ignore_type():  # `resolve` checks them, and a limit may become None
            point.seed, point.seeds = seed, seeds
            changes = {k: change(point, k, value) for k, value in changes.items()}
        name = folder_name(changes) or "."
        if name in points:
            raise ValueError(f"sweep: two points have the folder {name}")
        points[name] = point
    return points


def resolve_point(name: str, point: ConfigDict) -> FrozenConfigDict:
    """Returns `resolve(point)`, whose error names the point."""
    try:
        return resolve(point)
    except ValueError as error:
        raise ValueError(f"sweep: {name}: {error}") from error


def _seeds(config: ConfigDict, grid: Mapping[str, Sequence[Any]]) -> tuple[int, int]:
    """Returns the first seed and their number."""
    if "seed" not in grid:
        return config.seed, config.seeds
    if config.seeds > 1:
        raise ValueError(
            f"sweep: seeds is {config.seeds} and the grid has seed = {grid['seed']}; "
            "expected one of them."
        )
    values = list(grid["seed"])
    whole = all(type(value) is int for value in values)
    if not whole or values != list(range(values[0], values[0] + len(values))):
        raise ValueError(
            f"sweep: seed is {tuple(values)}; expected consecutive integers, as those "
            "that --config.seeds counts."
        )
    return values[0], len(values)


def change(point: ConfigDict, key: str, value: Any) -> Any:
    """Sets a key, and returns its value in the type of the configuration.

    Args:
      point: the configuration.
      key: its dotted key.
      value: the new value.
    """
    *sections, name = key.split(".")
    section = point
    for part in sections:
        section = section[part]
    if isinstance(section[name], float) and type(value) is int:
        value = float(value)
    section[name] = value
    return value


def folder_name(changes: Mapping[str, Any]) -> str:
    """Returns the name of the folder of a run, empty without a change.

    Args:
      changes: dotted key -> value.

    >>> folder_name({"penalty.weight": 0.1, "penalty.parameters": ("h",)})
    'penalty.weight=0.1,penalty.parameters=h'
    """
    return ",".join(f"{key}={_text(value)}" for key, value in changes.items())


def _text(value: Any) -> str:
    """Returns a value as a part of the name of a folder.

    >>> _text(0.1), _text(("color", "crop")), _text("/data/a b.npz"), _text(None)
    ('0.1', 'color+crop', '_data_a_b.npz', 'none')
    """
    if isinstance(value, tuple | list):
        return "+".join(map(_text, value)) or "none"
    return "none" if value is None else re.sub(r"[^\w.+-]", "_", str(value))
