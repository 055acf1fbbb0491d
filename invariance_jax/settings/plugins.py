"""MODULE:FUNCTION in place of a built-in name: parts of a run written by the user.

The module is imported from the current folder, as `python -m` does.
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
from invariance_jax.settings.schema import Config, Settings

_PARTS = ("encoder.name", "augmentation.name", "method.name")
"""The keys that may name a part of a run by MODULE:FUNCTION."""

_EXPERIMENTS = "evaluation.experiments"

_POSITIONAL = {"augmentation.name": ("data",), _EXPERIMENTS: ("context",)}
"""The names of the positional arguments of a user's function, by its key."""

FORM = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""MODULE:FUNCTION, where both are dotted Python names."""


def is_own(name: str) -> bool:
    """Returns whether a name has the form MODULE:FUNCTION."""
    return ":" in name


def load(key: str, name: str) -> Callable[..., Any]:
    """Returns the function that `name`, the value of `key`, refers to."""
    module_name, _, path = name.partition(":")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may end the program
        raise ValueError(
            f"{key} is {name!r}, but {module_name} cannot be imported from {folder}: "
            f"{_describe(error)}. Start the program in the folder of the module, or "
            "add that folder to PYTHONPATH."
        ) from error
    for attribute in path.split("."):
        if not hasattr(target, attribute):
            raise ValueError(f"{key} is {name!r}, but {module_name} has no {path}.")
        target = getattr(target, attribute)
    if not callable(target):
        raise ValueError(f"{key} is {name!r}; expected a function, found {target!r}.")
    return target


def problems(
    config: Config, keys: tuple[str, ...] = (*_PARTS, _EXPERIMENTS)
) -> list[str]:
    """Returns a line for each MODULE:FUNCTION of a config that cannot be imported."""
    lines = []
    for key, name in _own(config, keys):
        try:
            load(key, name)
        except ValueError as error:
            lines.append(str(error))
    return lines


def check(settings: Settings) -> None:
    """Raises ValueError if a part cannot be imported; names experiments beside it."""
    if problems(settings, _PARTS):
        raise ValueError("\n".join(problems(settings)))


def check_call(key: str, name: str, /, **kwargs: object) -> None:
    """Raises ValueError unless a user's function takes these keyword arguments."""
    positional = _POSITIONAL.get(key, ())
    try:
        inspect.signature(load(key, name)).bind(*positional, **kwargs)
    except TypeError as error:
        arguments = ", ".join([*positional, *(f"{each}=..." for each in kwargs)])
        raise ValueError(
            f"{key} is {name!r}, which cannot be called with ({arguments}): {error}."
        ) from error


def call(key: str, name: str, /, *arguments: object, **kwargs: object) -> Any:
    """Calls the function that `name`, the value of `key`, refers to."""
    check_call(key, name, **kwargs)
    with blaming(key, name):
        return load(key, name)(*arguments, **kwargs)


@contextlib.contextmanager
def blaming(
    key: str,
    name: str,
    but: type[Exception] | tuple[()] = (),
    *,
    fault: str = "which raised",
) -> Iterator[None]:
    """Turns an exception, unless of type `but`, into ValueError with key and name."""
    try:
        yield
    except but:
        raise
    except Exception as error:  # user code may raise anything
        raise ValueError(f"{key} is {name!r}, {fault} {_describe(error)}") from error


_hashes: dict[int, tuple[object, str]] = {}
"""id(function) -> (function, kept so that its id stays unique; hash of its file)."""


def source(key: str, name: str) -> str:
    """Returns the SHA-256 hash of the file of a user's function; "" in a notebook."""
    function: Any = load(key, name)
    if id(function) not in _hashes:
        inner = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        try:
            file = inspect.getsourcefile(inspect.unwrap(inner)) or ""
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        except (TypeError, OSError):
            digest = ""
        _hashes[id(function)] = function, digest
    return _hashes[id(function)][1]


def sources(settings: Settings) -> dict[str, str]:
    """Returns key -> `source` for each part of a run that is a user's function."""
    return {key: source(key, name) for key, name in _own(settings, _PARTS)}


def _own(config: Config, keys: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for key in keys:
        value = schema.get(config, key)
        for name in value if isinstance(value, tuple | list) else (value,):
            if isinstance(name, str) and FORM.fullmatch(name):
                yield key, name


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
