"""The work directory of a run: who owns it, and its `config.json`."""

import json
import os
import platform
import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from invariance_jax import __version__
from invariance_jax.runtime.files import write_json
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.settings import flatten

FORMAT = 2

_FREE = (
    "seeds",
    "seeds_together",
    "steps_per_call",
    "compilation_cache",
    "data.data_dir",
    "data.test_examples",
    "checkpoints.",
    "logging.",
    "evaluation.",
    "studies.",
    "embedding.",
)
"""Keys (or their beginnings) that may change between two starts of one run.

`deterministic` is none of them: what `config.json` says must hold for every step."""

_ADDED: dict[str, Any] = {
    "compilation_cache": None,
    "deterministic": False,
    "seeds_together": True,
    "average_views": 1,
    "microbatches": 1,
    "similarity_block": 0,
    "encoder.rematerialize": False,
    "penalty.fraction": 1.0,
    "penalty.every_steps": 1,
    "penalty.kind": "gradient",
    "penalty.estimator": "directional",
    "penalty.limit_shape": "hard",
    "penalty.parameters": (),
    "penalty.at": "h",
    "penalty.views": 1,
    "evaluation.experiments": ("downstream", "averaging", "invariance"),
    "evaluation.test_examples": None,
    "evaluation.l2_grid": (),
    "evaluation.shifts": (),
    "evaluation.label_fractions": (0.05, 0.1, 0.2, 0.5, 1.0),
    "evaluation.linearization_steps": (0.01, 0.03, 0.1, 0.3, 1.0),
    "evaluation.nuisance_l2": (1e-6, 1e-4, 1e-2, 1.0),
    "studies.steps": 500,
    "studies.split": "validation",
    "studies.train_examples": 10_000,
    "studies.test_examples": 5000,
    "studies.weights": (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0),
    "logging.profile_steps": "",
    "logging.wandb_project": None,
}
"""Keys that earlier versions of this format lack, and what they did then."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def claim(settings: FrozenConfigDict, workdir: str | os.PathLike[str]) -> epath.Path:
    """Makes a work directory this run's own and writes its `config.json`.

    Every process checks, the main one writes.

    Args:
      settings: the result of `training.settings.resolve`.
      workdir: a new folder, or the one of an earlier start of the same run.

    Returns:
      The folder.

    Raises:
      ValueError: if it is a file, or holds a run whose training keys differ (the first
        one is named), or checkpoints without a configuration.
    """
    check(settings, workdir)
    workdir = epath.Path(workdir)
    path = workdir / "config.json"
    if is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        config = settings.to_dict()
        content = {"format": FORMAT, "derived": config.pop("derived"), "config": config}
        content["start"] = uuid.uuid4().hex
        write_json(path, content | provenance())
    return workdir


def read_start(workdir: str | os.PathLike[str]) -> str:
    """Returns what tells the newest start of the run from the others.

    Args:
      workdir: the work directory of the run.
    """
    content = json.loads((epath.Path(workdir) / "config.json").read_text())
    return str(content.get("start"))


def check(settings: FrozenConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Checks that `claim` would succeed; writes nothing.

    Args:
      settings: the result of `training.settings.resolve`.
      workdir: a new folder, or the one of an earlier start of the same run.

    Raises:
      ValueError: as `claim`.
    """
    workdir = epath.Path(workdir)
    scheme, *rest = os.fspath(workdir).split("://")
    if rest and scheme != "gs":
        raise ValueError(
            f"workdir is {workdir}; expected a folder or gs://BUCKET/FOLDER, the only "
            "object store that checkpoints can be written to."
        )
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"workdir is {workdir}, a file; expected a folder.")
    if (workdir / "config.json").exists():
        check_same_run(settings, workdir)
    elif (workdir / "checkpoints").exists():
        raise ValueError(
            f"workdir is {workdir}, which holds checkpoints but no config.json; "
            "expected a new folder."
        )


def provenance() -> dict[str, Any]:
    """Returns the command and the environment of this process.

    Returns:
      command; and environment: git commit, versions, devices, number of processes.
    """
    return {"command": " ".join(sys.argv), "environment": _environment()}


def read_config(workdir: str | os.PathLike[str]) -> ConfigDict:
    """Returns the configuration of the run in a work directory.

    Args:
      workdir: the work directory.

    Returns:
      The configuration, as it was before `resolve`.

    Raises:
      ValueError: if there is none, it is damaged, or another version wrote it.
    """
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: there is no config.json.")
    try:
        content = dict(json.loads(path.read_text()))
        other, config = content["format"] != FORMAT, content.get("config")
        if not (other or isinstance(config, dict)):
            raise TypeError("no config")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if other:
        versions = dict(content.get("environment") or {}).get("versions") or {}
        raise ValueError(
            f"{path} has format {content['format']}, this version reads {FORMAT}; use "
            f"invariance_jax {versions.get('invariance_jax', 'of another version')}."
        )
    found = ConfigDict(tuples(config))
    known = dict(flatten(found))
    missing = {key: value for key, value in _ADDED.items() if key not in known}
    found.update_from_flattened_dict(missing)
    return found


def one_per_seed(
    config: ConfigDict, workdir: str | os.PathLike[str]
) -> list[tuple[ConfigDict, epath.Path]]:
    """Returns the configuration and work directory of each seed of a run.

    Args:
      config: a configuration; `seeds` counts the runs.
      workdir: the work directory, or with several seeds the parent of theirs.

    Returns:
      A pair per seed; with one seed, the arguments.
    """
    if config.seeds == 1:
        return [(config, epath.Path(workdir))]
    runs = []
    for number in range(config.seeds):
        one = ConfigDict(config.to_dict())
        one.seed, one.seeds = config.seed + number, 1
        runs.append((one, epath.Path(workdir) / f"seed_{one.seed}"))
    return runs


def tuples(tree: Any) -> Any:
    """Returns what JSON read with tuples for the lists that it made of them.

    Args:
      tree: nested dictionaries and lists.
    """
    if isinstance(tree, dict):
        return {key: tuples(value) for key, value in tree.items()}
    return tuple(map(tuples, tree)) if isinstance(tree, list | tuple) else tree


def first_difference(one: Any, other: Any) -> str | None:
    """Returns the first training key in which two configurations differ, if any.

    Args:
      one: a configuration, or the result of `training.settings.resolve`.
      other: another one.
    """
    values, others = dict(flatten(one)), dict(flatten(other))
    for key in sorted({*values, *others}):
        free = key.startswith((*_FREE, "derived."))
        if not free and values.get(key) != others.get(key):
            return key
    return None


def check_same_run(settings: FrozenConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Checks that a work directory holds the run of these settings.

    Args:
      settings: the result of `training.settings.resolve`.
      workdir: the work directory.

    Raises:
      ValueError: if it holds no run, or one whose training keys differ; the first one
        is named.
    """
    found = read_config(workdir)
    key = first_difference(settings, found)
    if key is not None:
        wanted, values = dict(flatten(settings)), dict(flatten(found))
        raise ValueError(
            f"{workdir} holds a run with {key} = {values.get(key)!r}, found "
            f"{wanted.get(key)!r}; give another workdir or the same value."
        )
    if found.seeds != settings.seeds and 1 in (found.seeds, settings.seeds):
        raise ValueError(
            f"{workdir} holds a run with seeds = {found.seeds}, found "
            f"{settings.seeds}; give another workdir or the same value."
        )


def _environment() -> dict[str, Any]:
    versions = {"invariance_jax": __version__}
    versions |= {name: metadata.version(name) for name in _PACKAGES}
    return {
        "git_commit": _git_commit(),
        "versions": versions,
        "python": platform.python_version(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
    }


def _git_commit() -> str | None:
    """Returns the commit of the package's checkout, with "-dirty" if it is changed."""
    package = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != package.parent:
            return None
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return None
