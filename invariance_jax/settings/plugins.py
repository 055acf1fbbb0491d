"""MODULE:FUNCTION in place of a built-in name: parts that users bring.

The module is imported from where the program was started, as Python does with `-m`.
"""

import contextlib
import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from invariance_jax.settings import schema
from invariance_jax.settings.schema import Settings

_PARTS = ("encoder.name", "augmentation.name", "method.name")
"""The keys that choose a part of a run."""

FORM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""MODULE:FUNCTION, both of which can be names of Python."""


def is_own(name: str) -> bool:
    """Returns whether a name has the form MODULE:FUNCTION."""
    return ":" in name


def load(key: str, name: str) -> Callable[..., Any]:
    """Returns the function that a key names."""
    module_name, _, path = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(
            f"{key} is {name!r}, but {module_name} cannot be imported from {folder}: "
            f"{_told(error)}. Start in the folder that has it, or put that on "
            "PYTHONPATH."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{key} is {name!r}, but {module_name} has no {path}.")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{key} is {name!r}, which is no function but {found!r}.")
    return found


def check(settings: Settings) -> None:
    """Raises ValueError with a line for each part that cannot be imported."""
    problems = []
    for key, name in _own_parts(settings).items():
        try:
            load(key, name)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def call(key: str, name: str, *arguments: object, **kwargs: object) -> Any:
    """Returns what the function that a key names returns."""
    function = load(key, name)
    try:
        inspect.signature(function).bind(*arguments, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"{key} is {name!r}, which cannot be called with {sorted(kwargs)}: {error}."
        ) from error
    with blaming(key, name):
        return function(*arguments, **kwargs)


@contextlib.contextmanager
def blaming(
    key: str,
    name: str,
    but: type[Exception] | tuple[()] = (),
    *,
    fault: str = "which raised",
) -> Iterator[None]:
    """Names the function of the user's own that raises something but of one kind."""
    try:
        yield
    except but:
        raise
    except Exception as error:  # whatever it is
        raise ValueError(f"{key} is {name!r}, {fault} {_told(error)}") from error


_hashes: dict[int, tuple[object, str]] = {}
"""Functions, which so are kept, and the hash of the file when they were loaded."""


def source(key: str, name: str) -> str:
    """Returns a hash of the file that a function of the user's own was loaded from.

    It is "" where there is no file, as of a function of a notebook.
    """
    function: Any = load(key, name)
    if id(function) not in _hashes:
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        try:
            file = inspect.getsourcefile(inspect.unwrap(inner)) or ""
            found = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except (TypeError, OSError):
            found = ""
        _hashes[id(function)] = function, found
    return _hashes[id(function)][1]


def sources(settings: Settings) -> dict[str, str]:
    """Returns key -> `source` of the parts of a run that are the user's own."""
    return {key: source(key, name) for key, name in _own_parts(settings).items()}


def _own_parts(settings: Settings) -> dict[str, str]:
    names = {key: schema.get(settings, key) for key in _PARTS}
    return {key: name for key, name in names.items() if is_own(name)}


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
