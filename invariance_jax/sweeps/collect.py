"""What a sweep has finished: the work directories that its report compares.

A variant over several seeds is aggregated here, once all of them are evaluated. Runs
that are not what `sweep.json` says, or were evaluated in different ways, are never
mixed.
"""

import logging
from collections.abc import Sequence

from etils import epath

from invariance_jax.runs import results
from invariance_jax.runs.workdir import first_difference, one_per_seed, read_config
from invariance_jax.runtime.files import read_json, work_folder, write_json
from invariance_jax.settings import (
    Config,
    Settings,
    flatten,
    from_dict,
    resolve,
    to_dict,
)
from invariance_jax.settings.schema import tuples
from invariance_jax.tasks import make_task
from invariance_jax.types import Json

FORMAT = 2
"""The format number of `sweep.json`."""

_log = logging.getLogger(__name__)


def finished(workdirs: Sequence[str]) -> list[epath.Path]:
    """Returns work directories, the parent of a sweep replaced by what it has finished.

    Writes the `config.json` and `results.json` of variants over several seeds.
    """
    found = []
    for workdir in map(work_folder, workdirs):
        if (workdir / "sweep.json").exists():
            found += _variants(workdir)
        else:
            found.append(workdir)
    return found


def read_record(parent: epath.Path) -> Json:
    """Returns the content of the `sweep.json` of a sweep, checked."""
    path = parent / "sweep.json"
    content = read_json(path)
    number = content.get("format")
    if number != FORMAT:
        raise ValueError(f"{path} has format {number}, this version reads {FORMAT}.")
    try:
        for one in content["variants"].values():
            from_dict(one["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    return content


def is_evaluated(settings: Settings, workdir: epath.Path) -> bool:
    """Returns whether the run of one seed has the results that its settings ask for."""
    found = _results(workdir)
    return found is not None and not _differences(settings, found)


def _variants(parent: epath.Path) -> list[epath.Path]:
    found = []
    variants = read_record(parent)["variants"]
    for name, variant in variants.items():
        config, folder = from_dict(variant["config"]), parent / name
        each = {path: _read(one, path) for one, path in one_per_seed(config, folder)}
        whole = [content for content in each.values() if content is not None]
        for path in [path for path, content in each.items() if content is None]:
            _log.warning("%s: not finished, left out", path)
        if len(whole) == len(each):
            found.append(folder)
        if len(whole) == len(each) > 1:
            first = read_json(next(iter(each)) / "config.json")
            write_json(folder / "config.json", first | {"config": to_dict(config)})
            write_json(folder / "results.json", results.aggregate(whole))
    if not found:
        raise ValueError(f"{parent}: none of the {len(variants)} variants is finished.")
    if found[0] != parent / next(iter(variants)):
        _log.warning(
            "%s: compared to %s, as the first is missing", parent, found[0].name
        )
    return found


def _read(config: Config, workdir: epath.Path) -> Json | None:
    """Returns the results of a run, checked; None if it is not finished."""
    found = _results(workdir)
    if found is None:
        return None
    own = read_config(workdir)
    key = first_difference(config, own)
    if key is not None:
        raise ValueError(
            f"{workdir} has {key} = {flatten(own)[key]!r}; expected "
            f"{flatten(config)[key]!r}, as sweep.json says."
        )
    differences = _differences(resolve(config), found)
    if "step" in differences:
        return None
    for key, (wanted, value) in differences.items():
        raise ValueError(
            f"{workdir} was evaluated with {key} = {value!r}; expected {wanted!r}, as "
            "sweep.json says. Start the sweep again with --mode=evaluate."
        )
    return found


def _results(workdir: epath.Path) -> Json | None:
    path = workdir / "results.json"
    return tuples(read_json(path)) if path.exists() else None


def _differences(settings: Settings, found: Json) -> dict[str, tuple[object, object]]:
    """Returns key -> (wanted, found) of an evaluation that was another one."""
    task, values = make_task(settings), dict(found["settings"])
    wanted = results.settings_of(task, settings.derived.steps)
    # More experiments than were asked for do no harm.
    if {*results.wanted(task)} <= {*values.get("experiments", ())}:
        wanted["experiments"] = values["experiments"]
    # Weights that were given may be evaluated as they are.
    if settings.encoder.weights and values["step"] == 0:
        wanted["step"] = 0
    return {
        key if key == "step" else f"evaluation.{key}": (value, values.get(key, ()))
        for key, value in wanted.items()
        if value != values.get(key, ())  # what an older run lacks was empty
    }
