"""What experiments found, as files: one record for each, and their sum, `results.json`.

A record is written as soon as its experiment is finished, so that an evaluation that is
interrupted goes on where it stopped. It is used again only by an evaluation with the
same settings of the same checkpoint.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from invariance_jax.experiments.subject import Measured
from invariance_jax.runs.workdir import provenance, tuples
from invariance_jax.runtime.files import write_json
from invariance_jax.training.checks import is_asked
from invariance_jax.training.keys import EXPERIMENTS, READERS, STUDIES

FORMAT = 1
"""The format number of records and of `results.json`."""

_log = logging.getLogger(__name__)


def chosen(settings: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Returns those of some experiments that `evaluation.experiments` asks for.

    Args:
      settings: a configuration, or the result of `training.settings.resolve`.
      names: `keys.EXPERIMENTS` or `keys.STUDIES`.
    """
    asked = settings.evaluation.experiments
    return tuple(name for name in names if is_asked(name, asked))


def sizes(settings: Any) -> dict[str, int]:
    """Returns how many examples probes are fitted on and measured on.

    Args:
      settings: the result of `training.settings.resolve`.

    Returns:
      {"train_examples", "test_examples"}, as in the settings of an evaluation; the
      former before `evaluation.label_fraction`.
    """
    most, asked = settings.data, settings.evaluation
    train, test = most.train_examples, most[f"{asked.split}_examples"]
    return {
        "train_examples": min(asked.train_examples or train, train),
        "test_examples": min(asked.test_examples or test, test),
    }


def read(workdir: epath.Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns experiment -> its record, of those that were measured in the same way.

    Args:
      workdir: the work directory of one seed.
      settings: those of the evaluation, as in `results.json`.

    Returns:
      In the order of `keys.EXPERIMENTS`.
    """
    found = {}
    for name in EXPERIMENTS:
        record = _read(_path(workdir, name))
        if record is None or record["format"] != FORMAT:
            continue
        key = _difference(name, settings, record["settings"])
        if key is None:
            found[name] = record
        else:
            value = record["settings"].get(key)
            _log.warning(
                "%s: %s was measured with %s = %r; it is left out of results.json",
                *(workdir, name, key, value),
            )
    return found


def make(
    name: str, measured: Measured, settings: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """Returns the record of an experiment.

    Args:
      name: of the experiment.
      measured: its results.
      settings: those of the evaluation.
      seconds: the time that it took.
    """
    return {
        "format": FORMAT,
        "name": name,
        "settings": settings,
        "seconds": seconds,
        "values": measured.values,
        "rows": [row._asdict() for row in measured.rows],
        **provenance(),
    }


def write(workdir: epath.Path, record: Mapping[str, Any]) -> None:
    """Writes the record of an experiment.

    Args:
      workdir: the work directory of one seed.
      record: the result of `make`.
    """
    path = _path(workdir, record["name"])
    path.parent.mkdir(exist_ok=True)
    write_json(path, record)


def results(
    settings: Any,
    evaluated: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, float],
) -> dict[str, Any]:
    """Returns the content of the `results.json` of one seed.

    Args:
      settings: the result of `training.settings.resolve`.
      evaluated: the settings of the evaluation.
      records: experiment -> its record.
      values: name -> number, more for the summary.
    """
    summary: dict[str, float] = {}
    for record in records.values():
        summary |= record["values"]
    summary |= values
    return {
        "format": FORMAT,
        "n": 1,
        "seeds": [settings.seed],
        "settings": {**evaluated, "experiments": tuple(records)},
        "seconds": sum(record["seconds"] for record in records.values()),
        "summary": {name: summarize([value]) for name, value in summary.items()},
        "experiments": {
            name: {
                "seconds": record["seconds"],
                "command": record["command"],
                "rows": [
                    {
                        "at": row["at"],
                        "values": {k: summarize([v]) for k, v in row["values"].items()},
                    }
                    for row in record["rows"]
                ],
            }
            for name, record in records.items()
            if record["rows"]
        },
        **provenance(),
    }


def write_results(workdir: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Writes `results.json`; studies that the former one holds are kept.

    Args:
      workdir: the work directory.
      content: what it shall hold.
    """
    path = epath.Path(workdir) / "results.json"
    former = (_read(path) or {}).get("experiments", {})
    kept = {name: former[name] for name in STUDIES if name in former}
    experiments = kept | content["experiments"]
    order = [name for name in (*EXPERIMENTS, *STUDIES) if name in experiments]
    ordered = {name: experiments[name] for name in order}
    write_json(path, {**content, "experiments": ordered})


def aggregate(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the results over seeds: mean, and standard error with ddof 1.

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
    summaries = [one["summary"] for one in each]
    shared = [name for name in first["summary"] if all(name in s for s in summaries)]
    return {
        **first,
        "n": len(each),
        "seeds": [seed for one in each for seed in one["seeds"]],
        "seconds": sum(one["seconds"] for one in each),
        "summary": {name: _over(summaries, name) for name in shared},
        "experiments": _aggregate_rows([one.get("experiments", {}) for one in each]),
    }


def _aggregate_rows(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the rows over seeds, of the experiments that every seed has."""
    found = {}
    for name in each[0]:
        if not all(name in one for one in each):
            continue
        places = [
            {_place(row): row["values"] for row in one[name]["rows"]} for one in each
        ]
        rows = []
        for row in each[0][name]["rows"]:
            values = [place.get(_place(row)) for place in places]
            if all(value is not None for value in values):
                names = [
                    k for k in row["values"] if all(k in value for value in values)
                ]
                over = {k: _over(values, k) for k in names}
                rows.append({"at": row["at"], "values": over})
        seconds = sum(one[name]["seconds"] for one in each)
        command = each[0][name].get("command")
        found[name] = {"seconds": seconds, "command": command, "rows": rows}
    return found


def _place(row: Mapping[str, Any]) -> str:
    return json.dumps(row["at"], sort_keys=True)


def _over(each: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    return summarize([one[name]["mean"] for one in each])


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Returns mean, standard error (ddof 1; None for one value) and n.

    Args:
      values: one per seed.
    """
    error = None
    if len(values) > 1:
        error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": float(np.mean(values)), "standard_error": error, "n": len(values)}


def _path(workdir: epath.Path, name: str) -> epath.Path:
    return workdir / "experiments" / f"{name}.json"


def _read(path: epath.Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return dict(tuples(json.loads(path.read_text())))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it.") from error


def _difference(
    name: str, settings: Mapping[str, Any], found: Mapping[str, Any]
) -> str | None:
    """Returns the first key of two evaluations that changes the experiment, if any."""
    for key in sorted({*settings, *found}):
        # A key that earlier versions lack is one that was empty then.
        values = [tuples(one.get(key, ())) for one in (settings, found)]
        if name in READERS.get(key, (name,)) and values[0] != values[1]:
            return key
    return None
