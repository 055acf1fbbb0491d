"""Paths that may be URLs of an object store, atomic writes, and users' Python files."""

import contextlib
import glob
import io
import json
import os
import runpy
import traceback
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from etils import epath

from invariance_jax.types import Json

AnyPath = str | os.PathLike[str]
"""A path, or the URL of an object store."""


def is_url(path: AnyPath) -> bool:
    """Returns whether a path is the URL of an object store."""
    return "://" in os.fspath(path)


def absolute(path: AnyPath) -> epath.Path:
    """Returns the absolute path with `~` expanded; a URL is returned unchanged."""
    expanded = epath.Path(os.path.expanduser(path))
    return expanded if is_url(expanded) else expanded.resolve()


def work_folder(path: AnyPath) -> epath.Path:
    """Returns the absolute path of a work directory; checks that orbax can use it."""
    if is_url(path) and not os.fspath(path).startswith("gs://"):
        raise ValueError(
            f"workdir is {path}; expected a folder or gs://BUCKET/FOLDER, the only "
            "object store that checkpoints can be written to."
        )
    folder = absolute(path)
    if glob.has_magic(os.fspath(folder)):
        raise ValueError(
            f"workdir is {folder}; expected a path without [, ? and *, which orbax "
            "reads as a pattern: it would lose the checkpoints."
        )
    return folder


def plain_path(path: epath.Path) -> Path | epath.Path:
    """Returns a `pathlib.Path` for a local file; a URL stays an `epath.Path`."""
    return path if is_url(path) else Path(path)


def private_folder(path: Path) -> Path:
    """Makes a folder of files to execute; ValueError if other users may write to it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & 0o022:
        raise ValueError(
            f"{path} belongs to user {status.st_uid} and has the mode "
            f"{status.st_mode & 0o777:o}: others may write to it, but its files are "
            f"executed; expected chmod go-w {path}, or another folder."
        )
    return path


def read_json(path: epath.Path) -> Json:
    """Returns the object in a JSON file; raises ValueError if there is none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it holds no object.")
    return content


def write_json(path: AnyPath, content: object) -> None:
    """Writes a JSON-serializable object atomically."""
    write_text(path, json.dumps(content, indent=2, default=list) + "\n")


def write_text(path: AnyPath, text: str) -> None:
    """Writes a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Writes a file atomically: if writing fails, the former content stays."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[IO[bytes]]:
    """Opens a file for writing that becomes `path` at the end, if no error occurs."""
    file_path = epath.Path(path)
    # Another job may write the same file at the same time.
    temporary = file_path.with_name(f"{file_path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with named(path), temporary.open("wb") as file:
            yield file
            sync(file)
        temporary.replace(file_path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def named(path: AnyPath) -> Iterator[None]:
    """Adds the file name to an OSError that has none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def sync(file: IO[str] | IO[bytes]) -> None:
    """Flushes a file, and waits until a local file is on the disk."""
    file.flush()
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # not local
        os.fsync(file.fileno())


def call_in_file(path: str, function: str, *arguments: str) -> Any:
    """Calls a function of the user's Python file; ValueError if it fails."""
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise ValueError(f"{os.path.abspath(path)} is no file; expected a Python file.")
    try:
        called = runpy.run_path(path).get(function)
        if callable(called):
            return called(*arguments)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines, text = [one.lineno for one in frames if one.filename == path], str(error)
        if isinstance(error, SyntaxError):
            lines, text = [error.lineno], error.msg
        line = f", line {lines[-1]}" if lines and lines[-1] else ""
        message = " ".join(f"{type(error).__name__}: {text}".split()).rstrip(": ")
        raise ValueError(f"{path}{line}: {message}") from error
    raise ValueError(f"{path} has no function {function}().")
