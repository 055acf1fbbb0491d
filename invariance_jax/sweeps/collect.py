"""The finished variants of a sweep: the work directories that its report compares.

A variant over several seeds is aggregated once all its seeds are evaluated. A run whose
configuration or evaluation differs from `sweep.json` is an error.
"""

import logging
from collections.abc import Sequence

from etils import epath

from invariance_jax.runs import results
from invariance_jax.runs.workdir import (
    check_format,
    first_difference,
    one_per_seed,
    read_config,
)
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

FORMAT = 2  # of `sweep.json`

_log = logging.getLogger(__name__)


def finished(workdirs: Sequence[str]) -> list[epath.Path]:
    """Returns work directories; the folder of a sweep becomes its finished variants.

    Writes the `config.json` and `results.json` of variants over several seeds.
    """
    folders = []
    for workdir in map(work_folder, workdirs):
        is_sweep = (workdir / "sweep.json").exists()
        folders += _finished_variants(workdir) if is_sweep else [workdir]
    return folders


def read_variants(parent: epath.Path) -> dict[str, Config]:
    """Returns folder -> configuration of the variants in a sweep's `sweep.json`."""
    path = parent / "sweep.json"
    content = read_json(path)
    check_format(content, FORMAT, path)
    try:
        variants = content["variants"].items()
        return {name: from_dict(variant["config"]) for name, variant in variants}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def is_evaluated(settings: Settings, workdir: epath.Path) -> bool:
    """Returns whether the run of one seed has all results for its settings."""
    content = _read_results(workdir)
    return content is not None and not _differences(settings, content)


def _finished_variants(parent: epath.Path) -> list[epath.Path]:
    """Returns the folders of the finished variants, aggregated over their seeds."""
    folders, variants = [], read_variants(parent)
    for name, config in variants.items():
        folder = parent / name
        seeds = {path: _read(own, path) for own, path in one_per_seed(config, folder)}
        contents = [*filter(None, seeds.values())]
        for path in [path for path, content in seeds.items() if not content]:
            _log.warning("%s: not finished, left out", path)
        if len(contents) == len(seeds):
            folders.append(folder)
        if len(contents) == len(seeds) > 1:
            first = read_json(next(iter(seeds)) / "config.json")
            write_json(folder / "config.json", first | {"config": to_dict(config)})
            write_json(folder / "results.json", results.aggregate(contents))
    if not folders:
        raise ValueError(f"{parent}: none of the {len(variants)} variants is finished.")
    base = parent / next(iter(variants))
    if folders[0] != base:
        text = "%s: %s is not finished; variants are compared to %s"
        _log.warning(text, parent, base.name, folders[0].name)
    return folders


def _read(config: Config, workdir: epath.Path) -> Json | None:
    """Returns the results of a run, checked; None if it is not finished."""
    content = _read_results(workdir)
    if content is None:
        return None
    own = read_config(workdir)
    key = first_difference(config, own)
    if key is not None:
        raise ValueError(
            f"{workdir} has {key} = {flatten(own)[key]!r}; expected "
            f"{flatten(config)[key]!r}, as in sweep.json."
        )
    differences = _differences(resolve(config), content)
    if "step" in differences:
        return None
    for key, (wanted, value) in differences.items():
        raise ValueError(
            f"{workdir} was evaluated with {key} = {value!r}; expected {wanted!r}, as "
            "in sweep.json. Start the sweep again with --mode=evaluate."
        )
    return content


def _read_results(workdir: epath.Path) -> Json | None:
    """Returns the content of `results.json`, with tuples for lists, if it exists."""
    path = workdir / "results.json"
    content = tuples(read_json(path)) if path.exists() else None
    if content is not None and not isinstance(content.get("settings"), dict):
        raise ValueError(f"{path} has no settings; remove it to evaluate again.")
    return content


def _differences(settings: Settings, content: Json) -> dict[str, tuple[object, object]]:
    """Returns key -> (wanted, found) where an evaluation differs from its settings."""
    task, values = make_task(settings), dict(content["settings"])
    wanted = results.settings_of(task, settings.derived.steps)
    # Results of further experiments do no harm.
    if {*results.wanted(task)} <= {*values.get("experiments", ())}:
        wanted["experiments"] = values["experiments"]
    # Weights from a file may be evaluated without training.
    if settings.encoder.weights and values.get("step") == 0:
        wanted["step"] = 0
    return {
        key if key == "step" else f"evaluation.{key}": (value, values.get(key, ()))
        for key, value in wanted.items()
        if value != values.get(key, ())  # a key that an older run lacks was empty
    }
