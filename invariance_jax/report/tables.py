"""Turns results into tables: of text for a terminal, of cells for a page, and CSV.

A cell is a `Statistic` (a number with its standard error over seeds), text, or None. A
name `metric@M` or `metric.TARGET@M` of the summary belongs to the table of its metric,
row M. Metrics of classification share a table, with a row `PART, M` for the names
`metric.PART@M`; every other name stands in the table of the remaining measurements.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from invariance_jax.report.names import COLUMNS
from invariance_jax.report.read import Run, flatten
from invariance_jax.report.results import Results, Statistic

Cell = Statistic | str | None

_TITLES = {
    "mse": "Mean squared error",
    "r2": "Coefficient of determination, R²",
    "classification": "Classification",
}

_PARTS = ("ensemble", "selected", "pixels", "untrained")


PAPER = "paper, "
"""How a row (its first cell) or a column begins that holds numbers of the paper."""


class Table(NamedTuple):
    """A titled table.

    Attributes:
      name: the stem of its CSV file.
      title: its heading.
      columns: their heads.
      rows: of one cell per column.
      note: what is said below the heading.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


def run_columns(runs: Sequence[Run]) -> tuple[str, ...]:
    """Returns the head of the column that tells runs apart, if there are several."""
    return ("run",) if len(runs) > 1 else ()


def run_cells(run: Run, runs: Sequence[Run]) -> tuple[str, ...]:
    """Returns the cell of that column."""
    return (run.name,) if len(runs) > 1 else ()


def show(cell: Cell) -> str:
    """Returns a cell as text, a number with as many digits as its error supports.

    >>> show(Statistic(0.00199, 0.00003, 3)), show(Statistic(0.99912, None, 1))
    ('1.99e-3 ± 3.0e-5', '0.9991')
    """
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    mean, error = cell.mean, cell.standard_error
    if not math.isfinite(mean) or mean == 0:
        text = f"{mean:g}"
    elif 0.1 <= abs(mean) < 1e4:
        decimals = 4
        if error and math.isfinite(error):
            decimals = min(max(1 - math.floor(math.log10(error)), 2), 7)
        text = f"{mean:.{decimals}f}"
        return text if error is None else f"{text} ± {error:.{decimals}f}"
    else:
        text = _scientific(mean, 2)
    return text if error is None else f"{text} ± {_scientific(error, 1)}"


def _scientific(value: float, decimals: int) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    mantissa, exponent = f"{value:.{decimals}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _parse(name: str, targets: Sequence[str]) -> tuple[str, str, str] | None:
    """Returns (table, column, row) of a summary name, None for other measurements."""
    quantity, at, views = name.partition("@")
    if not at or not (views.isdigit() or views == "plain"):
        return None
    metric, dot, target = quantity.partition(".")
    row = f"{target}, {views}" if dot else views
    if metric not in ("mse", "r2"):
        return "classification", COLUMNS.get(metric, metric), row
    if metric == "mse" and target in _PARTS:
        return metric, "mean", row
    return (metric, target or "mean", views) if target in ("", *targets) else None


def result_tables(results: Results) -> list[Table]:
    """Returns the tables of one run: one per kind of metric, then everything else."""
    found: dict[str, dict[str, dict[str, Statistic]]] = {}
    others: list[tuple[Cell, ...]] = []
    for name, statistic in results.summary.items():
        place = _parse(name, results.targets)
        if place:
            kind, column, views = place
            found.setdefault(kind, {}).setdefault(views, {})[column] = statistic
        elif name != "mse.constant":  # the last row of the table of errors
            others.append((name, statistic))
    note = _note(results)
    tables = [
        _by_views(kind, found[kind], results, note) for kind in _TITLES if kind in found
    ]
    if others:
        rows = tuple(others)
        columns = ("name", "value")
        tables.append(Table("measurements", "Other measurements", columns, rows, note))
    return tables


def note_on(runs: Sequence[Run]) -> str:
    """Returns what a table says of the seeds and the split of its numbers."""
    notes = dict.fromkeys(_note(run.results) for run in runs)
    if len(notes) == 1:
        return next(iter(notes))
    numbers = ", ".join(f"{run.name} {run.results.n}" for run in runs)
    splits = {run.name: run.results.settings.get("split") for run in runs}
    known = {str(split) for split in splits.values() if split}
    of_split = f"; {next(iter(known))} split" if len(known) == 1 else ""
    if len(known) > 1:
        each = ", ".join(f"{name} {split}" for name, split in splits.items())
        of_split = f"; different splits, not to be compared: {each}"
    return f"mean ± standard error over seeds, n: {numbers}{of_split}"


def _note(results: Results) -> str:
    own = any(".selected@" in name for name in results.summary)
    note = f"{_seeds(results)}; M: number of averaged views"
    return f"{note}; selected: a probe that chose its own l2" if own else note


def _seeds(results: Results) -> str:
    if results.n > 1:
        note = f"mean ± standard error over n = {results.n} seeds"
    else:
        note = "one seed: no standard error"
    split = results.settings.get("split")
    return f"{note}; {split} split" if split else note


def _by_views(
    kind: str,
    cells: Mapping[str, Mapping[str, Statistic]],
    results: Results,
    note: str,
) -> Table:
    seen = list(dict.fromkeys(column for row in cells.values() for column in row))
    order = ["mean", *results.targets]
    columns = [c for c in order if c in seen] + [c for c in seen if c not in order]
    views = sorted(cells, key=_row_order)
    rows: list[tuple[Cell, ...]] = [
        (v, *(cells[v].get(column) for column in columns)) for v in views
    ]
    constant = results.summary.get("mse.constant")
    if kind == "mse" and constant and "mean" in columns:
        empty = (None,) * (len(columns) - 1)
        rows.append(("constant", constant, *empty))
    name = "r_squared" if kind == "r2" else kind
    return Table(name, _TITLES[kind], ("M", *columns), tuple(rows), note)


def _row_order(row: str) -> tuple[Any, ...]:
    """Returns the place of a row: plain images, then all views, then parts, by M."""
    part, _, views = row.rpartition(", ")
    return part != "", part, views != "plain", int(views) if views.isdigit() else 0


def as_text(content: Table) -> str:
    """Returns a table for a terminal, of aligned columns under its title."""
    rows = [content.columns, *(tuple(map(show, row)) for row in content.rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(content.columns))]
    lines = []
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        cells = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * max(map(len, lines))
    return "\n".join([content.title, rule, *lines])


def comparison_table(runs: Sequence[Run]) -> Table:
    """Returns one row per run: errors or accuracies for each M, and variance."""
    seen = {name for run in runs for name in run.results.summary}
    placed = [(name, _parse(name, ())) for name in seen]
    kinds = list(_TITLES)
    order = sorted(
        (kinds.index(place[0]), place[1], *_row_order(place[2]), name)
        for name, place in placed
        if place and place[0] != "r2" and not place[2].startswith("ensemble")
    )
    names = [entry[-1] for entry in order]
    extra = ("variance.normalized", "penalty.final", "loss.final")
    names += [name for name in extra if name in seen]
    rows = tuple(
        (
            run.name,
            str(run.results.n),
            str(flatten(run.config).get("penalty.weight", "")),
            *(run.results.summary.get(name) for name in names),
        )
        for run in runs
    )
    columns = ("run", "seeds", "penalty.weight", *names)
    note = f"{note_on(runs)}; name@M: M averaged views"
    return Table("comparison", "Comparison", columns, rows, note)


def difference_table(runs: Sequence[Run]) -> Table:
    """Returns the configuration keys whose values are not the same in all runs.

    Those of the evaluation are as it was made, which may be after the training.
    """
    flat = [flatten(run.config) | _evaluated(run) for run in runs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = tuple(
        (key, *(str(config.get(key, "-")) for config in flat))
        for key in keys
        if len({str(config.get(key)) for config in flat}) > 1
    )
    columns = ("key", *(run.name for run in runs))
    return Table("differences", "Settings that differ", columns, rows)


def _evaluated(run: Run) -> dict[str, Any]:
    """Returns the keys of the evaluation, with the values that it had."""
    known = flatten(run.config)
    found = {f"evaluation.{k}": v for k, v in run.results.settings.items()}
    return {key: value for key, value in found.items() if key in known}


def config_table(run: Run) -> Table:
    """Returns every configuration key of a run with its value."""
    rows = tuple((key, str(value)) for key, value in flatten(run.config).items())
    return Table("config", "Configuration", ("key", "value"), rows)


def to_csv(content: Table) -> str:
    """Returns a table as CSV: numbers unrounded, with standard error and n."""
    numeric = [
        any(isinstance(row[i], Statistic) for row in content.rows)
        for i in range(len(content.columns))
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header: list[str] = []
    for name, is_numeric in zip(content.columns, numeric, strict=True):
        header += (
            [name, f"{name} standard_error", f"{name} n"] if is_numeric else [name]
        )
    writer.writerow(header)
    for row in content.rows:
        line: list[Any] = []
        for cell, is_numeric in zip(row, numeric, strict=True):
            if not is_numeric:
                line.append(cell)
            elif isinstance(cell, Statistic):
                line += [cell.mean, cell.standard_error, cell.n]
            else:
                line += [cell, None, None]
        writer.writerow(line)
    return stream.getvalue()
