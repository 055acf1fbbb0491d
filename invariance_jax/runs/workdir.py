"""The work directory of a run: which start owns it, and its `config.json`."""

import contextlib
import copy
import functools
import logging
import os
import platform
import shlex
import subprocess
import sys
import uuid
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
from etils import epath

from invariance_jax import __version__
from invariance_jax.runtime.files import (
    AnyPath,
    absolute,
    is_url,
    read_json,
    work_folder,
    write_json,
)
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.settings import (
    KEYS,
    Config,
    Settings,
    flatten,
    from_dict,
    plugins,
    to_dict,
)
from invariance_jax.settings.rules import converted
from invariance_jax.types import Json

_log = logging.getLogger(__name__)

FORMAT = 3  # of `config.json`

OUTPUTS = (
    *("checkpoints", "experiments", "metrics.jsonl"),
    *("report.html", "results.json", "samples.npz"),
)
"""Entries that a run overwrites; without a `config.json` they are not from a run."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

_OPTIONS = ("jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")
"""Options of JAX that change the random numbers."""


class Owner(NamedTuple):
    """A start of a run, which may write to the work directory until the next start."""

    workdir: epath.Path
    start: str

    def check(self) -> None:
        """Raises OSError if the run was started a second time or the folder is gone."""
        path = self.workdir / "config.json"
        try:
            start = read_json(path).get("start")
        except (OSError, ValueError) as error:
            raise OSError(f"{path} is gone or damaged: {error}") from error
        if start != self.start:
            raise OSError(
                f"{self.workdir}: the run was started a second time, and that start "
                "continues; this one ends. Expected one start at a time."
            )


def claim(settings: Settings, workdir: AnyPath) -> Owner:
    """Makes this start the owner of a new work directory, or of one of the same run.

    Every process checks, with the errors of `check`; the main one is the owner, and
    writes `config.json`, where a trained run keeps command, commit and devices.
    """
    check(settings, workdir)
    folder, start = work_folder(workdir), uuid.uuid4().hex
    path = folder / "config.json"
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "start": start,
            "config": to_dict(settings),
            "derived": settings.derived._asdict(),
            "jax": _jax_options(),
            "sources": warn_of_other_code(settings, folder),
        }
        origin = provenance()
        if path.exists() and is_trained(settings, folder):
            origin = {name: read_json(path)[name] for name in origin}
        write_json(path, content | origin)
    return Owner(folder, start)


def is_trained(settings: Settings, workdir: AnyPath) -> bool:
    """Returns whether every seed has its last checkpoint, damaged or not."""
    last = f"checkpoints/{settings.derived.steps}"
    folders = [path for _, path in one_per_seed(settings, workdir)]
    return all((path / last).exists() for path in folders)


def check(settings: Settings, workdir: AnyPath) -> None:
    """Checks that `claim` would succeed; writes nothing."""
    folder = work_folder(workdir)
    check_folder("workdir", folder)
    if (folder / "config.json").exists():
        check_same_run(settings, folder)
    else:
        check_no_outputs(folder)


def check_folder(name: str, path: AnyPath) -> None:
    """Checks that a folder, the value of `name`, can be made and written to."""
    folder = absolute(path)
    parents = () if is_url(folder) else folder.parents
    existing = next((path for path in (folder, *parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        text = f"{name} is {folder}: {existing} is a file; expected a folder."
        raise ValueError(text)
    if existing is not None and not is_url(folder) and not os.access(existing, os.W_OK):
        raise OSError(f"{name} is {folder}: {existing} cannot be written.")


def check_no_outputs(folder: epath.Path) -> None:
    """Checks that a folder without `config.json` has nothing that would be lost."""
    for name in OUTPUTS:
        if (folder / name).exists():
            raise ValueError(
                f"workdir is {folder}, which holds {name} but no config.json; "
                "expected a new folder."
            )


def check_same_run(settings: Settings, workdir: AnyPath) -> None:
    """Checks that a work directory holds the run of these settings."""
    config, jax_options = _read_run(workdir)
    name = first_difference(settings, config)
    if config.seeds != settings.seeds and 1 in (config.seeds, settings.seeds):
        name = name or "seeds"
    if name is not None:
        new, old = flatten(settings)[name], flatten(config)[name]
        raise ValueError(
            f"{workdir} holds a run with {name} = {old!r}, found {new!r}; give "
            "another workdir or the same value."
        )
    for name, new in _jax_options().items():
        old = jax_options.get(name)
        if new != old:
            raise ValueError(
                f"{workdir} holds a run with {name} = {old!r}, found {new!r}, which "
                f"changes the random numbers; expected {name.upper()}={old} in the "
                "environment."
            )


def check_format(content: Json, number: int, path: object, advice: str = "") -> None:
    """Checks the format number of a file; the error names the version to use."""
    found = content.get("format")
    if found != number:
        versions = dict(content.get("environment") or {}).get("versions") or {}
        version = versions.get("invariance_jax", "of the version that wrote it")
        raise ValueError(
            f"{path} has format {found}, this version reads {number}; use "
            f"invariance_jax {version}{advice}."
        )


def warn_of_other_code(settings: Settings, workdir: AnyPath) -> dict[str, str]:
    """Returns source hashes of own parts at the first start; warns of changes."""
    path, new = work_folder(workdir) / "config.json", plugins.sources(settings)
    old: dict[str, str] = read_json(path).get("sources", {}) if path.exists() else {}
    for key in new:
        if old.get(key, new[key]) != new[key]:
            _warn(f"{path.parent}: the file of {key} has changed since the run began")
    return new | old


@functools.cache
def _warn(text: str) -> None:  # each text once
    _log.warning("%s", text)


def first_difference(one: Config, other: Config) -> str | None:
    """Returns the first training key in which two configurations differ, if any."""
    values, others = flatten(one), flatten(other)
    names = (name for name, key in KEYS.items() if not key.free)
    return next((name for name in names if values[name] != others[name]), None)


def read_config(workdir: AnyPath) -> Config:
    """Returns the resolved configuration of the run in a work directory."""
    return _read_run(workdir)[0]


def one_per_seed(config: Config, workdir: AnyPath) -> list[tuple[Config, epath.Path]]:
    """Returns configuration and folder of each seed; with one seed, the arguments."""
    folder = work_folder(workdir)
    if config.seeds == 1:
        return [(config, folder)]
    runs = []
    for seed in range(config.seed, config.seed + config.seeds):
        seed_config = copy.deepcopy(config)
        seed_config.seed, seed_config.seeds = seed, 1
        runs.append((seed_config, folder / f"seed_{seed}"))
    return runs


def provenance() -> Json:
    """Returns the command, git commit, versions, devices and number of processes."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    environment = {
        "git_commit": _git_commit(),
        "versions": {"invariance_jax": __version__, **versions},
        "python": platform.python_version(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "processes": jax.process_count(),
    }
    return {"command": command(), "environment": environment}


def command() -> str:
    """Returns the command line of this process, quoted for a shell."""
    return shlex.join(["python", *sys.argv])


def _jax_options() -> Json:
    return {name: jax.config.values[name] for name in _OPTIONS}


def _read_run(workdir: AnyPath) -> tuple[Config, Json]:
    """Returns the configuration of a run, and the JAX options it was started with."""
    path = work_folder(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{path.parent} holds no run: there is no config.json.")
    content = read_json(path)
    check_format(content, FORMAT, path)
    try:
        config, jax_options = from_dict(content["config"]), dict(content["jax"])
        converted(config)  # raises for a value that a key does not allow
        return config, jax_options
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _git_commit() -> str | None:
    """Returns the git commit of the package, with "-dirty" if its checkout is changed.

    Without a checkout, as in a container, returns `INVARIANCE_JAX_COMMIT` or None.
    """
    checkout = Path(__file__).resolve().parents[2]
    git = ["git", "-C", str(checkout), "describe", "--dirty"]
    git += ["--always", "--exclude=*", "--abbrev=40"]  # the commit, no tag
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if (checkout / ".git").exists():
            done = subprocess.run(git, capture_output=True, text=True, check=True)
            return done.stdout.strip()
    return os.environ.get("INVARIANCE_JAX_COMMIT")
