"""The variants of a sweep: read from its file, each with configuration and folder."""

import copy
import hashlib
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from invariance_jax.arguments import closest
from invariance_jax.runs.workdir import OUTPUTS
from invariance_jax.runtime.files import call_in_file
from invariance_jax.settings import KEYS, Config, Settings, change, flatten, resolve

MOST = 1000
"""The largest number of runs of a sweep, SLURM's default limit of a job array."""

_MAX_LENGTH = 100  # characters of a folder's name
_RESERVED = ("config.json", "figures", "slurm", "sweep.json", "tables", *OUTPUTS)
"""Other entries in the folder of a sweep, or of the run that it may be taken for."""

Sweep = dict[str, tuple[Any, ...]] | dict[str, dict[str, Any]]
"""A grid, key -> its values, or named variants, label -> {key: value}."""


class Variant(NamedTuple):
    """One variant of a sweep, over all its seeds."""

    label: str  # for people to read
    config: Config
    settings: Settings  # the configuration, resolved


def read_sweep(path: str) -> Sweep:
    """Returns the sweep that `get_sweep()` of a Python file returns, checked."""
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
    """Returns folder -> variant; the last key of a grid varies fastest.

    The values of "seed" are the seeds of every variant. A grid of seeds alone has the
    single folder ".".
    """
    base, axes = copy.deepcopy(config), dict[str, Any](sweep)
    if "seed" in axes:
        base.seed, base.seeds = _seeds(config, axes.pop("seed"))
    count, labelled = len(axes), iter(axes.items())  # (label, changes) of each variant
    if not any(isinstance(value, dict) for value in axes.values()):
        count = math.prod(map(len, axes.values()))
        points = itertools.product(*axes.values())
        labelled = (("", dict(zip(axes, point, strict=True))) for point in points)
    count *= base.seeds
    if count > MOST:
        raise ValueError(f"the sweep has {count} runs; expected at most {MOST}.")
    variants: dict[str, Variant] = {}
    for label, changes in labelled:
        variant = copy.deepcopy(base)
        for key, value in changes.items():
            if key not in KEYS or key in ("seed", "seeds"):
                names = [name for name in KEYS if name != "seeds"]
                raise ValueError(
                    f"sweep: {key} is not a key of a sweep; {closest(key, names)}."
                )
            change(variant, key, copy.deepcopy(value))
        text = label or ", ".join(f"{key} = {v!r}" for key, v in changes.items())
        try:
            settings = resolve(variant)
        except ValueError as error:
            raise ValueError(f"sweep: {text}: {error}") from error
        values = flatten(settings)
        name = _folder(label or "__".join(f"{k}={_text(values[k])}" for k in changes))
        if name in variants:
            raise ValueError(f"sweep: two variants have the folder {name}")
        variants[name] = Variant(text or "all seeds", variant, settings)
    return variants


def _seeds(config: Config, values: Any) -> tuple[int, int]:
    """Returns the first seed and the number of seeds in a grid's "seed"."""
    if config.seeds > 1:
        raise ValueError(
            f"sweep: seeds is {config.seeds} and the grid has seed = {values}; "
            "expected only one of the two."
        )
    integers = isinstance(values, tuple) and all(type(seed) is int for seed in values)
    if not integers or list(values) != list(range(values[0], values[0] + len(values))):
        raise ValueError(f"sweep: seed is {values}; expected consecutive integers.")
    return values[0], len(values)


def _text(value: object) -> str:
    """Returns a value as a word, such as "0.1", "h+gfore" or "none"."""
    if isinstance(value, tuple | list):
        return "+".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _folder(text: str) -> str:
    """Returns a folder name that needs no quotes in a shell; "." for an empty text.

    >>> _folder("K = 4, hard limit"), _folder("penalty.weight=0.1")
    ('K_=_4_hard_limit', 'penalty.weight=0.1')
    """
    if not text:
        return "."
    name = re.sub(r"[^\w.+=-]+", "_", text, flags=re.ASCII).lstrip(".-")
    if len(name) > _MAX_LENGTH:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        name = f"{name[: _MAX_LENGTH - 9]}-{digest}"
    return f"{name}_" if name in ("", *_RESERVED) else name
