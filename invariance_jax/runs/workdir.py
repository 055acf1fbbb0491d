"""The work directory of a run: who owns it, and its `config.json`."""

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
from invariance_jax.types import Json

_log = logging.getLogger(__name__)

FORMAT = 3
"""The format number of `config.json`."""

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")

_OF_JAX = ("jax_default_prng_impl", "jax_enable_x64", "jax_threefry_partitionable")
"""What else changes the numbers that are drawn: JAX's own configuration."""


class Owner(NamedTuple):
    """A start of a run; it may write to the work directory until there is another."""

    workdir: epath.Path
    start: str

    def check(self) -> None:
        """Raises OSError if the run was started a second time or the folder is gone."""
        path = self.workdir / "config.json"
        try:
            found = read_json(path).get("start")
        except (OSError, ValueError) as error:
            raise OSError(f"{path} is gone or damaged: {error}") from error
        if found != self.start:
            raise OSError(
                f"{self.workdir}: the run was started a second time and goes on "
                "there; this start ends, expected one at a time."
            )


def claim(settings: Settings, workdir: AnyPath, *, finished: bool = False) -> Owner:
    """Makes a new folder, or one of the same run, this start's; errors as of `check`.

    Every process checks, the main one writes `config.json`. What that of a finished run
    says of the command, commit and devices that trained it stays.
    """
    check(settings, workdir)
    folder = work_folder(workdir)
    path = folder / "config.json"
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "format": FORMAT,
            "start": uuid.uuid4().hex,
            "config": to_dict(settings),
            "derived": settings.derived._asdict(),
            "jax": _of_jax(),
            "sources": warn_of_other_code(settings, folder),
        }
        made = provenance()
        if finished and path.exists():
            made = {name: read_json(path)[name] for name in made}
        write_json(path, content | made)
    return Owner(folder, str(read_json(path).get("start")))


def check(settings: Settings, workdir: AnyPath) -> None:
    """Checks that `claim` would succeed; writes nothing."""
    folder = work_folder(workdir)
    within = () if is_url(folder) else folder.parents
    there = next((one for one in (folder, *within) if one.exists()), None)
    if there is not None and not there.is_dir():
        raise ValueError(f"workdir is {folder}: {there} is a file; expected a folder.")
    if (folder / "config.json").exists():
        check_same_run(settings, folder)
    elif (folder / "checkpoints").exists():
        raise ValueError(
            f"workdir is {folder}, which holds checkpoints but no config.json; "
            "expected a new folder."
        )
    if there is not None and not is_url(folder) and not os.access(there, os.W_OK):
        raise OSError(f"workdir is {folder}: {there} cannot be written.")


def check_same_run(settings: Settings, workdir: AnyPath) -> None:
    """Checks that a work directory holds the run of these settings."""
    found, of_jax = _read_run(workdir)
    name = first_difference(settings, found)
    if found.seeds != settings.seeds and 1 in (found.seeds, settings.seeds):
        name = name or "seeds"
    if name is not None:
        wanted, values = flatten(settings)[name], flatten(found)[name]
        raise ValueError(
            f"{workdir} holds a run with {name} = {values!r}, found {wanted!r}; give "
            "another workdir or the same value."
        )
    for name, value in _of_jax().items():
        before = of_jax.get(name)
        if value != before:
            raise ValueError(
                f"{workdir} holds a run with {name} = {before!r}, found {value!r}, "
                f"which draws other numbers; expected {name.upper()}={before} in the "
                "environment."
            )


def warn_of_other_code(settings: Settings, workdir: AnyPath) -> dict[str, str]:
    """Returns hashes of the user's own parts as the run began; warns if they differ."""
    path, now = work_folder(workdir) / "config.json", plugins.sources(settings)
    then: dict[str, str] = read_json(path).get("sources", {}) if path.exists() else {}
    for key in now:
        if then.get(key, now[key]) != now[key]:
            _warn(f"{path.parent}: the file of {key} has changed since the run began")
    return now | then


@functools.cache
def _warn(text: str) -> None:
    _log.warning("%s", text)


def first_difference(one: Config, other: Config) -> str | None:
    """Returns the first training key in which two configurations differ, if any."""
    values, others = flatten(one), flatten(other)
    for name, key in KEYS.items():
        if not key.free and values[name] != others[name]:
            return name
    return None


def read_config(workdir: AnyPath) -> Config:
    """Returns the configuration of the run in a work directory, as it was resolved."""
    return _read_run(workdir)[0]


def one_per_seed(config: Config, workdir: AnyPath) -> list[tuple[Config, epath.Path]]:
    """Returns the configuration and folder of each seed; of one seed, the arguments."""
    folder = work_folder(workdir)
    if config.seeds == 1:
        return [(config, folder)]
    runs = []
    for seed in range(config.seed, config.seed + config.seeds):
        one = copy.deepcopy(config)
        one.seed, one.seeds = seed, 1
        runs.append((one, folder / f"seed_{seed}"))
    return runs


def provenance() -> Json:
    """Returns the command of this process; commit, versions, devices and processes."""
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
    """Returns the command line of this process, to be used again in a shell."""
    return shlex.join(["python", *sys.argv])


def _of_jax() -> Json:
    return {name: jax.config.values[name] for name in _OF_JAX}


def _read_run(workdir: AnyPath) -> tuple[Config, Json]:
    """Returns the configuration of a run, and that of JAX that goes with it."""
    path = work_folder(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{path.parent} holds no run: there is no config.json.")
    content = read_json(path)
    number = content.get("format", FORMAT)
    if number != FORMAT:
        environment = content.get("environment") or {}
        versions = dict(environment).get("versions") or {}
        raise ValueError(
            f"{path} has format {number}, this version reads {FORMAT}; use "
            f"invariance_jax {versions.get('invariance_jax', 'of another version')}."
        )
    try:
        return from_dict(content["config"]), dict(content["jax"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _git_commit() -> str | None:
    """Returns the commit of the package, with "-dirty" if its checkout is changed.

    Where there is no checkout, as in a container: `INVARIANCE_JAX_COMMIT`.
    """
    checkout = Path(__file__).resolve().parents[2]
    words = ["git", "-C", str(checkout), "describe", "--dirty"]
    words += ["--always", "--exclude=*", "--abbrev=40"]  # the commit, no tag
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        if (checkout / ".git").exists():
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            return done.stdout.strip()
    return os.environ.get("INVARIANCE_JAX_COMMIT")
