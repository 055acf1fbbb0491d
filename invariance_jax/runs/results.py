"""The long table of results: rows, the file of each experiment, and `results.json`.

An experiment is written as soon as it is measured, so that an evaluation that is
interrupted goes on where it stopped; it is used again only by an evaluation with the
same settings of the same checkpoint. Every number is a row (experiment, metric,
coordinates, seed, value). The summary follows from the rows, and what several seeds
found is all their rows.
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

FORMAT = 3
"""The format number of the files of experiments and of `results.json`."""

TRAINING = "training"
"""The experiment of the rows that the training log ends with."""

Value = str | int | float
"""What stands in a row of the table."""

NAMED = ("target", "family", "encoder", "probe")
"""Coordinates that stand in the names of the summary."""

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
    """What an experiment has measured on one seed."""

    rows: Sequence[Row]


def rows_of(values: Mapping[str, float], **at: Value | None) -> list[Row]:
    """Returns the metrics of a probe as rows; "mse.b" is mse of the target b.

    A coordinate that is None is left out.
    """
    place = {name: value for name, value in at.items() if value is not None}
    rows = []
    for name, value in values.items():
        metric, _, target = name.partition(".")
        rows.append(Row(metric, value, place | ({"target": target} if target else {})))
    return rows


def wanted(task: Task) -> tuple[str, ...]:
    """Returns the experiments that are asked for, of those that the labels allow."""
    settings = task.settings
    built_in = [
        name
        for name in EXPERIMENTS
        if is_asked(settings, name) and (task.metric or name not in WITH_PROBE)
    ]
    return (*built_in, *filter(plugins.is_own, settings.evaluation.experiments))


def settings_of(task: Task, step: int) -> Json:
    """Returns how the checkpoint of a step is measured: keys, examples, names."""
    chosen, sizes = task.settings.evaluation, task.settings.data
    train, test = sizes.train_examples or 0, getattr(sizes, f"{chosen.split}_examples")
    names = {"targets": task.targets, "classes": task.classes}
    return {
        **dataclasses.asdict(chosen),
        "step": step,
        "train_examples": min(chosen.train_examples or train, train),
        "test_examples": min(chosen.test_examples or test, test),
        **{name: value for name, value in names.items() if value},
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


def keep(
    workdir: epath.Path, name: str, rows: list[Json], **how: float | str | Json
) -> Json:
    """Returns the record of an experiment; the main process writes it."""
    record = {"format": FORMAT, "name": name, "rows": rows, **how, **provenance()}
    if is_main_process():
        # A colon has a meaning in some file systems.
        path = workdir / "experiments" / f"{name.replace(':', '.')}.json"
        path.parent.mkdir(exist_ok=True)
        write_json(path, record)
    return record


def read_records(
    workdir: epath.Path, settings: Json, sources: Mapping[str, str]
) -> dict[str, Json]:
    """Returns experiment -> its record, of those that were measured in the same way."""
    folder, found = workdir / "experiments", {}
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in [path for path in files if path.suffix == ".json"]:
        try:
            record = tuples(read_json(path))
            if record.get("format") != FORMAT:
                continue
            name, then = record["name"], dict(record["settings"])
            summary(record["rows"]), record["seconds"], record["command"]
            key = _difference(name, settings, then)
            same_code = record["source"] == sources.get(name, record["source"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); remove it.") from error
        if key is None and same_code:
            found[name] = record
        else:
            how = f"with {key} = {then.get(key)!r}" if key else "by other code"
            text = "%s: %s was measured %s; it is left out of results.json"
            _log.warning(text, workdir, name, how)
    return found


def _difference(name: str, settings: Json, found: Json) -> str | None:
    """Returns the first key of two evaluations that changes the experiment, if any."""
    for key in sorted({*settings, *found}):
        declared = KEYS.get(f"evaluation.{key}")
        readers = declared.readers if declared else None
        reads = readers is None or name in readers
        # A key that earlier versions lack is one that was empty then.
        values = [tuples(one.get(key, ())) for one in (settings, found)]
        if (reads or (readers and plugins.is_own(name))) and values[0] != values[1]:
            return key
    return None


def of_seed(
    seed: int, settings: Json, records: Mapping[str, Json], more: Iterable[Row]
) -> Json:
    """Returns the content of the `results.json` of one seed."""
    own = sorted({*records} - {*EXPERIMENTS})
    names = [name for name in (*EXPERIMENTS, *own) if name in records]
    rows = [row for name in names for row in records[name]["rows"]]
    parts = {
        name: {key: records[name][key] for key in ("seconds", "command")}
        for name in names
    }
    return _whole([seed], settings, rows + table(TRAINING, more, seed=seed), parts)


def aggregate(each: Sequence[Json]) -> Json:
    """Returns the results over seeds: the rows of all of them."""
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
    parts = {}
    for name, part in first["experiments"].items():
        if all(name in one["experiments"] for one in each):
            seconds = sum(one["experiments"][name]["seconds"] for one in each)
            parts[name] = {**part, "seconds": seconds}
    seeds, rows = ([x for one in each for x in one[key]] for key in ("seeds", "rows"))
    return _whole(seeds, first["settings"], rows, parts)


def _whole(
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

    Of what two experiments measured, the first counts; what a seed lacks is left out.
    """
    found: dict[str, dict[int, float | None]] = {}
    for row in rows:
        at = dict(row["at"])
        views = f"@{at.pop('views')}" if "views" in at else ""
        if {*at} <= {*NAMED}:
            parts = [row["metric"], *(str(at[name]) for name in NAMED if name in at)]
            values = found.setdefault(".".join(parts) + views, {})
            values.setdefault(row["seed"], row["value"])
    seeds = {seed for values in found.values() for seed in values}
    return {
        name: _summarize([*values.values()])
        for name, values in found.items()
        if {*values} == seeds
    }


def _summarize(values: Sequence[float | None]) -> Json:
    numbers = [float("nan") if value is None else value for value in values]
    mean, n = float(np.mean(numbers)), len(numbers)
    error = float(np.std(numbers, ddof=1) / np.sqrt(n)) if n > 1 else math.nan
    whole = [value if math.isfinite(value) else None for value in (mean, error)]
    return {"mean": whole[0], "standard_error": whole[1], "n": n}
