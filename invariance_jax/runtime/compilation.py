"""Compiled programs, kept on the disk so that a restart does not compile them again.

This is JAX's persistent compilation cache. Its keys hold the program, the devices, the
flags and the versions, so what is found fits; what cannot be read is compiled anew.
"""

import contextlib
import importlib
import logging
import os
import zlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from invariance_jax.runtime.files import absolute
from invariance_jax.runtime.processes import is_main_process

_log = logging.getLogger(__name__)

OFF = "off"
"""The value of the key `compilation_cache` that keeps nothing."""

_FOLDER = "compilation_cache"
_ZSTD = bytes.fromhex("28b52ffd")

_OPTIONS = {
    # A run compiles a few dozen programs; together the small ones matter too.
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
    # XLA's own caches put their path into the keys: nothing would be found once the
    # folder has another name.
    "jax_persistent_cache_enable_xla_caches": "none",
}


@contextlib.contextmanager
def compilation_kept(settings: Any, workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps what is compiled within, where `compilation_cache` of the settings says.

    A cache that was configured outside (`JAX_COMPILATION_CACHE_DIR`, `jax.config`) is
    left as it is unless the key is given. JAX's configuration is restored afterwards.

    Args:
      settings: the result of `training.settings.resolve`.
      workdir: the work directory, of several seeds the parent.

    Yields:
      Nothing.
    """
    chosen = settings.compilation_cache
    if chosen is None and jax.config.jax_compilation_cache_dir is not None:
        yield
    elif chosen == OFF:
        with _configured({"jax_enable_compilation_cache": False}):
            yield
    else:
        if chosen is None:
            # Absolute: JAX would look for it from wherever the process goes.
            folder = absolute(workdir) / _FOLDER
            _remove_torn(folder)
            chosen = os.fspath(folder)
        values = {"jax_compilation_cache_dir": chosen}
        values |= {"jax_enable_compilation_cache": True, **_OPTIONS}
        with _configured(values):
            yield


@contextlib.contextmanager
def _configured(values: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in values}
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


def _remove_torn(folder: epath.Path) -> None:
    """Removes files that a killed process left half-written.

    JAX would warn about them at every start and never write them anew. Only the cache
    of a work directory, which has one run's files, is small enough to be read for this.
    """
    if not is_main_process():
        return
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
