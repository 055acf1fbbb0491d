"""The variants of a sweep: its file, and the configuration and folder of each."""

import copy
import hashlib
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from invariance_jax.runtime.files import call_in_file
from invariance_jax.settings import (
    KEYS,
    Config,
    Settings,
    change,
    closest,
    flatten,
    resolve,
)

MOST = 1000
"""The most runs of a sweep: an array of SLURM has 1000 jobs unless it was told."""

_LONGEST = 100  # letters of a folder's name
_TAKEN = ("figures", "slurm", "tables")  # folders of the sweep itself

Sweep = dict[str, tuple[Any, ...]] | dict[str, dict[str, Any]]
"""Key -> its values, of which each combination is a variant; or label -> changes."""


class Variant(NamedTuple):
    """A name for people, the configuration over all seeds, and the same resolved."""

    label: str
    config: Config
    settings: Settings


def read_sweep(path: str) -> Sweep:
    """Returns what `get_sweep()` of a Python file does, checked for its form."""
    sweep = call_in_file(path, "get_sweep")
    kinds = {type(value) for value in sweep.values()} if _is_named(sweep) else set()
    if kinds == {dict} and all(map(_is_named, filter(None, sweep.values()))):
        return {label: dict(changes) for label, changes in sweep.items()}
    if not kinds or dict in kinds:
        raise ValueError(
            f"get_sweep() of {path} returns {sweep!r}; expected key -> its values, or "
            "label -> {key: value}."
        )
    for key, values in sweep.items():
        if not isinstance(values, tuple | list) or not values:
            raise ValueError(f"{path}: {key} is {values!r}; expected a tuple of values")
        if len({*map(repr, values)}) < len(values):
            raise ValueError(f"{path}: {key} is {values!r}; expected each value once")
    return {key: tuple(values) for key, values in sweep.items()}


def _is_named(tree: object) -> bool:
    if not isinstance(tree, Mapping) or not tree:
        return False
    return all(isinstance(name, str) and name for name in tree)


def make_variants(config: Config, sweep: Sweep) -> dict[str, Variant]:
    """Returns folder -> variant of a configuration, the last key of a grid the fastest.

    The values of "seed" are the seeds of every variant; alone, they are in folder ".".
    """
    base, axes = copy.deepcopy(config), dict[str, Any](sweep)
    if "seed" in axes:
        base.seed, base.seeds = _seeds(config, axes.pop("seed"))
    count, each = len(axes), iter(axes.items())
    if not any(isinstance(value, dict) for value in axes.values()):
        count = math.prod(map(len, axes.values()))
        points = itertools.product(*axes.values())
        each = (("", dict(zip(axes, point, strict=True))) for point in points)
    count *= base.seeds
    if count > MOST:
        raise ValueError(f"the sweep has {count} runs; expected at most {MOST}.")
    variants: dict[str, Variant] = {}
    for label, changes in each:
        variant = copy.deepcopy(base)
        for key, value in changes.items():
            if key not in KEYS or key in ("seed", "seeds"):
                names = [name for name in KEYS if name != "seeds"]
                raise ValueError(
                    f"sweep: {key} is not a key of it; {closest(key, names)}."
                )
            change(variant, key, copy.deepcopy(value))
        words = label or ", ".join(f"{key} = {one!r}" for key, one in changes.items())
        try:
            settings = resolve(variant)
        except ValueError as error:
            raise ValueError(f"sweep: {words}: {error}") from error
        values = flatten(settings)
        name = _folder(label or "__".join(f"{k}={_text(values[k])}" for k in changes))
        if name in variants:
            raise ValueError(f"sweep: two variants have the folder {name}")
        variants[name] = Variant(words or "all seeds", variant, settings)
    return variants


def _seeds(config: Config, values: Any) -> tuple[int, int]:
    """Returns the first seed and their number."""
    if config.seeds > 1:
        raise ValueError(
            f"sweep: seeds is {config.seeds} and the grid has seed = {values}; "
            "expected one of them."
        )
    whole = isinstance(values, tuple) and all(type(value) is int for value in values)
    if not whole or list(values) != list(range(values[0], values[0] + len(values))):
        raise ValueError(
            f"sweep: seed is {values}; expected consecutive integers, as those that "
            "--config.seeds counts."
        )
    return values[0], len(values)


def _text(value: object) -> str:
    """Returns a value in a word, such as "0.1", "h+gfore" or "none"."""
    if isinstance(value, tuple | list):
        return "+".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _folder(text: str) -> str:
    """Returns a name that a command line takes as it is, "." for an empty text.

    >>> _folder("K = 4, hard limit"), _folder("penalty.weight=0.1")
    ('K_=_4_hard_limit', 'penalty.weight=0.1')
    """
    if not text:
        return "."
    name = re.sub(r"[^\w.+=-]+", "_", text, flags=re.ASCII).lstrip(".-")
    if len(name) > _LONGEST:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f"{name[: _LONGEST - 9]}-{digest}"
    return f"{name}_" if name in ("", *_TAKEN) else name
