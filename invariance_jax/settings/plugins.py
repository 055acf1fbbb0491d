"""MODULE:FUNCTION in place of a built-in name: parts that users bring.

The module is imported from where the program was started, as Python does with `-m`.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

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
            f"{_told(error)}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{key} is {name!r}, but {module_name} has no {path}.")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{key} is {name!r}, which is no function but {found!r}.")
    return found


def call(key: str, name: str, *arguments: object, **kwargs: object) -> Any:
    """Returns what the function that a key names returns."""
    function = load(key, name)
    try:
        inspect.signature(function).bind(*arguments, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"{key} is {name!r}, which cannot be called with {sorted(kwargs)}: {error}."
        ) from error
    try:
        return function(*arguments, **kwargs)
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"{key} is {name!r}, which raised {_told(error)}") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
