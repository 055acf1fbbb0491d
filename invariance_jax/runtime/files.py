"""Paths that may be URLs of an object store, and files that are never half-written."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from etils import epath


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a path that holds from any folder; etils would take a URL for a file."""
    found = epath.Path(path)
    return found if "://" in os.fspath(found) else found.resolve()


def plain_path(path: epath.Path) -> Path | epath.Path:
    """Returns a path as callers expect it: of a local file, that of `pathlib`."""
    return path if "://" in os.fspath(path) else Path(path)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file in one move, so that it is never seen half-written.

    Args:
      path: the file.
      content: what `json` takes.
    """
    write_text(path, json.dumps(content, indent=2, default=list) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a file of text in one move; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file in one move, so that it is never seen half-written.

    Args:
      path: the file.
      content: its content.

    Raises:
      OSError: if it cannot be written; a former content stays.
    """
    path = epath.Path(path)
    # Another job may write the same file at the same time.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
