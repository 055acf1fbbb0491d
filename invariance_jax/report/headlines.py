"""The main number of each experiment, for the overview."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from invariance_jax.report import studies, study_tables
from invariance_jax.report.averaging import sweep
from invariance_jax.report.experiments import SECTIONS
from invariance_jax.report.names import COLUMNS
from invariance_jax.report.read import Run
from invariance_jax.report.results import Row, Statistic
from invariance_jax.report.rows import rows_of
from invariance_jax.report.tables import Cell, Table, note_on


class Main(NamedTuple):
    """The main number of an experiment: what it is, where on its grid, the number."""

    what: str
    where: str
    number: Statistic


def main_number(run: Run, experiment: str) -> Main | None:
    """Returns the main number of an experiment, None if it has not been measured."""
    if experiment in studies.SECTIONS:
        found = study_tables.lowest(run, experiment)
        return Main(*found) if found else None
    find = _MAIN.get(experiment)
    return find(run) if find else None


def headline_table(runs: Sequence[Run]) -> Table:
    """Returns one row per experiment: its main number, and the time that it took.

    Several runs have a column each; where a number is an extreme of a grid, each run
    has its own.
    """
    names = ["downstream", *SECTIONS]
    names += [name for run in runs for name in run.results.experiments]
    rows: list[tuple[Cell, ...]] = []
    for name in dict.fromkeys(names):
        each = [main_number(run, name) for run in runs]
        times = [_time(run, name) for run in runs]
        if not any(each) and not any(times):
            continue
        found = next((one for one in each if one), None)
        what = found.what if found else ""
        if len(runs) == 1:
            where = found.where if found else ""
            number = found.number if found else None
            rows.append((name, what, where, number, times[0]))
        else:
            cells = [one.number if one else None for one in each]
            rows.append((name, what, *cells))
    if len(runs) == 1:
        columns = ("experiment", "main number", "where", "value", "seconds")
    else:
        columns = ("experiment", "main number", *(run.name for run in runs))
    return Table("experiments", "Experiments", columns, tuple(rows), note_on(runs))


def _time(run: Run, experiment: str) -> str | None:
    found = run.results.experiments.get(experiment)
    if found is None or found.seconds is None:
        return None
    return f"{found.seconds:.1f}"


def sentence(run: Run, flat: Mapping[str, object]) -> str:
    """Returns what was run, in a line.

    Args:
      run: the run.
      flat: its configuration, dotted name -> value.
    """
    settings = run.results.settings
    parts = [flat.get("data.name"), flat.get("encoder.name")]
    weight = flat.get("penalty.weight")
    if weight is not None:
        parts.append(f"penalty of weight {weight}" if weight else "no penalty")
    if run.derived.get("steps"):
        steps, batch = run.derived["steps"], flat.get("batch_size")
        parts.append(f"{steps} steps of {batch} examples")
    parts.append(f"{run.results.n} seeds" if run.results.n > 1 else "one seed")
    if settings.get("split"):
        parts.append(f"evaluated on the {settings['split']} split")
    return ", ".join(str(part) for part in parts if part) + "."


def _of_summary(run: Run, name: str, what: str | None = None) -> Main | None:
    found = run.results.summary.get(name)
    return Main(what or name, "", found) if found else None


def _at_views(run: Run, end: int) -> Main | None:
    for metric in ("mse", "accuracy"):
        found = sweep(run, metric)
        if found:
            views, number = found[end]
            return Main(metric, f"M = {views:g}", number)
    return None


def _downstream(run: Run) -> Main | None:
    return _of_summary(run, "accuracy@plain") or _at_views(run, 0)


def _averaging(run: Run) -> Main | None:
    return _at_views(run, -1)


def _invariance(run: Run) -> Main | None:
    what = "within / total variance of n(h)"
    return _of_summary(run, "variance.normalized", what)


def _linearization(run: Run) -> Main | None:
    rows = rows_of(run, "linearization", parameters="all")
    rows = [row for row in rows if isinstance(row.at.get("step"), int | float)]
    what = "squared first-order over true change"
    return _extreme(rows, "ratio", what, key=lambda row: float(row.at["step"]))


def _nuisance(run: Run) -> Main | None:
    return _extreme(rows_of(run, "nuisance_prediction"), "r2", "largest R²")


def _worst(run: Run, experiment: str) -> Main | None:
    rows = rows_of(run, experiment)
    return _extreme(rows, "mse", "largest mse") or _extreme(
        rows,
        "accuracy",
        "smallest accuracy",
        key=lambda row: -row.values["accuracy"].mean,
    )


def _extreme(
    rows: Sequence[Row],
    name: str,
    what: str,
    key: Callable[[Row], float] | None = None,
) -> Main | None:
    """Returns a number of the row with the largest key, which is the number itself."""
    found = [
        r for r in rows if name in r.values and not math.isnan(r.values[name].mean)
    ]
    if not found:
        return None
    row = max(found, key=key or (lambda row: row.values[name].mean))
    where = ", ".join(
        value if isinstance(value, str) else f"{COLUMNS.get(at, at)} = {value:g}"
        for at, value in row.at.items()
    )
    return Main(what, where, row.values[name])


_MAIN: dict[str, Callable[[Run], Main | None]] = {
    "downstream": _downstream,
    "averaging": _averaging,
    "invariance": _invariance,
    "linearization": _linearization,
    "nuisance_prediction": _nuisance,
    "shift": lambda run: _worst(run, "shift"),
    "label_fraction": lambda run: _worst(run, "label_fraction"),
}
