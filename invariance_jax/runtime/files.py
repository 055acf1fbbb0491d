"""Paths that may be URLs of an object store, files that are never half-written, and
Python files of the user's."""

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
    """Returns whether a path is one of an object store."""
    return "://" in os.fspath(path)


def absolute(path: AnyPath) -> epath.Path:
    """Returns a path that holds from any folder, without `~`; a URL stays as it is."""
    found = epath.Path(os.path.expanduser(path))
    return found if is_url(found) else found.resolve()


def work_folder(path: AnyPath) -> epath.Path:
    """Returns the absolute path of a folder that runs and reports may use."""
    if is_url(path) and not os.fspath(path).startswith("gs://"):
        raise ValueError(
            f"workdir is {path}; expected a folder or gs://BUCKET/FOLDER, the only "
            "object store that checkpoints can be written to."
        )
    found = absolute(path)
    if glob.has_magic(os.fspath(found)):
        raise ValueError(
            f"workdir is {found}; expected a path without [, ? and *, which orbax "
            "takes for a pattern: it would lose the checkpoints."
        )
    return found


def plain_path(path: epath.Path) -> Path | epath.Path:
    """Returns a path as callers expect it: of a local file, that of `pathlib`."""
    return path if is_url(path) else Path(path)


def private_folder(path: Path) -> Path:
    """Makes a folder whose files are run, to which only this user may write."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o022:
        raise ValueError(
            f"{path} belongs to user {found.st_uid} and has the mode "
            f"{found.st_mode & 0o777:o}: others may write to it, and what is there is "
            f"run; expected chmod go-w {path}, or another folder."
        )
    return path


def read_json(path: epath.Path) -> Json:
    """Returns the object in a JSON file; raises ValueError if it holds none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it holds no object.")
    return content


def write_json(path: AnyPath, content: object) -> None:
    """Writes what `json` takes in one move."""
    write_text(path, json.dumps(content, indent=2, default=list) + "\n")


def write_text(path: AnyPath, text: str) -> None:
    """Writes a file of text in one move."""
    write_bytes(path, text.encode())


def write_bytes(path: AnyPath, content: bytes) -> None:
    """Writes a file in one move: if it cannot be written, a former content stays."""
    file_path = epath.Path(path)
    # Another job may write the same file at the same time.
    temporary = file_path.with_name(f"{file_path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with named(path), temporary.open("wb") as file:
            file.write(content)
            sync(file)
        temporary.replace(file_path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def named(path: AnyPath) -> Iterator[None]:
    """Names a file in an error of the system that does not, as at a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def sync(file: IO[str] | IO[bytes]) -> None:
    """Waits until a file of this machine is on the disk, not only in its memory."""
    file.flush()
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):  # not one of it
        os.fsync(file.fileno())


def call_in_file(path: str, function: str, *arguments: str) -> Any:
    """Returns what a function of a Python file of the user's returns.

    Whatever the file does instead is a ValueError that names it and the line.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise ValueError(f"{path} is no file; expected a Python file.")
    try:
        found = runpy.run_path(path).get(function)
        if callable(found):
            return found(*arguments)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines, text = [one.lineno for one in frames if one.filename == path], str(error)
        if isinstance(error, SyntaxError):
            lines, text = [error.lineno], error.msg
        where = f", line {lines[-1]}" if lines and lines[-1] else ""
        what = " ".join(f"{type(error).__name__}: {text}".split()).rstrip(": ")
        raise ValueError(f"{path}{where}: {what}") from error
    raise ValueError(f"{path} has no function {function}().")
