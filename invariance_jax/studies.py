"""The program of the studies: short runs that differ in a few training keys.

Weights of the penalty, its directions, limits, normalization and place, and what may
stand in its stead, each against the run without a penalty on the same seeds. A run has
a folder in `DIR/studies/` that is a work directory of its own, shared by the studies
that compare it; what is finished is not repeated.
"""

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict
from scipy import stats

from invariance_jax import evaluate, train
from invariance_jax.experiments.points import Changes, make_points
from invariance_jax.runs import records
from invariance_jax.runs.workdir import (
    check,
    one_per_seed,
    provenance,
    read_config,
)
from invariance_jax.runtime import processes
from invariance_jax.sweeps.collect import is_evaluated
from invariance_jax.sweeps.grid import change, folder_name
from invariance_jax.training import keys
from invariance_jax.training.components import is_regression, make_transformation
from invariance_jax.training.settings import flatten, resolve

_log = logging.getLogger(__name__)

_LEVEL = 0.95


def run(config: ConfigDict | None, workdir: str | os.PathLike[str]) -> None:
    """Makes the studies of a configuration, and adds each to `results.json`.

    Every process of a run over several calls it; the main one writes.

    Args:
      config: the configuration of the run. None: that of the work directory.
      workdir: the work directory of the run, evaluated; the runs of the studies are in
        its folder `studies`.

    Raises:
      ValueError: as `prepare`.
      Preempted: if a signal asks for a stop; the same call continues.
    """
    config = read_config(workdir) if config is None else config
    parent = epath.Path(workdir) / "studies"
    diverged: set[str] = set()
    for study, members in prepare(config, workdir).items():
        _log.info("study %s: %d runs", study, len(members))
        for name, one in members.values():
            if name in diverged:
                continue
            try:
                _make(one, parent / name)
            except FloatingPointError as error:
                diverged.add(name)
                _log.error("studies/%s: %s", name, error)
        if processes.is_main_process():
            _write(workdir, study, config, _rows(members, parent, diverged))


def _write(
    workdir: str | os.PathLike[str],
    study: str,
    config: ConfigDict,
    rows: list[dict[str, Any]],
) -> None:
    results = json.loads((epath.Path(workdir) / "results.json").read_text())
    chosen = config.studies.to_dict()
    if study != "penalty_weight":
        del chosen["weights"]
    results["experiments"][study] = {
        "seconds": None,
        "settings": chosen,
        "rows": rows,
        **provenance(),
    }
    records.write_results(workdir, results)


def prepare(
    config: ConfigDict | None, workdir: str | os.PathLike[str]
) -> dict[str, dict[str, tuple[str, ConfigDict]]]:
    """Returns the runs of the studies that a configuration asks for, checked.

    Args:
      config: the configuration of the run. None: that of the work directory.
      workdir: its work directory.

    Returns:
      Study -> label -> the folder in `studies` and the configuration of a run.

    Raises:
      ValueError: if there is no penalty to study, or a configuration is invalid or its
        folder holds another run.
    """
    config = read_config(workdir) if config is None else config
    settings = resolve(config)
    chosen = records.chosen(settings, keys.STUDIES)
    split = settings.studies.split
    if chosen and not settings.data[f"{split}_examples"]:
        raise ValueError(
            f"studies.split is {split!r}, but data.{split}_examples is 0; expected a "
            f"split with examples, as evaluation.experiments asks for {chosen[0]}."
        )
    parameters = make_transformation(settings).names
    found = {}
    for study in chosen:
        points = make_points(study, settings, parameters)
        found[study] = {
            label: _point(config, settings, changes, epath.Path(workdir))
            for label, changes in points.items()
        }
    return found


def _point(
    config: ConfigDict, settings: Any, changes: Changes, workdir: epath.Path
) -> tuple[str, ConfigDict]:
    """Returns the folder and the configuration of a run, checked."""
    own = dict(flatten(config))
    changes = {
        key: value for key, value in changes.items() if not _same(own[key], value)
    }
    name = folder_name(changes) or "base"
    point = ConfigDict(config.to_dict())
    views, steps = settings.evaluation.num_views, settings.studies.steps
    warmup = settings.penalty.warmup_steps * steps / settings.derived.steps
    cache = config.compilation_cache or os.fspath(workdir / "compilation_cache")
    short = {
        "epochs": None,
        "steps": steps,
        "penalty.warmup_steps": math.ceil(warmup),
        "compilation_cache": cache,
        "logging.profile_steps": "",
        "logging.probe_every_steps": 0,
        "checkpoints.keep": 1,
        "checkpoints.keep_every_steps": None,
        "evaluation.experiments": ("downstream", "averaging", "invariance"),
        "evaluation.baselines": (),
        "evaluation.num_views": tuple(sorted({views[0], views[-1]})),
        "evaluation.families": ("all",),
        "evaluation.split": settings.studies.split,
        "evaluation.train_examples": settings.studies.train_examples,
        "evaluation.test_examples": settings.studies.test_examples,
    }
    with point.ignore_type():
        for key, value in {**short, **changes}.items():
            change(point, key, value)
    try:
        check(resolve(point), workdir / "studies" / name)
    except ValueError as error:
        raise ValueError(f"studies/{name}: {error}") from error
    return name, point


def _same(one: Any, other: Any) -> bool:
    """Returns whether two values of a key are one: no limit may be empty or 0."""
    return (one or None) == (other or None)


def _make(config: ConfigDict, folder: epath.Path) -> None:
    """Trains and evaluates a run, unless that is done."""
    each = [(resolve(one), path) for one, path in one_per_seed(config, folder)]
    # A process that comes late could see what another one has written since.
    finished = processes.from_main(np.array([is_evaluated(*one) for one in each]))
    if not finished.all():
        train.run(config, folder)
        evaluate.run(config, folder)


def _rows(
    members: Mapping[str, tuple[str, ConfigDict]],
    parent: epath.Path,
    diverged: set[str],
) -> list[dict[str, Any]]:
    """Returns a row per run, with paired differences to the first if it is there."""
    first: Mapping[str, list[float]] | None = None
    rows = []
    for label, (name, config) in members.items():
        at: dict[str, Any] = {"run": label}
        if label.startswith("weight ") or not rows:
            at["weight"] = config.penalty.weight
        if name in diverged:
            rows.append({"at": at, "values": {"diverged": records.summarize([1.0])}})
            continue
        paths = [path for _, path in one_per_seed(config, parent / name)]
        each = [json.loads((path / "results.json").read_text()) for path in paths]
        summaries = [
            {key: value["mean"] for key, value in one["summary"].items()}
            for one in each
        ]
        values = {key: [one[key] for one in summaries] for key in summaries[0]}
        found = {key: records.summarize(value) for key, value in values.items()}
        found["collapsed"] = records.summarize(
            [_collapsed(resolve(config), one) for one in summaries]
        )
        if not rows:
            first = values
        elif first:
            found |= _differences(values, first)
        rows.append({"at": at, "values": found})
    return rows


def _collapsed(settings: Any, values: Mapping[str, float]) -> float:
    """Returns 1 for a representation that knows next to nothing of the example.

    That is one whose views of one example differ as much as those of two, or whose
    probe has half of the constant predictor's error, or twice its accuracy.
    """
    views = settings.evaluation.num_views[0]
    if is_regression(settings):
        poor = values[f"mse@{views}"] > 0.5 * values["mse.constant"]
    else:
        poor = values[f"accuracy@{views}"] < 2 / settings.data.num_classes
    return float(poor or values["variance.normalized"] > 0.5)


def _differences(
    values: Mapping[str, list[float]], first: Mapping[str, list[float]]
) -> dict[str, Any]:
    """Returns the paired differences to another run, with t-intervals."""
    found = {}
    for key in [key for key in values if key in first]:
        pairs = np.subtract(values[key], first[key])
        found[f"difference.{key}"] = difference = records.summarize(list(pairs))
        if len(pairs) > 1:
            half = stats.t.ppf((1 + _LEVEL) / 2, len(pairs) - 1)
            half *= difference["standard_error"]
            for end, sign in (("low", -1), ("high", 1)):
                value = difference["mean"] + sign * half
                interval = {"mean": value, "standard_error": None, "n": len(pairs)}
                found[f"interval.{key}.{end}"] = interval
    return found
