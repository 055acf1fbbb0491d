"""Compiled programs, kept on the disk so that a restart does not compile them again.

This is JAX's persistent compilation cache. Its keys hold the program, the devices, the
flags and the versions, so what is found fits; what cannot be read is compiled anew.

What is found is run. Without the key `compilation_cache` it is therefore not in the
work directory, which may come from someone else, but in the user's cache folder, in a
folder for each work directory: small enough that torn files can be looked for.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from invariance_jax.runtime.files import absolute, is_url, private_folder
from invariance_jax.runtime.processes import is_main_process

_log = logging.getLogger(__name__)

OFF = "off"
"""The value of the key `compilation_cache` that keeps nothing."""

_DAYS = 60  # that programs are kept since the last start of their run
_ZSTD = bytes.fromhex("28b52ffd")

_DIR = "jax_compilation_cache_dir"
_OPTIONS = {
    # A run compiles a few dozen programs; together the small ones matter too.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    # XLA's own caches put their path into the keys: nothing would be found once the
    # folder has another name.
    "jax_persistent_cache_enable_xla_caches": "none",
}


@contextlib.contextmanager
def compilation_kept(
    chosen: str | None, workdir: str | os.PathLike[str]
) -> Iterator[None]:
    """Keeps what is compiled within; JAX's configuration is restored afterwards.

    Args:
      chosen: the key `compilation_cache`. None: where JAX was configured to outside, or
        else in the user's cache folder.
      workdir: the work directory, of several seeds the parent.

    Yields:
      Nothing.

    Raises:
      ValueError: if others may write to the folder.
    """
    if chosen is None and jax.config.values[_DIR] is not None:
        yield
        return
    folder = chosen or _own_folder(workdir)
    if folder == OFF:
        values: dict[str, Any] = {"jax_enable_compilation_cache": False}
    else:
        if not is_url(folder):
            private_folder(Path(folder))
        values = {_DIR: folder, **_OPTIONS}
        values["jax_enable_compilation_cache"] = True
    with _configured(values):
        yield


def cache_root() -> Path:
    """Returns the folder of this package in the user's cache folder.

    Raises:
      RuntimeError: if the user has no home directory.
    """
    found = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(found).absolute() / "invariance_jax"


def _own_folder(workdir: str | os.PathLike[str]) -> str:
    """Returns the folder of a work directory, ready for use; "off" if none can be."""
    path = os.fspath(absolute(workdir))
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    try:
        root = private_folder(cache_root())
        folder = private_folder(root / name)
        if is_main_process():
            os.utime(folder)
            _remove_old(root)
            _remove_torn(folder)
    except (OSError, RuntimeError) as error:
        _log.info("compiled programs are not kept: %s", error)
        return OFF
    return os.fspath(folder)


@contextlib.contextmanager
def _configured(values: dict[str, Any]) -> Iterator[None]:
    before = {name: jax.config.values[name] for name in values}
    try:
        _configure(values)
        yield
    finally:
        _configure(before)


def _configure(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    # JAX looks at its configuration once, when it first compiles.
    compilation_cache.reset_cache()


def _remove_old(root: Path) -> None:
    for folder in root.iterdir():
        if folder.stat().st_mtime < time.time() - 86_400 * _DAYS:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_torn(folder: Path) -> None:
    """Removes files that a killed process left half-written.

    JAX would warn about them at every start and never write them anew.
    """
    for path in folder.glob("*-cache"):
        if not _is_whole(path.read_bytes()):
            _log.info("%s is half-written: removed", path)
            path.unlink(missing_ok=True)


def _is_whole(content: bytes) -> bool:
    """Returns whether content can be decompressed, by what JAX compressed it with."""
    if not content.startswith(_ZSTD):
        decompress, error = zlib.decompress, zlib.error
    else:
        zstd = _import_zstd()
        if zstd is None:  # then JAX does not look for it either
            return True
        decompress, error = zstd.decompress, zstd.ZstdError
    try:
        decompress(content)
    except error:
        return False
    return True


def _import_zstd() -> Any:
    for name in ("compression.zstd", "zstandard"):
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None
