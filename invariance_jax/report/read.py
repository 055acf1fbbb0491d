"""Reads and checks what a finished run left in its work directory.

A run over seeds keeps its training log and samples in `seed_0`, `seed_1`, ... and the
aggregated `results.json` in the directory itself.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from etils import epath

from invariance_jax.runs.results import FORMAT
from invariance_jax.runtime.files import absolute
from invariance_jax.types import Json

SUMMARY = ("views", "target", "family", "encoder", "probe")
"""Coordinates of the rows that are in the summary."""

KEYS = ("run", "experiment", "metric", "seed", "value")
"""Columns of the table of rows beside the coordinates."""

NUMBERS = ("mean", "standard_error", "n", "low", "high")
"""Columns of an aggregated table in place of seed and value."""

_ROW: dict[str, tuple[type, ...]] = {
    "experiment": (str,),
    "metric": (str,),
    "at": (dict,),
    "seed": (int,),
    "value": (int, float, type(None)),
}

_ARRAYS = {
    1: "projection_explained projection_labels",
    2: "true predicted predicted_single confusion projection projection_targets "
    "neighbor_labels",
    4: "plain",
    5: "views neighbors",
}
_DIMENSIONS = {name: n for n, names in _ARRAYS.items() for name in names.split()}
"""Of the arrays of `samples.npz`."""


class Run(NamedTuple):
    """One finished work directory."""

    name: str  # what tells it from the other runs of the report
    path: epath.Path
    config: Json  # dotted key -> value
    saved: Json  # the rest of `config.json`: derived, environment, command
    results: Json  # `results.json` without its rows
    rows: pd.DataFrame  # the long table: `KEYS` and coordinates, NaN where absent
    log: pd.DataFrame  # the training logs: seed, step, name, value
    skipped: dict[str, int]  # file -> its lines that could not be read
    samples: dict[str, np.ndarray]  # of `samples.npz`

    @property
    def settings(self) -> Json:
        """The settings of the evaluation."""
        return self.results["settings"]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.results["seeds"]) or 1

    @property
    def seconds(self) -> float:
        """The seconds of training by the clock, the mean over seeds; NaN: unknown."""
        ends = self.log[self.log["name"] == "seconds"].groupby("seed")["value"].max()
        return float(ends.mean())

    @property
    def targets(self) -> list[str]:
        """The regression targets; empty for other tasks."""
        return [str(name) for name in self.settings.get("targets") or ()]

    @property
    def split(self) -> str:
        """The split that the numbers are of."""
        return str(self.settings.get("split") or "test")


def flatten(config: Json, prefix: str = "") -> Json:
    """Returns a nested mapping as dotted name -> value.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    flat: Json = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def read_runs(workdirs: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Returns the runs of finished work directories, in the order given."""
    if isinstance(workdirs, str | os.PathLike) or not workdirs:
        raise ValueError(
            f"workdirs must be a list of one or more directories, found {workdirs!r}"
        )
    paths = [absolute(workdir) for workdir in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"work directory {path} is given twice; give each once")
    # What begins with "paper, " are rows of the paper.
    names = [name.replace("paper, ", "paper,") for name in _names(paths)]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _names(paths: Sequence[epath.Path]) -> list[str]:
    """Returns the labels of a sweep, or the last parts that tell the paths apart."""
    labels = [_label(path) for path in paths] if len(paths) > 1 else [""]
    if "" not in labels and len({*labels}) == len(labels):
        return labels
    names = []
    for path in paths:
        ends = ((n, path.parts[-n:]) for n in range(1, len(path.parts) + 1))
        end = next(e for n, e in ends if [p.parts[-n:] for p in paths].count(e) == 1)
        names.append("/".join(end).replace("//", "/"))
    return names


def _label(path: epath.Path) -> str:
    """Returns the label that the sweep of a work directory gave it, empty if none."""
    record = path.parent / "sweep.json"
    variants = _read_json(record).get("variants", {}) if record.is_file() else {}
    return str(variants.get(path.name, {}).get("label") or "")


def _read_json(path: epath.Path) -> Json:
    where = f"work directory {path.parent}: {path.name}"
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold an object, not {type(content).__name__}")
    return content


def _read(path: epath.Path, name: str) -> Run:
    where = f"work directory {path}"
    if not path.is_dir():
        raise ValueError(f"{where} does not exist or is not a directory")
    missing = [f for f in ("config.json", "results.json") if not (path / f).is_file()]
    if missing:
        raise ValueError(
            f"{where} has no {' and no '.join(missing)}: the run is not finished "
            "(--mode=all or --mode=evaluate finishes it)"
        )
    saved, content = (_read_json(path / f"{f}.json") for f in ("config", "results"))
    results = check_results(content, f"{where}: results.json", name)
    seeds = results["seeds"]
    folders = [path / f"seed_{seed}" for seed in seeds] if len(seeds) > 1 else [path]
    skipped: dict[str, int] = {}
    log = pd.concat([_read_log(folder, path, skipped) for folder in folders])
    config, rows = flatten(saved.pop("config", {})), results.pop("rows")
    samples = _read_samples(folders[0])
    return Run(name, path, config, saved, results, rows, log, skipped, samples)


def check_results(content: Json, where: str = "results", run: str = "") -> Json:
    """Returns the content of a `results.json`, checked, its rows as a table of a run.

    An error names the first row that is not as documented.
    """
    if content.get("format") != FORMAT:
        versions = (content.get("environment") or {}).get("versions") or {}
        wrote = versions.get("invariance_jax", "that wrote it")
        raise ValueError(
            f"{where} has format {content.get('format')!r}, this version reads "
            f"{FORMAT}: use invariance_jax {wrote}, or run --mode=evaluate again"
        )
    rows = content.get("rows")
    if not isinstance(rows, list):
        raise ValueError(f"{where} must have a list of rows, found {str(rows)[:80]}")
    found = [_row(row, f"{where}: row {n}") for n, row in enumerate(rows, start=1)]
    # As objects, so that a number M of views stays an integer beside "plain".
    columns = None if found else [*KEYS]
    frame = pd.DataFrame(found, columns=columns, dtype=object).assign(run=run)
    known = {"seeds": [], "settings": {}, "experiments": {}, **content}
    return {**known, "rows": frame.astype({"value": float, "seed": int})}


def _row(row: Json, where: str) -> Json:
    for name, types in _ROW.items():
        if not isinstance(row, dict) or type(row.get(name, ())) not in types:
            raise ValueError(
                f"{where} must have an experiment, a metric, at, a seed and a value (a "
                f"number or null), found {str(row)[:80]}"
            )
    for name, value in row["at"].items():
        if type(value) not in (str, int, float):
            raise ValueError(
                f"{where}: {name} must be a text or a number, found {str(value)[:80]}"
            )
    found = {name: row[name] for name in _ROW if name != "at"}
    found["value"] = math.nan if row["value"] is None else float(row["value"])
    # A coordinate of a user's own may have the name of another column.
    taken = (*KEYS, *NUMBERS)
    return found | {f"{n}_" if n in taken else n: v for n, v in row["at"].items()}


def _read_log(
    folder: epath.Path, workdir: epath.Path, skipped: dict[str, int]
) -> pd.DataFrame:
    """Returns the training log of a seed; counts the lines that cannot be read."""
    path = folder / "metrics.jsonl"
    content = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    rows = []
    for line in filter(str.strip, content.splitlines()):
        try:
            row = json.loads(line)
            numbers = {k: v for k, v in row.items() if type(v) in (int, float)}
            rows.append({**numbers, "step": int(row["step"])})
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # A run that was killed while it wrote leaves a torn line.
            file = str(path.relative_to(workdir))
            skipped[file] = skipped.get(file, 0) + 1
    table = pd.DataFrame(rows, columns=None if rows else ["step"])
    long = table.melt("step", var_name="name").dropna()
    long = long.drop_duplicates(["step", "name"], keep="last")  # of a restart
    long.insert(0, "seed", folder.name)
    return long.astype({"value": float})


def _read_samples(folder: epath.Path) -> dict[str, np.ndarray]:
    path, where = folder / "samples.npz", f"work directory {folder}: samples.npz"
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            samples = {k: archive[k] for k in archive.files if k in _DIMENSIONS}
    except Exception as error:  # each library raises its own
        raise ValueError(f"{where}: {error}") from error
    for name, array in samples.items():
        if array.ndim != _DIMENSIONS[name]:
            raise ValueError(
                f"{where}: {name} must have {_DIMENSIONS[name]} dimensions, found "
                f"shape {array.shape}"
            )
    return {name: array for name, array in samples.items() if array.size}
