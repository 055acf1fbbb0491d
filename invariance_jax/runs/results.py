"""The long table of results: rows, the file of each experiment, and `results.json`.

Each experiment is written as soon as it is measured; an interrupted or a later
evaluation reuses it for the same checkpoint with the same settings. Every number is a
row (experiment, metric, coordinates, seed, value). Results of several seeds hold the
rows of all of them.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from invariance_jax.runs.workdir import provenance
from invariance_jax.runtime.files import read_json, write_json
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.settings import KEYS, plugins
from invariance_jax.settings.rules import is_asked
from invariance_jax.settings.schema import EXPERIMENTS, WITH_PROBE, tuples
from invariance_jax.tasks import Task
from invariance_jax.types import Json

FORMAT = 3  # of the files of experiments and of `results.json`

TRAINING = "training"  # experiment of the rows from the end of the training log

Value = str | int | float  # of a coordinate of a row

NAMED = ("target", "family", "encoder", "probe")
"""Coordinates, besides the views, that names of the summary contain."""

_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One number of an experiment and its coordinates on the experiment's grid.

    The summary holds the rows that have no coordinates but views (M, or "plain"),
    target, family, encoder and probe; their names there are
    `metric[.target][.family][.encoder][.probe][@views]`.

    Attributes:
      metric: name of the metric, such as "accuracy".
      value: the number.
      at: coordinate -> value, such as {"views": 8, "target": "b"}.
    """

    metric: str
    value: float
    at: Mapping[str, Value] = {}


class ExperimentResult(NamedTuple):
    """The result of an experiment on one seed."""

    rows: Sequence[Row]


def rows_of(values: Mapping[str, float], **at: Value | None) -> list[Row]:
    """Returns the metrics of a probe as rows; "mse.b" is the MSE of the target b.

    Coordinates that are None are left out.
    """
    known = {name: value for name, value in at.items() if value is not None}
    rows = []
    for name, value in values.items():
        metric, _, target = name.partition(".")
        rows.append(Row(metric, value, known | ({"target": target} if target else {})))
    return rows


def left_out(task: Task) -> list[str]:
    """Returns the requested experiments that are not made, as there are no labels."""
    names = [name for name in WITH_PROBE if is_asked(task.settings, name)]
    return [] if task.metric else names


def wanted(task: Task) -> tuple[str, ...]:
    """Returns the requested experiments; built-in ones with a probe need labels."""
    settings, skipped = task.settings, left_out(task)
    asked = [name for name in EXPERIMENTS if is_asked(settings, name)]
    built_in = [name for name in asked if name not in skipped]
    return (*built_in, *filter(plugins.is_own, settings.evaluation.experiments))


def settings_of(task: Task, step: int) -> Json:
    """Returns the settings of an evaluation: keys, step, examples, target names."""
    evaluation, data = task.settings.evaluation, task.settings.data
    train = data.train_examples or 0
    test = getattr(data, f"{evaluation.split}_examples")
    names = {"targets": task.targets, "classes": task.classes}
    return {
        **dataclasses.asdict(evaluation),
        "step": step,
        "train_examples": min(evaluation.train_examples or train, train),
        "test_examples": min(evaluation.test_examples or test, test),
        **{name: value for name, value in names.items() if value},
    }


def table(experiment: str, rows: Iterable[Row], *, seed: int) -> list[Json]:
    """Returns rows in the form of `results.json`; a non-finite value becomes None."""
    return [
        {
            "experiment": experiment,
            "metric": row.metric,
            "at": dict(row.at),
            "seed": seed,
            "value": float(row.value) if math.isfinite(row.value) else None,
        }
        for row in rows
    ]


def keep(
    workdir: epath.Path, name: str, rows: list[Json], **how: float | str | Json
) -> Json:
    """Returns the record of an experiment, which the main process writes to a file."""
    record = {"format": FORMAT, "name": name, "rows": rows, **how, **provenance()}
    if is_main_process():
        # Some file systems do not allow a colon in a name.
        path = workdir / "experiments" / f"{name.replace(':', '-')}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, record)
    return record


def read_records(
    workdir: epath.Path, settings: Json, sources: Mapping[str, str]
) -> dict[str, Json]:
    """Returns experiment -> record, for those with these settings and source hashes."""
    folder, records, others = workdir / "experiments", {}, dict[str, str]()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in [path for path in files if path.suffix == ".json"]:
        try:
            record = tuples(read_json(path))
            if record.get("format") != FORMAT:
                continue
            name, old_settings = record["name"], dict(record["settings"])
            summary(record["rows"]), record["seconds"], record["command"]  # checks
            key = _difference(name, settings, old_settings)
            same_code = record["source"] == sources.get(name, record["source"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); remove it.") from error
        if key is None and same_code:
            records[name] = record
        else:
            how = f"with {key} = {old_settings.get(key)!r}" if key else "by other code"
            others[name] = how
    # A file of an own experiment had another name in version 1.0.0.
    for name, how in others.items():
        if name not in records:
            text = "%s: %s was measured %s; it is left out of results.json"
            _log.warning(text, workdir, name, how)
    return records


def _difference(name: str, settings: Json, old_settings: Json) -> str | None:
    """Returns the first differing key that the experiment depends on, if any."""
    for key in sorted({*settings, *old_settings}):
        declared = KEYS.get(f"evaluation.{key}")
        readers = declared.readers if declared else None
        is_read = readers is None or name in readers
        # A key that an earlier version did not have counts as empty.
        new, old = (tuples(one.get(key, ())) for one in (settings, old_settings))
        if (is_read or (readers and plugins.is_own(name))) and new != old:
            return key
    return None


def of_seed(
    seed: int, settings: Json, records: Mapping[str, Json], more: Iterable[Row]
) -> Json:
    """Returns the content of `results.json` of one seed; `more`: rows of training."""
    # A user may have renamed a function: those that are requested come first.
    asked = settings.get("experiments", ())
    own = sorted(sorted({*records} - {*EXPERIMENTS}), key=lambda n: n not in asked)
    names = [name for name in (*EXPERIMENTS, *own) if name in records]
    firsts: dict[str, str] = {}  # name in the summary -> the experiment it is from
    for name in names:
        found = dict.fromkeys(map(_name_in_summary, records[name]["rows"]))
        for number in filter(None, found):
            if firsts.setdefault(number, name) != name and name in own:
                text = "the summary has %s of %s, not of %s: rename one of the two"
                _log.warning(text, number, firsts[number], name)
    rows = [row for name in names for row in records[name]["rows"]]
    parts = {
        name: {key: records[name][key] for key in ("seconds", "command")}
        for name in names
    }
    return _content([seed], settings, rows + table(TRAINING, more, seed=seed), parts)


def aggregate(each: Sequence[Json]) -> Json:
    """Returns the content of `results.json` over seeds, from that of each seed."""
    first = each[0]
    for other in each[1:]:
        for key in {**first["settings"], **other["settings"]}:
            values = [tuples(result["settings"].get(key)) for result in (first, other)]
            if values[0] != values[1] and key != "experiments":
                raise ValueError(
                    f"seed {first['seeds'][0]} was evaluated with evaluation.{key} = "
                    f"{values[0]!r}, seed {other['seeds'][0]} with {values[1]!r}; "
                    "expected the same."
                )
    parts = {}
    for name, part in first["experiments"].items():
        if all(name in result["experiments"] for result in each):
            seconds = sum(result["experiments"][name]["seconds"] for result in each)
            parts[name] = {**part, "seconds": seconds}
    seeds = [seed for result in each for seed in result["seeds"]]
    rows = [row for result in each for row in result["rows"]]
    return _content(seeds, first["settings"], rows, parts)


def _content(
    seeds: list[int], settings: Json, rows: list[Json], parts: dict[str, Json]
) -> Json:
    return {
        "format": FORMAT,
        "n": len(seeds),
        "seeds": seeds,
        "seconds": sum(part["seconds"] for part in parts.values()),
        **provenance(),
        "settings": settings | {"experiments": tuple(parts)},
        "summary": summary(rows),
        "rows": rows,
        "experiments": parts,
    }


def summary(rows: Iterable[Json]) -> dict[str, Json]:
    """Returns name -> mean, standard error (ddof 1; None for one seed) and n.

    Of two experiments that give the same name, the first counts. A name that one of the
    seeds lacks is left out.
    """
    by_name: dict[str, dict[int, float | None]] = {}
    for row in rows:
        if name := _name_in_summary(row):
            by_name.setdefault(name, {}).setdefault(row["seed"], row["value"])
    seeds = {seed for values in by_name.values() for seed in values}
    return {
        name: _summarize([*values.values()])
        for name, values in by_name.items()
        if {*values} == seeds
    }


def _name_in_summary(row: Json) -> str:
    """Returns the name that the summary gives to a row, "" if it leaves the row out."""
    at = dict(row["at"])
    views = f"@{at.pop('views')}" if "views" in at else ""
    parts = [row["metric"], *(str(at.pop(name)) for name in NAMED if name in at)]
    return "" if at else ".".join(parts) + views


def _summarize(values: Sequence[float | None]) -> Json:
    numbers = [float("nan") if value is None else value for value in values]
    mean, n = float(np.mean(numbers)), len(numbers)
    error = float(np.std(numbers, ddof=1) / np.sqrt(n)) if n > 1 else math.nan
    finite = [value if math.isfinite(value) else None for value in (mean, error)]
    return {"mean": finite[0], "standard_error": finite[1], "n": n}
