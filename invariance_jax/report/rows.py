"""Looks up the rows of experiments."""

from collections.abc import Iterable, Mapping, Sequence

from invariance_jax.report.read import Run
from invariance_jax.report.results import Row, Statistic, Value


def rows_of(run: Run, experiment: str, **at: Value) -> list[Row]:
    """Returns the rows of an experiment whose coordinates have the given values.

    Args:
      run: the run that may have measured it.
      experiment: its name.
      **at: coordinate -> value; a row that lacks the coordinate is left out.
    """
    found = run.results.experiments.get(experiment)
    if found is None:
        return []
    return [
        row
        for row in found.rows
        if all(row.at.get(name) == value for name, value in at.items())
    ]


def distinct(rows: Iterable[Row], *names: str) -> list[tuple[Value, ...]]:
    """Returns the values of some coordinates, in the order in which they come first.

    Args:
      rows: those that have all of the coordinates count.
      *names: of the coordinates.
    """
    found = (
        tuple(row.at[name] for name in names)
        for row in rows
        if all(name in row.at for name in names)
    )
    return list(dict.fromkeys(found))


def points(rows: Iterable[Row], x: str, metric: str) -> list[tuple[float, Statistic]]:
    """Returns (x, number), by x, of the rows that have both.

    Args:
      rows: those of one curve.
      x: a coordinate; where it is no number, the row is left out.
      metric: the name of the number.
    """
    found: dict[float, Statistic] = {}
    for row in rows:
        at = row.at.get(x)
        if isinstance(at, int | float) and metric in row.values:
            found[float(at)] = row.values[metric]
    return sorted(found.items())


def metrics(rows: Iterable[Row]) -> list[str]:
    """Returns the names of the numbers of some rows, in the order of the file."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def all_rows(
    runs: Sequence[Run], experiment: str, at: Mapping[str, Value] | None = None
) -> list[Row]:
    """Returns the rows of an experiment of all runs; see `rows_of`."""
    return [row for run in runs for row in rows_of(run, experiment, **(at or {}))]
