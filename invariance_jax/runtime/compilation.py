"""Compiled programs, kept on the disk so that a restart does not compile them again.

This is JAX's persistent compilation cache. Its keys hash the program, the devices, the
flags and the versions, so a cached program always fits. An unreadable program is
compiled again.

Cached programs are executed. If the key `compilation_cache` is None, the cache is
therefore not in the work directory, which may come from someone else. It is in the
user's cache folder, which has one folder for each work directory.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from invariance_jax.runtime.files import AnyPath, absolute, is_url, private_folder
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.settings.schema import OFF

_log = logging.getLogger(__name__)

_DAYS = 60  # to keep programs after the last start of their run
_DIR = "jax_compilation_cache_dir"
_OPTIONS = {
    # A run compiles a few dozen programs; together, the small ones take long too.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    # XLA's own caches put their path into the keys: after a renaming of the folder no
    # key would match.
    "jax_persistent_cache_enable_xla_caches": "none",
}


@contextlib.contextmanager
def compilation_kept(chosen: str | None, workdir: AnyPath) -> Iterator[None]:
    """Caches what the context compiles; chosen: the key `compilation_cache`.

    Several processes on CPUs cache nothing: only the main one would find its programs
    again, and these make their exchanges in another order than compiled ones.
    """
    with contextlib.ExitStack() as stack:
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            chosen = OFF
        elif chosen is None and jax.config.values[_DIR] is None:
            chosen = _own_folder(workdir, stack)
        elif chosen not in (None, OFF) and not is_url(chosen):
            private_folder(Path(chosen))
        if chosen is not None:
            values: dict[str, object] = {"jax_enable_compilation_cache": chosen != OFF}
            values |= {_DIR: chosen, **_OPTIONS} if chosen != OFF else {}
            stack.callback(
                _configure, {name: jax.config.values[name] for name in values}
            )
            _configure(values)
        yield


def cache_root() -> Path:
    """Returns the folder of this package in the user's cache folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches).absolute() / "invariance_jax"


def _own_folder(workdir: AnyPath, stack: contextlib.ExitStack) -> str:
    """Returns the cache folder of a work directory, "off" if it cannot be used."""
    path = os.fspath(absolute(workdir))
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    try:
        root = private_folder(cache_root())
        folder = private_folder(root / name)
        if is_main_process():
            os.utime(folder)
            _clean(root, folder, stack)
    except (OSError, RuntimeError) as error:  # such as a missing home directory
        _log.info("compiled programs are not kept: %s", error)
        return OFF
    return os.fspath(folder)


def _clean(root: Path, folder: Path, stack: contextlib.ExitStack) -> None:
    """Removes the folders of old runs, and the last file of a killed start.

    JAX would warn about an incomplete file at every start, and never write it again.
    """
    for other in root.iterdir():
        if other.stat().st_mtime < time.time() - 86_400 * _DAYS:
            shutil.rmtree(other, ignore_errors=True)
    marker = folder / "running"  # removed at the end, unless the process is killed
    if marker.exists():
        files = [*folder.glob("*-cache")]
        for path in sorted(files, key=lambda path: path.stat().st_mtime)[-1:]:
            path.unlink()
    marker.touch()
    stack.callback(marker.unlink, missing_ok=True)


def _configure(values: dict[str, object]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    # JAX reads these options only once, when it first compiles.
    compilation_cache.reset_cache()
