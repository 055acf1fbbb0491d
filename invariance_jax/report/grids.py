"""Tables of the rows of experiments, beside those of the paper."""

from collections.abc import Callable, Mapping, Sequence

from invariance_jax.report import paper
from invariance_jax.report.names import COLUMNS, image_set, with_paper
from invariance_jax.report.read import Run
from invariance_jax.report.results import Row, Statistic, Value
from invariance_jax.report.rows import all_rows, distinct, metrics, rows_of
from invariance_jax.report.tables import (
    Cell,
    Table,
    note_on,
    run_cells,
    run_columns,
)


def plain_tables(runs: Sequence[Run], experiment: str) -> list[Table]:
    """Returns every number of an experiment as it stands in `results.json`.

    Rows that have a coordinate "table" are divided by it.
    """
    names = distinct(all_rows(runs, experiment), "table") or [()]
    return [_plain_table(runs, experiment, *name) for name in names]


def _plain_table(runs: Sequence[Run], experiment: str, *table: Value) -> Table:
    at = {"table": table[0]} if table else {}
    rows = all_rows(runs, experiment, at)
    coordinates = dict.fromkeys(name for row in rows for name in row.at)
    coordinates.pop("table", None)
    values = metrics(rows)
    cells = tuple(
        (
            *run_cells(run, runs),
            *(_text(row.at.get(name)) for name in coordinates),
            *(row.values.get(name) for name in values),
        )
        for run in runs
        for row in rows_of(run, experiment, **at)
    )
    columns = (*coordinates, *(COLUMNS.get(name, name) for name in values))
    name = "_".join([experiment, *map(str, table)])
    title = f"Every number: {table[0]}" if table else "Every number"
    return Table(
        f"{name}-all", title, (*run_columns(runs), *columns), cells, note_on(runs)
    )


def pivot(
    runs: Sequence[Run],
    experiment: str,
    at: Mapping[str, Value],
    *,
    index: str,
    by: Sequence[str],
    head: Callable[[Row, str], str],
    values: Sequence[str],
) -> Table | None:
    """Returns a table with a row for each value of one coordinate.

    Args:
      runs: those that are shown, below each other.
      experiment: whose rows they are.
      at: coordinates that choose the rows.
      index: the coordinate that has rows.
      by: the coordinates that have columns.
      head: (row, number) -> head of a column.
      values: the names of the numbers that are shown.

    Returns:
      A table without title, None where there is no number.
    """
    rows = all_rows(runs, experiment, at)
    places = [
        (key, name)
        for key in distinct(rows, *by)
        for name in values
        if any(name in row.values and _key(row, by) == key for row in rows)
    ]
    if not places:
        return None
    one = {_key(row, by): row for row in rows}
    columns = [head(one[key], name) for key, name in places]
    cells: list[tuple[Cell, ...]] = []
    for run in runs:
        found = rows_of(run, experiment, **at)
        for (value,) in distinct(found, index):
            same = {_key(row, by): row for row in found if row.at.get(index) == value}
            numbers = [
                same[key].values.get(name) if key in same else None
                for key, name in places
            ]
            cells.append((*run_cells(run, runs), _text(value), *numbers))
    heads = (*run_columns(runs), index, *columns)
    return Table(experiment, "", heads, tuple(cells), note_on(runs))


def _key(row: Row, names: Sequence[str]) -> tuple[Value | None, ...]:
    return tuple(row.at.get(name) for name in names)


def _text(value: Value | None) -> str | None:
    if value is None:
        return None
    return f"{value:g}" if isinstance(value, float) else str(value)


def shift_tables(runs: Sequence[Run]) -> list[Table]:
    """Returns a table for each grid of shifts: the quality of each head."""
    rows = all_rows(runs, "shift")
    shown = [name for name in ("mse", "accuracy") if name in metrics(rows)]
    tables = []
    for what, how in distinct(rows, "parameter", "how"):
        found = pivot(
            runs,
            "shift",
            {"parameter": what, "how": how},
            index="shift",
            by=("head", "views"),
            head=lambda row, name: f"{name}, {row.at['head']}, M = {row.at['views']}",
            values=shown,
        )
        if found:
            title = {"move": f"{what}, mean moved", "widen": f"{what}, width times"}
            named = found._replace(
                name=f"shift_{what}_{how}", title=title.get(str(how), f"{what}, {how}")
            )
            tables.append(_with_paper(named, runs, str(what), str(how)))
    return tables


def _with_paper(table: Table, runs: Sequence[Run], what: str, how: str) -> Table:
    """Returns a table of shifts with two more columns, if the paper has its grid."""
    images = image_set(runs)
    if how == "move" and what in paper.SHIFTS and with_paper(runs):
        (grid, found), name = paper.SHIFTS[what], "mse"
    elif how == "strength" and images:
        (grid, found), name = paper.STRENGTHS[images], "accuracy"
    else:
        return table
    place = table.columns.index("shift")
    columns, rows = table.columns, table.rows
    for kind in paper.KINDS:
        at = {
            f"{shift:g}": Statistic(value, None, 3)
            for shift, value in zip(grid, found[kind], strict=True)
        }
        columns = (*columns, f"paper, {kind}: {name}, refitted, M = 1")
        rows = tuple((*row, at.get(str(row[place]))) for row in rows)
    return table._replace(columns=columns, rows=rows)


def paper_table(runs: Sequence[Run]) -> Table | None:
    """Returns the downstream tasks of the runs above those of the paper, if it can."""
    if with_paper(runs):
        names = ["mse@1", "mse@30", *(f"mse.{target}@1" for target in paper.TARGETS)]
        found = {kind: _paper_errors(kind) for kind in paper.KINDS}
        kept = [run for run in runs if with_paper([run])]
    elif images := image_set(runs):
        found = paper.IMAGES[images]
        names = list(dict.fromkeys(name for one in found.values() for name in one))
        kept = [run for run in runs if image_set([run])]
    else:
        return None
    rows: list[tuple[Cell, ...]] = [
        (run.name, str(run.results.n), *map(run.results.summary.get, names))
        for run in kept
    ]
    rows += [
        (f"paper, {kind}", "3", *map(found[kind].get, names)) for kind in paper.KINDS
    ]
    note = "mean ± standard error over seeds." + paper.note(not with_paper(runs))
    columns = ("run", "seeds", *names)
    title = "Beside the paper"
    return Table("paper", title, columns, tuple(rows), note)


def _paper_errors(kind: str) -> dict[str, Statistic]:
    place = paper.KINDS.index(kind)
    found = {
        f"mse@{m}": Statistic(value, paper.ERRORS.get(m, (None, None))[place], 3)
        for m, value in zip(paper.NUM_VIEWS, paper.MEAN[kind], strict=True)
    }
    tasks = paper.SINGLE[kind].items()
    return found | {f"mse.{name}@1": Statistic(v, None, 3) for name, v in tasks}


def paper_labels(runs: Sequence[Run]) -> Table | None:
    """Returns the paper's accuracies for shares of the labels, which are not known."""
    if image_set(runs) != "cifar10":
        return None
    rows = [
        (f"paper, {kind}", *(Statistic(value, None, 3) for value in found))
        for kind, found in paper.LABELS.items()
    ]
    count = len(paper.LABELS["penalty"])
    columns = ("run", *(f"share {number + 1}" for number in range(count)))
    note = (
        "Accuracy, plain images. Eight shares from about 0.05 (the first) to 1 (the "
        "last); those between are not known, so they are not drawn." + paper.note(True)
    )
    title = "The paper's label fractions"
    return Table("paper_labels", title, columns, tuple(rows), note)
