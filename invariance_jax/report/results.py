"""Checks the content of a `results.json` and gives it names.

A number is a `Statistic`. The flat summary holds the downstream tasks; what has a grid
of its own is an `Experiment`: rows of numbers at coordinates.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

FORMAT = 2
"""The newest format number of `config.json` and `results.json` that is understood."""

Value = str | int | float


class Statistic(NamedTuple):
    """A number of `results.json`: mean over seeds, standard error (ddof 1), seeds."""

    mean: float
    standard_error: float | None
    n: int


class Row(NamedTuple):
    """Numbers of an experiment and where on its grid they were measured."""

    at: dict[str, Value]
    values: dict[str, Statistic]


class Experiment(NamedTuple):
    """What one experiment measured.

    Attributes:
      seconds: that it took, None if not known.
      rows: its numbers.
      command: that measured it, None if not known.
      settings: of a study, how its short runs were made; empty if not known.
    """

    seconds: float | None
    rows: tuple[Row, ...]
    command: str | None = None
    settings: Mapping[str, Any] = MappingProxyType({})


class Results(NamedTuple):
    """A checked `results.json`.

    Attributes:
      summary: name -> number.
      settings: of the evaluation.
      seeds: their numbers.
      n: how many there are.
      experiments: name -> what it measured, in the order of the file.
      command: that of the evaluation, None if not known.
    """

    summary: dict[str, Statistic]
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    n: int
    experiments: dict[str, Experiment]
    command: str | None

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the T regression targets; empty for a classification run."""
        return tuple(str(name) for name in self.settings.get("targets") or ())


def check_format(content: Mapping[str, Any], where: str) -> None:
    """Checks the format number of a file.

    Args:
      content: the parsed file.
      where: what an error calls it.

    Raises:
      ValueError: if it is missing, or newer than `FORMAT`.
    """
    found = content.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(
            f"{where} has format {found!r}, expected a number from 1 to {FORMAT}"
        )
    if found > FORMAT:
        raise ValueError(
            f"{where} has format {found}, this version reads up to format {FORMAT}: "
            "use the version of invariance_jax that wrote it, or a newer one"
        )


def check_results(content: Mapping[str, Any], where: str = "results") -> Results:
    """Returns the content of a `results.json`, checked.

    Args:
      content: the parsed file.
      where: what an error calls it.

    Raises:
      ValueError: if the format is newer, or the summary or an experiment is not as
        documented.
    """
    check_format(content, where)
    entries = content.get("summary")
    # An encoder that was not trained here, on experiments with rows only, has no entry.
    if not isinstance(entries, Mapping) or not (entries or content.get("experiments")):
        raise ValueError(f"{where} has no summary of results")
    summary = {
        name: _statistic(entry, f"{where}: summary entry {name!r}")
        for name, entry in entries.items()
    }
    seeds = tuple(content.get("seeds") or ())
    n = int(content.get("n") or len(seeds) or 1)
    settings = content.get("settings")
    command = content.get("command")
    return Results(
        summary=summary,
        settings=dict(settings) if isinstance(settings, Mapping) else {},
        seeds=seeds,
        n=n,
        experiments=_experiments(content.get("experiments"), where),
        command=None if command is None else str(command),
    )


def _statistic(entry: Any, where: str) -> Statistic:
    try:
        mean, error = entry["mean"], entry.get("standard_error")
        return Statistic(
            math.nan if mean is None else float(mean),
            None if error is None else float(error),
            int(entry.get("n", 1)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} must have a mean, a standard_error (or null) and n, found "
            f"{entry!r}"
        ) from error


def _experiments(found: Any, where: str) -> dict[str, Experiment]:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{where}: experiments must be an object, found {type(found).__name__}"
        )
    return {
        name: _experiment(entry, f"{where}: experiment {name!r}")
        for name, entry in found.items()
    }


def _experiment(entry: Any, where: str) -> Experiment:
    rows = entry.get("rows") if isinstance(entry, Mapping) else None
    if not isinstance(rows, list | tuple):
        raise ValueError(f"{where} must have a list of rows, found {_short(entry)}")
    seconds = entry.get("seconds")
    if seconds is not None and not _is_number(seconds):
        raise ValueError(f"{where}: seconds must be a number or null, found {seconds}")
    command, settings = entry.get("command"), entry.get("settings")
    return Experiment(
        None if seconds is None else float(seconds),
        tuple(_row(row, f"{where}: row {i + 1}") for i, row in enumerate(rows)),
        None if command is None else str(command),
        dict(settings) if isinstance(settings, Mapping) else {},
    )


def _row(row: Any, where: str) -> Row:
    at = row.get("at") if isinstance(row, Mapping) else None
    values = row.get("values") if isinstance(row, Mapping) else None
    if not isinstance(at, Mapping) or not isinstance(values, Mapping):
        raise ValueError(
            f'{where} must have the objects "at" and "values", found {_short(row)}'
        )
    for name, value in at.items():
        if not isinstance(value, str) and not _is_number(value):
            raise ValueError(
                f"{where}: {name} must be a text or a number, found {_short(value)}"
            )
    checked = {
        name: _statistic(entry, f"{where}: {name!r}") for name, entry in values.items()
    }
    return Row(dict(at), checked)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
