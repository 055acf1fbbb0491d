"""Reads and checks the files of finished runs in their work directories.

A run over seeds keeps its training log and samples in `seed_0`, `seed_1`, ... and the
aggregated `results.json` in the directory itself.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from etils import epath

from invariance_jax.runs.log import read_rows
from invariance_jax.runs.results import FORMAT, NAMED
from invariance_jax.runs.workdir import check_format, read_config
from invariance_jax.runtime.files import absolute, read_json
from invariance_jax.settings import flatten
from invariance_jax.types import Json

SUMMARY = ("views", *NAMED)
"""Coordinates that rows of the summary may have."""

KEYS = ("run", "experiment", "metric", "seed", "value")
"""Columns of the long table besides the coordinates."""

NUMBERS = ("mean", "standard_error", "n", "low", "high")
"""Columns that replace seed and value in an aggregated table."""

_SAMPLES = {
    "views": "R V H W 3",
    "plain": "R H W 3",
    "neighbors": "Q K h w 3",
    "neighbor_labels": "Q K",
    "projection": "N 2",
    "projection_explained": "2",
    "projection_labels": "N",
    "projection_targets": "N T",
    "true": "S T",
    "predicted": "S T",
    "predicted_single": "S T",
    "confusion": "C C",
}
"""Array of `samples.npz` -> its dimensions; equal letters stand for equal sizes."""

_TYPES = {
    "experiment": (str,),
    "metric": (str,),
    "at": (dict,),
    "seed": (int,),
    "value": (int, float, type(None)),
}
"""Types of the entries of a row of `results.json`; a bool is no number."""


class Run(NamedTuple):
    """One finished work directory."""

    name: str  # unique among the runs of the report
    path: epath.Path
    config: Json  # dotted key -> value
    saved: Json  # the content of `config.json`
    results: Json  # `results.json` without its rows
    rows: pd.DataFrame  # the long table: `KEYS` and coordinates, NaN where absent
    log: pd.DataFrame  # the training logs: seed, step, name, value
    skipped: dict[str, int]  # file -> its lines that could not be read
    samples: dict[str, np.ndarray]  # the arrays of `samples.npz`

    @property
    def settings(self) -> Json:
        """The settings of the evaluation."""
        return self.results["settings"]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.results["seeds"])

    @property
    def split(self) -> str:
        """The split that was evaluated."""
        return str(self.settings["split"])

    @property
    def data(self) -> str:
        """What the numbers are about: data set, targets or classes, and split."""
        targets, classes = (self.settings.get(n, ()) for n in ("targets", "classes"))
        number = f"{len(classes)} classes" if classes else "no labels"
        labels = ", ".join(targets) or number
        return f"{self.config['data.name']} ({labels}), {self.split} split"

    @property
    def seconds(self) -> float:
        """The mean training time of the seeds whose log reaches the evaluated step."""
        rows = self.log[self.log["name"] == "seconds"]
        last = rows.groupby("seed")[["step", "value"]].max()
        return float(last["value"][last["step"] >= self.settings["step"]].mean())


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
    # Names that begin with "paper, " mark the rows of the paper.
    names = [name.replace("paper, ", "paper,") for name in _names(paths)]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _names(paths: Sequence[epath.Path]) -> list[str]:
    """Returns the labels of a sweep, or the shortest path endings that are unique."""
    labels = [_variants(path).get(path.name, "") for path in paths]
    labels = labels if len(paths) > 1 else [""]
    if "" not in labels and len({*labels}) == len(labels):
        return labels
    names = []
    for path in paths:
        ends = ((n, path.parts[-n:]) for n in range(1, len(path.parts) + 1))
        end = next(e for n, e in ends if [p.parts[-n:] for p in paths].count(e) == 1)
        names.append("/".join(end).replace("//", "/"))
    return names


def _variants(path: epath.Path) -> dict[str, str]:
    """Returns folder -> label of each variant in the sweep of a work directory."""
    record = path.parent / "sweep.json"
    variants = read_json(record).get("variants", {}) if record.is_file() else {}
    return {name: str(one.get("label") or "") for name, one in variants.items()}


def missing_variants(runs: Sequence[Run]) -> list[str]:
    """Returns the labels of the variants in the sweeps of the runs that are no run."""
    shown, labels = [run.path for run in runs], dict[epath.Path, str]()
    for path in shown:
        if path.name in (variants := _variants(path)):
            labels |= {path.parent / name: label for name, label in variants.items()}
    return [label for path, label in labels.items() if path not in shown]


def _read(path: epath.Path, name: str) -> Run:
    if not path.is_dir():
        raise ValueError(f"work directory {path} does not exist or is no directory")
    missing = [f for f in ("config.json", "results.json") if not (path / f).is_file()]
    if missing:
        raise ValueError(
            f"work directory {path} has no {' and no '.join(missing)}: the run is not "
            "finished (--mode=all or --mode=evaluate finishes it)"
        )
    file = path / "results.json"
    results = check_results(read_json(file), str(file), name)
    seeds = results["seeds"]
    folders = [path / f"seed_{seed}" for seed in seeds] if len(seeds) > 1 else [path]
    config, saved = flatten(read_config(path)), read_json(path / "config.json")
    _check_parts(saved, ("derived", "environment", "command"), path / "config.json")
    logs = {folder / "metrics.jsonl": read_rows(folder) for folder in folders}
    skipped = {str(file.relative_to(path)): len(bad) for file, (_, bad) in logs.items()}
    return Run(
        name,
        path,
        config=config,
        saved=saved,
        rows=results.pop("rows"),
        results=results,
        log=pd.concat([_long(f.parent.name, rows) for f, (rows, _) in logs.items()]),
        skipped={file: count for file, count in skipped.items() if count},
        samples=_read_samples(folders[0] / "samples.npz", results["settings"]),
    )


def check_results(content: Json, where: str = "results", run: str = "") -> Json:
    """Returns the checked content of a `results.json`, with its rows as a long table.

    The ValueError of a malformed row names the first one.
    """
    check_format(content, FORMAT, where, ", or run --mode=evaluate again")
    parts = ("seeds", "settings", "experiments", "command")
    _check_parts(content, parts, where)
    rows = content.get("rows")
    if not isinstance(rows, list):
        raise ValueError(f"{where} must have a list of rows, found {str(rows)[:80]}")
    flat = [_row(row, f"{where}: row {n}") for n, row in enumerate(rows, start=1)]
    # As objects, so that a number M of views stays an integer beside "plain".
    columns = None if flat else [*KEYS]
    frame = pd.DataFrame(flat, columns=columns, dtype=object).assign(run=run)
    return {**content, "rows": frame.astype({"value": float, "seed": int})}


def _check_parts(content: Json, names: Sequence[str], where: object) -> None:
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}, which every run writes")


def _row(row: Json, where: str) -> Json:
    """Returns a checked row as one flat dictionary: keys and coordinates."""
    found = {n: type(v) for n, v in row.items()} if isinstance(row, dict) else {}
    is_valid = all(found.get(name) in types for name, types in _TYPES.items())
    if not is_valid or not {*map(type, row["at"].values())} <= {str, int, float}:
        raise ValueError(
            f"{where} must have an experiment, a metric, at (names to strings or "
            f"numbers), a seed and a value (a number or null), found {str(row)[:150]}"
        )
    # A coordinate of a user's own experiment may have the name of another column.
    reserved = (*KEYS, *NUMBERS)
    coordinates = {f"{n}_" if n in reserved else n: v for n, v in row["at"].items()}
    return {name: row[name] for name in KEYS[1:]} | coordinates


def _long(seed: str, rows: Sequence[tuple[str, Json]]) -> pd.DataFrame:
    """Returns the numbers of a training log with columns seed, step, name, value."""
    numbers = [
        {name: value for name, value in row.items() if type(value) in (int, float)}
        for _, row in rows
    ]
    table = pd.DataFrame(numbers, columns=None if numbers else ["step"])
    long = table.melt("step", var_name="name").dropna()
    # A resumed run may log a step again.
    long = long.drop_duplicates(["step", "name"], keep="last")
    long.insert(0, "seed", seed)
    return long.astype({"value": float})


def _read_samples(path: epath.Path, settings: Json) -> dict[str, np.ndarray]:
    """Returns the non-empty arrays of a `samples.npz`, with their shapes checked."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            samples = {name: array for name, array in archive.items() if array.size}
    except Exception as error:  # zipfile, zlib and NumPy raise different ones
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}); remove it and run "
            "--mode=evaluate, which writes it again"
        ) from error
    counts = (len(settings.get(name, ())) for name in ("targets", "classes"))
    sizes = {"2": 2, "3": 3, **dict(zip("TC", counts, strict=True))}
    for name, dimensions in _SAMPLES.items():
        if name in samples:
            letters, shape = dimensions.split(), samples[name].shape
            expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            sizes = dict(zip(letters, shape, strict=False)) | sizes
            if [*shape] != [sizes.get(letter) for letter in letters]:
                raise ValueError(
                    f"{path}: {name} must have the shape [{expected}], found {[*shape]}"
                )
    return samples
