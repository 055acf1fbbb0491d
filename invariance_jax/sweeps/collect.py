"""What a sweep has finished: the work directories that its report compares.

A point over several seeds is aggregated here, once all of them are evaluated. Runs that
are not what `sweep.json` says, or were evaluated in different ways, are never mixed.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from invariance_jax.runs.records import aggregate, chosen, sizes
from invariance_jax.runs.workdir import (
    first_difference,
    one_per_seed,
    read_config,
    tuples,
)
from invariance_jax.runtime.files import write_json
from invariance_jax.training import keys
from invariance_jax.training.settings import flatten

FORMAT = 1
"""The format number of `sweep.json`."""

_log = logging.getLogger(__name__)


def finished(workdirs: Sequence[str]) -> list[epath.Path]:
    """Returns work directories, the parent of a sweep replaced by its finished points.

    Says which runs are missing. Writes the `config.json` and the aggregated
    `results.json` of the points over several seeds.

    Args:
      workdirs: work directories of runs, or parents of sweeps.

    Raises:
      ValueError: if no point of a sweep is finished, or one of them is another run than
        `sweep.json` says or was evaluated in another way; the key is named.
    """
    found = []
    for workdir in map(epath.Path, workdirs):
        if (workdir / "sweep.json").exists():
            found += _points(workdir)
        else:
            found.append(workdir)
    return found


def read_record(parent: epath.Path) -> dict[str, Any]:
    """Returns the content of the `sweep.json` of a sweep.

    Args:
      parent: the work directory of the sweep.

    Raises:
      ValueError: if it is damaged or another version wrote it.
    """
    path = parent / "sweep.json"
    try:
        content = tuples(dict(json.loads(path.read_text())))
        number, _, _ = (content[name] for name in ("format", "grid", "points"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if number != FORMAT:
        raise ValueError(f"{path} has format {number}, this version reads {FORMAT}.")
    return content


def is_evaluated(settings: Any, workdir: epath.Path) -> bool:
    """Returns whether a run has the results that its settings ask for.

    Args:
      settings: the result of `training.settings.resolve`.
      workdir: the work directory of one seed.
    """
    results = _results(workdir)
    return results is not None and not _differences(settings, results)


def _points(parent: epath.Path) -> list[epath.Path]:
    found, missing = [], []
    points = read_record(parent)["points"]
    for name, content in points.items():
        config = ConfigDict(content)
        runs = one_per_seed(config, parent / name)
        each = [_read(one, path) for one, path in runs]
        missing += [str(p) for (_, p), one in zip(runs, each, strict=True) if not one]
        if all(each):
            found.append(parent / name)
            if len(runs) > 1:
                _aggregate(config, [path for _, path in runs], each, parent / name)
    for path in missing:
        _log.warning("%s: not finished, left out", path)
    if not found:
        raise ValueError(f"{parent}: none of the {len(points)} points is finished.")
    return found


def _read(settings: ConfigDict, workdir: epath.Path) -> dict[str, Any] | None:
    """Returns the results of a run, checked; None if it is not finished."""
    results = _results(workdir)
    if results is None:
        return None
    config = read_config(workdir)
    key = first_difference(settings, config)
    if key is not None:
        wanted, values = dict(flatten(settings)), dict(flatten(config))
        raise ValueError(
            f"{workdir} has {key} = {values.get(key)!r}; expected "
            f"{wanted.get(key)!r}, as sweep.json says."
        )
    differences = _differences(settings, results)
    if "step" in differences:
        return None
    for key, (wanted, value) in differences.items():
        raise ValueError(
            f"{workdir} was evaluated with {key} = {value!r}; expected {wanted!r}, as "
            "sweep.json says. Start the sweep again with --mode=evaluate."
        )
    return results


def _results(workdir: epath.Path) -> dict[str, Any] | None:
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        return dict(tuples(json.loads(path.read_text())))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error


def _differences(settings: Any, results: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns key -> (wanted, found) of an evaluation that was another one."""
    evaluation, found = settings.evaluation, results["settings"]
    wanted = {f"evaluation.{key}": value for key, value in evaluation.to_dict().items()}
    wanted |= {f"evaluation.{key}": value for key, value in sizes(settings).items()}
    # More experiments than were asked for do no harm.
    asked = chosen(settings, keys.EXPERIMENTS)
    measured = found.get("experiments", ())
    wanted["evaluation.experiments"] = tuple(
        n for n in keys.EXPERIMENTS if n in {*asked, *measured}
    )
    values = {f"evaluation.{key}": value for key, value in found.items()}
    differences = {
        key: (value, values.get(key))
        for key, value in wanted.items()
        if value != values.get(key)
    }
    # Weights that were given may be evaluated as they are.
    steps = {settings.derived.steps} | ({0} if settings.encoder.weights else set())
    if found["step"] not in steps:
        differences["step"] = settings.derived.steps, found["step"]
    return differences


def _aggregate(
    config: ConfigDict,
    paths: list[epath.Path],
    each: list[dict[str, Any]],
    point: epath.Path,
) -> None:
    """Makes the folder of a point the work directory of a run over seeds."""
    text = (paths[0] / "config.json").read_text()
    content = config.to_dict()
    del content["derived"]
    write_json(point / "config.json", json.loads(text) | {"config": content})
    write_json(point / "results.json", aggregate(each))
