"""The tables of the studies: short runs against one without a penalty.

A row of a study is a run; its numbers are those of the run's summary, under the same
names, and with `difference.` in front the mean of the paired differences to the run
without a penalty, on the same seeds, whose 95 % t-interval is `interval.NAME.low` and
`interval.NAME.high`.
"""

from collections.abc import Sequence

from invariance_jax.report.read import Run
from invariance_jax.report.results import Row, Statistic
from invariance_jax.report.rows import all_rows, metrics, rows_of
from invariance_jax.report.tables import Cell, Table, run_cells, run_columns

_DERIVED = ("difference.", "interval.")


def shown_metrics(rows: Sequence[Row]) -> list[str]:
    """Returns the numbers that figures and short tables show, of those of a study.

    The error at the smallest and the largest M, or the accuracy on plain images and at
    the largest M, and the normalized variance.
    """
    names = metrics(rows)
    found = []
    for metric in ("mse", "accuracy"):
        at = [name for name in names if name.partition("@")[0] == metric]
        views = sorted(
            int(name[len(metric) + 1 :]) for name in at if name[-1].isdigit()
        )
        ends = [f"{metric}@plain"] if f"{metric}@plain" in at else []
        ends += [f"{metric}@{m}" for m in dict.fromkeys(views[:1] + views[-1:])]
        found += ends[:1] + ends[-1:]
    names = [*dict.fromkeys(found), "variance.normalized"]
    return [name for name in names if name in metrics(rows)]


def has_collapsed(row: Row) -> bool:
    """Returns whether the representation of some seed of a run collapsed."""
    found = row.values.get("collapsed")
    return found is not None and found.mean > 0


def has_diverged(row: Row) -> bool:
    """Returns whether a run ended with a number that is not finite."""
    return "diverged" in row.values


def study_tables(runs: Sequence[Run], study: str) -> list[Table]:
    """Returns a table of numbers and one of differences, with a row per short run."""
    found = shown_metrics(all_rows(runs, study))
    numbers: list[tuple[Cell, ...]] = []
    changes: list[tuple[Cell, ...]] = []
    for run in runs:
        for row in rows_of(run, study):
            name = *run_cells(run, runs), f"{row.at.get('run')}{_state(row)}"
            values = [row.values.get(metric) for metric in found]
            numbers.append((*name, _seeds(row), *values))
            cells = [cell for metric in found for cell in _changes(row, metric)]
            if any(cells):
                changes.append((*name, *cells))
    heads = (*run_columns(runs), "short run")
    ends = [text for m in found for text in (m, f"{m}, from", f"{m}, to")]
    title, made = study.replace("_", " ").capitalize(), _made(runs, study)
    return [
        Table(
            study,
            f"{title}: short runs",
            (*heads, "seeds", *found),
            tuple(numbers),
            f"mean ± standard error over the seeds of each short run{made}",
        ),
        Table(
            f"{study}_differences",
            f"{title}: differences to no penalty",
            (*heads, *ends),
            tuple(changes),
            f"mean of the differences on the same seeds, and its 95 % t-interval{made}",
        ),
    ]


def _made(runs: Sequence[Run], study: str) -> str:
    """Returns how the short runs were made, where that is known."""
    notes = {}
    for run in runs:
        found = run.results.experiments.get(study)
        if found is not None and found.settings:
            chosen = found.settings
            notes[run.name] = (
                f"{chosen.get('steps')} steps, {chosen.get('split')} split, probes "
                f"fitted on {chosen.get('train_examples')} examples at most"
            )
    if len(set(notes.values())) == 1:
        return f"; {next(iter(notes.values()))}"
    return "".join(f"; {name}: {note}" for name, note in notes.items())


def _state(row: Row) -> str:
    if has_diverged(row):
        return " (diverged)"
    return " (collapsed)" if has_collapsed(row) else ""


def _seeds(row: Row) -> str:
    return (
        ""
        if has_diverged(row)
        else str(max((v.n for v in row.values.values()), default=0))
    )


def _changes(row: Row, metric: str) -> list[Cell]:
    names = f"difference.{metric}", f"interval.{metric}.low", f"interval.{metric}.high"
    return [row.values.get(name) for name in names]


def every_number(runs: Sequence[Run], study: str) -> list[Table]:
    """Returns every number of a study, a row for each: too much for a page."""
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        for row in rows_of(run, study):
            for name, value in row.values.items():
                if not name.startswith(_DERIVED):
                    cells = str(row.at.get("run")), name, value, *_changes(row, name)
                    rows.append((*run_cells(run, runs), *cells))
    columns = ("short run", "name", "value", "difference", "95 % from", "to")
    columns = (*run_columns(runs), *columns)
    return [Table(f"{study}-all", "Every number", columns, tuple(rows))]


def lowest(run: Run, study: str) -> tuple[str, str, Statistic] | None:
    """Returns the paired difference of the run with the lowest error.

    Args:
      run: the run that has made the study.
      study: its name.

    Returns:
      What the number is, the label of the run with the count of those that collapsed,
      and the number; None if nothing was compared. Of images, the highest accuracy.
    """
    rows = rows_of(run, study)
    found = [m for m in shown_metrics(rows) if m != "variance.normalized"]
    metric = found[-1] if found else ""
    compared = [row for row in rows if f"difference.{metric}" in row.values]
    if not compared:
        return None
    sign = -1.0 if metric.startswith("accuracy") else 1.0
    chosen = min(compared, key=lambda row: sign * row.values[metric].mean)
    word = "highest" if sign < 0 else "lowest"
    what = f"{word} {metric} of {len(compared)} runs, less that without a penalty"
    where, collapsed = str(chosen.at.get("run")), sum(map(has_collapsed, rows))
    where += f" ({collapsed} collapsed)" if collapsed else ""
    return what, where, chosen.values[f"difference.{metric}"]
