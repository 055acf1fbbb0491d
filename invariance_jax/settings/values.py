"""Conversion of a value to the type of its key, and the type and range in words."""

import json
import math
import os
import types
import typing
from typing import Any

import numpy as np

from invariance_jax.arguments import closest
from invariance_jax.settings import plugins
from invariance_jax.settings.schema import MOST, OFF, Key, tuples

_TINY, _HUGE = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

_WORDS = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "True or False",
    dict: "keyword arguments with plain values, which config.json can record (no "
    "functions), such as a=1, b='x', or a dictionary",
}
_ENTRIES = {int: "integers", float: "numbers", str: "names"}


class Bad(Exception):
    """A value that its key does not allow. The text is appended to `expectation`."""


def parts(annotation: object) -> tuple[Any, tuple[Any, ...], bool]:
    """Returns the plain type, a tuple's entry types, and whether None is allowed."""
    optional = isinstance(annotation, types.UnionType)
    inner = typing.get_args(annotation)[0] if optional else annotation
    return typing.get_origin(inner) or inner, typing.get_args(inner), optional


def type_name(annotation: Any) -> str:
    """Returns the type of a key as Python writes it, such as "int | None"."""
    plain = isinstance(annotation, type) and not typing.get_args(annotation)
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")


def expectation(key: Key) -> str:
    """Returns the type and range of a key in words, such as "an integer, 1 or more"."""
    plain, entries, optional = parts(key.type)
    words = _WORDS.get(plain, "")
    if key.choices:
        amount = "a tuple of" if plain is tuple else "one of"
        own = " or MODULE:FUNCTION" if key.own else ""
        words = f"{amount} {', '.join(map(repr, key.choices))}{own}"
    elif plain is tuple:
        amount = "a tuple of" if ... in entries else str(len(entries))
        words = f"{amount} {_ENTRIES.get(entries[0], 'rows')}"
    if key.increasing:
        words = words.replace("a tuple", "an increasing tuple")
    limits = {"more than": key.above, "less than": key.below, "at most": key.most}
    if key.least is not None and key.most is not None:
        words += f", from {key.least:.10g} to {limits.pop('at most'):.10g}"
    elif key.least is not None:
        words += f", {key.least:g} or more"
    for text, limit in limits.items():
        words += "" if limit is None else f", {text} {limit:g}"
    return words + ", or None" * optional


def convert(key: Key, value: object) -> Any:
    """Returns a value in the type of its key; raises `Bad` if the key forbids it."""
    converted = _convert(key.type, key, value)
    if isinstance(converted, tuple):
        repeats = len({*map(json.dumps, converted)}) < len(converted)
        if repeats and parts(key.type)[1][0] is str:
            raise Bad(", each once")
        ordered = not key.increasing or list(converted) == sorted({*converted})
        if not ordered or not (converted or key.empty):
            raise Bad
    if key.path and isinstance(converted, str):
        if not converted:  # would become the current folder
            raise Bad
        if converted != OFF and "://" not in converted:
            return os.path.abspath(os.path.expanduser(converted))
    return converted


def _convert(annotation: object, key: Key, value: Any) -> Any:
    plain, entries, optional = parts(annotation)
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None and optional:
        return None
    if plain is tuple:
        if not isinstance(value, tuple | list):
            raise Bad
        kinds = entries[:1] * len(value) if ... in entries else entries
        if len(kinds) != len(value):
            raise Bad
        pairs = zip(kinds, value, strict=True)
        return tuple(_convert(kind, key, entry) for kind, entry in pairs)
    if plain is float and type(value) is int:
        value = float(value)
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise Bad
    if plain is dict:
        return _plain_kwargs(value)
    if plain is str:
        _check_choice(key, value)
    elif plain is not bool:
        _check_range(key, value)
    return value


def _plain_kwargs(value: dict[Any, Any]) -> dict[str, Any]:
    """Returns keyword arguments as `config.json` gives them back: lists are tuples."""
    value = tuples(value)
    try:
        is_plain = tuples(json.loads(json.dumps(value))) == value
        if is_plain and all(map(str.isidentifier, value)):
            return value
    except (TypeError, ValueError):
        pass
    raise Bad


def _check_choice(key: Key, value: str) -> None:
    if key.choices and value not in key.choices:
        if not (key.own and plugins.is_own(value)):
            raise Bad(f"; {closest(value, key.choices)}")
        if not plugins.FORM.fullmatch(value):
            raise Bad(", as in an import statement (not the path of a file)")


def _check_range(key: Key, value: int | float) -> None:
    if isinstance(value, float):
        # Devices compute in float32.
        if not math.isfinite(value) or abs(value) > _HUGE or 0 < abs(value) < _TINY:
            raise Bad(", in the range of float32")
    elif key.most is None and abs(value) > MOST:
        raise Bad(f", at most {MOST}")
    if (
        (key.above is not None and value <= key.above)
        or (key.least is not None and value < key.least)
        or (key.below is not None and value >= key.below)
        or (key.most is not None and value > key.most)
    ):
        raise Bad
