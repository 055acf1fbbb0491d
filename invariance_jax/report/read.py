"""Reads and checks what a finished run left in its work directory.

A run over seeds keeps its training log and samples in `seed_0`, `seed_1`, ... and the
aggregated `results.json` in the directory itself. Numbers are kept as they were.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from invariance_jax.report.results import Results, check_format, check_results
from invariance_jax.runtime.files import absolute


class Log(NamedTuple):
    """The training log of one seed.

    Attributes:
      label: the folder's name for a run over seeds, else "".
      curves: name -> (steps [S], values [S]), increasing; of one step, the last value.
      skipped: how many lines could not be read.
    """

    label: str
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    skipped: int


class Samples(NamedTuple):
    """What `samples.npz` holds; arrays that it lacks are None.

    Attributes:
      views: uint8 `[rows, draws, S, S, 3]`, a row is one example under several draws.
      true: `[N, T]`.
      predicted: `[N, T]`, from features averaged over the largest M.
      predicted_single: `[N, T]`, from M = 1.
      confusion: integer `[C, C]`, test examples by true class (row) and predicted one.
    """

    views: np.ndarray | None
    true: np.ndarray | None
    predicted: np.ndarray | None
    predicted_single: np.ndarray | None
    confusion: np.ndarray | None


class Run(NamedTuple):
    """One finished work directory."""

    name: str
    path: epath.Path
    config: dict[str, Any]
    derived: dict[str, Any]
    environment: dict[str, Any]
    command: str | None
    results: Results
    logs: tuple[Log, ...]
    samples: Samples | None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested mapping as dotted name -> value.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def distinct_names(paths: Sequence[epath.Path]) -> list[str]:
    """Returns one name per directory: its last parts, as many as tell it apart.

    >>> distinct_names([epath.Path(p) for p in ("/a/run", "/b/run", "/b/other")])
    ['a/run', 'b/run', 'other']
    """
    names = []
    for path in paths:
        parts = path.parts
        for depth in range(1, len(parts) + 1):
            same = [other for other in paths if other.parts[-depth:] == parts[-depth:]]
            if len(same) == 1:
                break
        names.append("/".join(parts[-depth:]).replace("//", "/"))
    return names


def read_runs(workdirs: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Returns the runs of finished work directories, in the order given.

    Raises:
      ValueError: for no directory, one given twice, or one that is missing, unfinished,
        unreadable or of a newer format.
    """
    if isinstance(workdirs, str | os.PathLike) or not workdirs:
        raise ValueError(
            f"workdirs must be a list of one or more directories, found {workdirs!r}"
        )
    paths = [absolute(workdir) for workdir in workdirs]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(f"work directory {twice[0]} is given twice; give each once")
    names = distinct_names(paths)
    return [_read_run(path, name) for path, name in zip(paths, names, strict=True)]


def _read_run(path: epath.Path, name: str) -> Run:
    if not path.is_dir():
        raise ValueError(f"work directory {path} does not exist or is not a directory")
    missing = [f for f in ("config.json", "results.json") if not (path / f).is_file()]
    if missing:
        raise ValueError(
            f"work directory {path} has no {' and no '.join(missing)}: the run is not "
            "finished (--mode=all or --mode=evaluate finishes it)"
        )
    saved = _read_json(path / "config.json")
    where = f"work directory {path}: results.json"
    results = check_results(_read_json(path / "results.json"), where)
    folders = _seed_folders(path, results.seeds) or [path]
    command = saved.get("command")
    if isinstance(command, list):
        command = " ".join(map(str, command))
    return Run(
        name=name,
        path=path,
        config=_mapping(saved.get("config")),
        derived=_mapping(saved.get("derived")),
        environment=_mapping(saved.get("environment")),
        command=None if command is None else str(command),
        results=results,
        logs=tuple(
            _read_log(folder, "" if folder == path else folder.name)
            for folder in folders
            if (folder / "metrics.jsonl").is_file()
        ),
        samples=_read_samples(folders[0], len(results.targets)),
    )


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _read_json(path: epath.Path) -> dict[str, Any]:
    where = f"work directory {path.parent}: {path.name}"
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold an object, not {type(content).__name__}")
    check_format(content, where)
    return content


def _seed_folders(path: epath.Path, seeds: Sequence[int]) -> list[epath.Path]:
    numbered = {}
    for folder in path.glob("seed_*"):
        match = re.fullmatch(r"seed_(\d+)", folder.name)
        if match and folder.is_dir():
            numbered[int(match.group(1))] = folder
    # A folder that the aggregate does not count is left over from another run.
    counted = seeds if seeds and set(seeds) <= set(numbered) else sorted(numbered)
    return [numbered[seed] for seed in counted]


def _read_log(folder: epath.Path, label: str) -> Log:
    values: dict[str, dict[int, float]] = {}
    skipped = 0
    content = (folder / "metrics.jsonl").read_bytes()
    for line in content.decode(errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (KeyError, TypeError, ValueError):
            # A run that was killed while it wrote leaves a torn line.
            skipped += 1
            continue
        for key, value in record.items():
            if key != "step" and type(value) in (int, float):
                values.setdefault(key, {})[step] = float(value)
    curves = {
        key: (np.array(sorted(at)), np.array([at[step] for step in sorted(at)]))
        for key, at in values.items()
    }
    return Log(label, curves, skipped)


def _read_samples(folder: epath.Path, num_targets: int) -> Samples | None:
    path = folder / "samples.npz"
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            samples = Samples(*(archive.get(name) for name in Samples._fields))
    except Exception as error:  # each library raises its own
        raise ValueError(f"work directory {folder}: samples.npz: {error}") from error
    views = samples.views
    if views is not None and (views.ndim != 5 or views.shape[-1] != 3):
        raise ValueError(
            f"work directory {folder}: samples.npz: views must have shape "
            f"[rows, draws, S, S, 3], found {views.shape}"
        )
    for name, array in samples._asdict().items():
        if name not in ("views", "confusion") and array is not None and num_targets:
            if array.ndim != 2 or array.shape[1] != num_targets:
                raise ValueError(
                    f"work directory {folder}: samples.npz: {name} must have shape "
                    f"[N, {num_targets}], found {array.shape}"
                )
    counts = samples.confusion
    if counts is not None and counts.shape != (len(counts),) * 2:
        found = f"confusion must be [C, C], found {counts.shape}"
        raise ValueError(f"work directory {folder}: samples.npz: {found}")
    return samples
