"""The long table of results: rows, the file of each experiment, and `results.json`.

An experiment is written as soon as it is measured, so that an evaluation that is
interrupted goes on where it stopped; it is used again only by an evaluation with the
same settings of the same checkpoint. Every number is a row (experiment, metric,
coordinates, seed, value); the summary follows from the rows, and what several seeds
found is all their rows.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from invariance_jax.runs.workdir import provenance
from invariance_jax.runtime.files import write_json
from invariance_jax.settings import KEYS, plugins
from invariance_jax.settings.check import is_asked
from invariance_jax.settings.schema import EXPERIMENTS, WITH_PROBE, tuples
from invariance_jax.tasks import Task

FORMAT = 3
"""The format number of the files of experiments and of `results.json`."""

TRAINING = "training"
"""The experiment of the rows that the training log ends with."""

Value = str | int | float

Json = dict[str, Any]
"""What a JSON file holds."""

_NAMED = ("target", "family", "encoder", "probe")

_log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One number of an experiment and where on its grid it was measured.

    A row without other coordinates than views (M, or "plain"), target, family, encoder
    and probe is in the summary: `metric[.target][.family][.encoder][.probe][@views]`.

    Attributes:
      metric: such as "accuracy".
      value: the number.
      at: coordinate -> value, such as {"views": 8, "target": "b"}.
    """

    metric: str
    value: float
    at: Mapping[str, Value] = {}


class ExperimentResult(NamedTuple):
    """What an experiment has measured on one seed.

    Attributes:
      rows: all numbers.
    """

    rows: Sequence[Row]


def rows_of(values: Mapping[str, float], **at: Value | None) -> list[Row]:
    """Returns the metrics of a probe as rows; "mse.b" is mse of the target b.

    Args:
      values: metric -> number.
      **at: coordinates; one that is None is left out.
    """
    place = {name: value for name, value in at.items() if value is not None}
    rows = []
    for name, value in values.items():
        metric, _, target = name.partition(".")
        rows.append(Row(metric, value, place | ({"target": target} if target else {})))
    return rows


def wanted(task: Task) -> tuple[str, ...]:
    """Returns the experiments that a run asks for, built-in ones first.

    Without labels, those that need them are left out.
    """
    asked = task.settings.evaluation.experiments
    built_in = [
        name
        for name in EXPERIMENTS
        if is_asked(task.settings, name) and (task.metric or name not in WITH_PROBE)
    ]
    return (*built_in, *filter(plugins.is_own, asked))


def settings_of(task: Task, step: int) -> Json:
    """Returns the settings of an evaluation: its keys, and what it is of.

    Args:
      task: that of the run.
      step: finished steps of the checkpoint.
    """
    chosen, sizes = task.settings.evaluation, task.settings.data
    train, test = sizes.train_examples or 0, getattr(sizes, f"{chosen.split}_examples")
    found = dataclasses.asdict(chosen) | {"step": step}
    # Before evaluation.label_fraction.
    found["train_examples"] = min(chosen.train_examples or train, train)
    found["test_examples"] = min(chosen.test_examples or test, test)
    names = {"targets": task.targets, "classes": task.classes}
    return found | {name: value for name, value in names.items() if value}


def make_record(
    name: str,
    result: ExperimentResult,
    *,
    seed: int,
    settings: Json,
    source: str,
    seconds: float,
) -> Json:
    """Returns what is kept of an experiment.

    Args:
      name: of the experiment.
      result: what it returned.
      seed: of the run.
      settings: the result of `settings_of`.
      source: what tells the code of a user's own experiment from a changed one.
      seconds: the time that it took.
    """
    return {
        "format": FORMAT,
        "name": name,
        "source": source,
        "settings": settings,
        "seconds": seconds,
        "rows": table(name, result.rows, seed=seed),
        **provenance(),
    }


def table(experiment: str, rows: Iterable[Row], *, seed: int) -> list[Json]:
    """Returns rows as `results.json` has them; a value that is not finite is None."""
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


def write_record(workdir: epath.Path, record: Json) -> None:
    """Writes the file of an experiment into the work directory of its seed."""
    # A colon has a meaning in some file systems.
    name = record["name"].replace(":", ".")
    path = workdir / "experiments" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    write_json(path, record)


def read_records(
    workdir: epath.Path, settings: Json, sources: Mapping[str, str]
) -> dict[str, Json]:
    """Returns experiment -> its record, of those that were measured in the same way.

    Args:
      workdir: the work directory of one seed.
      settings: the result of `settings_of`.
      sources: experiment -> the source of its code now, of those that are asked for.

    Raises:
      ValueError: if a file is damaged; it is named.
    """
    folder, found = workdir / "experiments", {}
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in [path for path in files if path.suffix == ".json"]:
        record = read_json(path)
        if record.get("format") != FORMAT:
            continue
        try:
            name, rows, evaluated = (record[k] for k in ("name", "rows", "settings"))
            key = _difference(name, settings, evaluated)
            _check_rows(rows)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error!r}; remove it.") from error
        if key is None and record["source"] == sources.get(name, record["source"]):
            found[name] = record
        else:
            how = f"with {key} = {evaluated.get(key)!r}" if key else "by other code"
            text = "%s: %s was measured %s; it is left out of results.json"
            _log.warning(text, workdir, name, how)
    return found


def _ordered(names: Iterable[str]) -> list[str]:
    """Returns experiments, the built-in ones first."""
    known = [name for name in EXPERIMENTS if name in names]
    return known + sorted({*names} - {*EXPERIMENTS})


def _check_rows(rows: Sequence[Json]) -> None:
    for row in rows:
        _ = row["metric"].upper(), dict(row["at"]), row["seed"], row["value"]


def _difference(name: str, settings: Json, found: Json) -> str | None:
    """Returns the first key of two evaluations that changes the experiment, if any."""
    for key in sorted({*settings, *found}):
        declared = KEYS.get(f"evaluation.{key}")
        readers = declared.key.readers if declared else None
        if readers and plugins.is_own(name):
            readers = None
        # A key that earlier versions lack is one that was empty then.
        values = [tuples(one.get(key, ())) for one in (settings, found)]
        if (readers is None or name in readers) and values[0] != values[1]:
            return key
    return None


def read_json(path: epath.Path) -> Json:
    """Returns the object in a JSON file.

    Raises:
      ValueError: if it is damaged; the file is named.
    """
    try:
        return dict(tuples(json.loads(path.read_text())))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it.") from error


def of_seed(
    seed: int, settings: Json, records: Mapping[str, Json], more: Iterable[Row]
) -> Json:
    """Returns the content of the `results.json` of one seed.

    Args:
      seed: of the run.
      settings: the result of `settings_of`.
      records: experiment -> its record.
      more: the rows of the experiment "training".
    """
    records = {name: records[name] for name in _ordered(records)}
    rows = [row for record in records.values() for row in record["rows"]]
    rows += table(TRAINING, more, seed=seed)
    parts = {
        name: {key: record[key] for key in ("seconds", "command")}
        for name, record in records.items()
    }
    settings = settings | {"experiments": tuple(records)}
    return _whole([seed], settings, rows, parts)


def aggregate(each: Sequence[Json]) -> Json:
    """Returns the results over seeds: the rows of all of them.

    Args:
      each: the content of `results.json` of every seed.

    Raises:
      ValueError: if the seeds were evaluated in different ways; the key is named.
    """
    first = each[0]
    for other in each[1:]:
        for key in {**first["settings"], **other["settings"]}:
            values = [tuples(one["settings"].get(key)) for one in (first, other)]
            if values[0] != values[1] and key != "experiments":
                raise ValueError(
                    f"seed {first['seeds'][0]} was evaluated with evaluation.{key} = "
                    f"{values[0]!r}, seed {other['seeds'][0]} with {values[1]!r}; "
                    "expected the same."
                )
    parts = {
        name: {
            **part,
            "seconds": sum(one["experiments"][name]["seconds"] for one in each),
        }
        for name, part in first["experiments"].items()
        if all(name in one["experiments"] for one in each)
    }
    settings = first["settings"] | {"experiments": tuple(parts)}
    rows = [row for one in each for row in one["rows"]]
    return _whole([s for one in each for s in one["seeds"]], settings, rows, parts)


def _whole(
    seeds: list[int], settings: Json, rows: list[Json], parts: dict[str, Json]
) -> Json:
    return {
        "format": FORMAT,
        "n": len(seeds),
        "seeds": seeds,
        "seconds": sum(part["seconds"] for part in parts.values()),
        **provenance(),
        "settings": settings,
        "summary": summary(rows),
        "rows": rows,
        "experiments": parts,
    }


def write_results(workdir: str | os.PathLike[str], content: Json) -> None:
    """Writes `results.json` into a work directory."""
    write_json(epath.Path(workdir) / "results.json", content)


def summary(rows: Iterable[Json]) -> dict[str, Json]:
    """Returns name -> mean, standard error (ddof 1; None for one seed) and n.

    Of what two experiments measured, the first one counts; of what some seeds lack,
    there is no entry.

    Args:
      rows: those of `results.json`.
    """
    found: dict[str, dict[int, float | None]] = {}
    seeds = set()
    for row, name in _named(rows):
        seeds.add(row["seed"])
        found.setdefault(name, {}).setdefault(row["seed"], row["value"])
    return {
        name: summarize([*values.values()])
        for name, values in found.items()
        if {*values} == seeds
    }


def _named(rows: Iterable[Json]) -> Iterator[tuple[Json, str]]:
    """Yields the rows of the summary, each with its name there."""
    for row in rows:
        at = row["at"]
        if {*at} <= {*_NAMED, "views"}:
            parts = [row["metric"], *(at[name] for name in _NAMED if name in at)]
            views = f"@{at['views']}" if "views" in at else ""
            yield row, ".".join(map(str, parts)) + views


def summarize(values: Sequence[float | None]) -> Json:
    """Returns mean, standard error (ddof 1; None for one value) and n.

    Args:
      values: one per seed; where one is None, the mean is too.
    """
    mean = error = None
    numbers = [value for value in values if value is not None]
    if len(numbers) == len(values):
        mean = float(np.mean(numbers))
        if len(numbers) > 1:
            error = float(np.std(numbers, ddof=1) / np.sqrt(len(numbers)))
    return {"mean": mean, "standard_error": error, "n": len(values)}
