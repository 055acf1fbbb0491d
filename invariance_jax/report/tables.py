"""Tables of aggregated rows, for the page, for a terminal and as CSV."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from invariance_jax.report import paper
from invariance_jax.report.aggregate import (
    NUMBERS,
    coordinates,
    of_paper,
    select,
    show,
)
from invariance_jax.report.read import Run
from invariance_jax.report.words import Words


class Cell(NamedTuple):
    """A cell: its text, and what a click on the head of the column sorts by."""

    text: str
    key: str


class Table(NamedTuple):
    """A titled table of the page.

    Attributes:
      name: stem of its file; empty if it has none.
      title: heading.
      note: what is said below it.
      heads: of the columns.
      is_text: which columns are words.
      rows: the cells of each row.
      faint: which rows are the paper's.
      source: what its file holds.
    """

    name: str
    title: str
    note: str
    heads: list[str]
    is_text: list[bool]
    rows: list[list[Cell]]
    faint: list[bool]
    source: pd.DataFrame
    kind: str = "table"


def plain(
    frame: pd.DataFrame, name: str = "", title: str = "", note: str = ""
) -> Table:
    """Returns a table of texts as it stands; a column of numbers sorts as such."""
    is_text = [
        bool(pd.to_numeric(frame[h], errors="coerce").isna().any()) for h in frame
    ]
    rows = [[Cell(text, text) for text in map(str, row)] for row in frame.to_numpy()]
    heads, faint = [*map(str, frame)], [False] * len(rows)
    return Table(name, title, note, heads, is_text, rows, faint, frame)


def numbers(
    rows: pd.DataFrame,
    words: Words,
    index: Sequence[str],
    *,
    name: str,
    title: str = "",
    note: str = "",
) -> Table | None:
    """Returns a table with a column for each metric and target, None without rows.

    A row for each value of some columns of the aggregated rows; of "run" only if there
    are several.
    """
    if rows.empty:
        return None
    index = [n for n in index if n in rows and rows[n].notna().any()]
    index = [n for n in index if n != "run" or rows[n].nunique() > 1]
    heads: dict[Any, str] = {}
    lines: dict[Any, dict[Any, Cell]] = {}
    places: dict[Any, list[Cell]] = {}
    faint: dict[Any, bool] = {}
    for row, grey in zip(rows.to_dict("records"), of_paper(rows), strict=True):
        target = words.value("target", row.get("target"))
        column, metric = (row["metric"], target), words.metric(row["metric"])
        heads[column] = f"{metric} of {target}" if target else metric
        place = tuple(str(row[n]) for n in index)
        texts = [words.value(n, row[n]) for n in index]
        keys = [
            str(row[n]) if text else "" for n, text in zip(index, texts, strict=True)
        ]
        places[place], faint[place] = [*map(Cell, texts, keys)], bool(grey)
        text = show(row["mean"], row["standard_error"])
        lines.setdefault(place, {})[column] = Cell(text, repr(float(row["mean"])))
    return Table(
        name,
        title,
        " ".join(filter(None, [note, paper.note(rows)])),
        [*map(words.coordinate, index), *heads.values()],
        [True] * len(index) + [False] * len(heads),
        [
            places[place] + [line.get(column, Cell("", "")) for column in heads]
            for place, line in lines.items()
        ],
        [*faint.values()],
        tidy(rows),
    )


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Returns aggregated rows as a file holds them: without empty columns."""
    names = ["run", "experiment", "metric", *coordinates(table), *NUMBERS]
    return table[[name for name in dict.fromkeys(names) if name in table]]


def downstream(table: pd.DataFrame, runs: Sequence[Run], words: Words) -> list[Table]:
    """Returns the tables of the downstream task: a row for each kind of features and M.

    Of several runs and of the paper the smallest and the largest M are shown.
    """
    is_task = table["experiment"].isin(["downstream", "averaging"])
    is_task &= table["views"].notna() & (table["metric"] != "gradient_norm")
    rows = table[is_task]
    views = pd.to_numeric(rows["views"], errors="coerce").fillna(0)
    each = views.where(views > 0).groupby(rows["run"])
    ends = views.isin([0]) | (views == each.transform("min"))
    ends |= views == each.transform("max")
    kinds = pd.Series(
        map(words.features, rows.to_dict("records")), rows.index, dtype=str
    )
    order = rows["run"].map({n: i for i, n in enumerate(dict.fromkeys(rows["run"]))})
    rows = rows.assign(
        features=kinds, _run=order, _other=kinds != "encoder", _views=views, _end=ends
    ).sort_values(["_run", "_other", "features", "_views"], kind="stable")
    ends, others = rows.pop("_end"), rows.pop("_other")
    rows = rows.drop(columns=["_run", "_views"])
    note = "M: number of averaged views."
    index = ["run", "features", "views"]
    if len(runs) > 1:
        rows = rows[ends & ~others]
    else:
        rows = rows[ends | ~of_paper(rows)]
        constant = select(table, {"metric": "mse.constant"}).assign(
            metric="mse", features="constant predictor", standard_error=float("nan")
        )
        grey = rows[of_paper(rows)]  # the paper's name is enough
        grey = grey.assign(features=grey["run"])
        rows = pd.concat([rows[~of_paper(rows)], constant, grey])
        index = index[1:]
        if (rows["probe"] == "selected").any():
            note += " A probe with its own l2 chose it on held-out training examples."
    is_r2 = rows["metric"] == "r2"
    title = "Share of the variance that is explained"
    found = [
        numbers(rows[~is_r2], words, index, name="downstream", note=note),
        numbers(rows[is_r2], words, index, name="r_squared", title=title),
    ]
    return [one for one in found if one is not None]


def every_number(rows: pd.DataFrame, words: Words, name: str, note: str) -> list[Table]:
    """Returns all numbers of an experiment, a table for each set of coordinates."""
    names = [n for n in coordinates(rows) if n != "target"]
    rows = rows[rows["metric"] != "gradient_norm"]
    kinds = rows[names].notna().astype(int).astype(str).agg("".join, axis=1)
    found = [
        numbers(part, words, ["run", *names], name=f"{name}_{n + 1}", note=note)
        for n, (_, part) in enumerate(rows.groupby(kinds, sort=False))
    ]
    return [one for one in found if one is not None]


def joined(value: object) -> str:
    """Returns a value of a JSON file as one line.

    >>> joined(["cpu", "cpu"]), joined({"jax": "0.10"})
    ('2 x cpu', 'jax 0.10')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {joined(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        texts = [joined(entry) for entry in value]
        counts = {text: texts.count(text) for text in texts}
        return ", ".join(f"{n} x {t}" if n > 1 else t for t, n in counts.items())
    return str(value)


def facts(found: Mapping[str, object], name: str = "") -> Table:
    """Returns a table of names and texts."""
    rows = [(key, joined(value)) for key, value in found.items()]
    return plain(pd.DataFrame(rows, columns=["name", "value"]), name)


def as_text(table: Table) -> str:
    """Returns a table for a terminal, of aligned columns."""
    lines = [table.heads, *([cell.text for cell in row] for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if is_text else ">" for is_text in table.is_text]
    return "\n".join(
        "  ".join(f"{t:{s}{w}}" for t, s, w in zip(line, sides, widths, strict=True))
        for line in lines
    )
