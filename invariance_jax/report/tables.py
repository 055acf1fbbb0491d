"""Tables of aggregated rows, for the page, for a terminal and as CSV."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from invariance_jax.report import paper
from invariance_jax.report.aggregate import (
    NUMBERS,
    coordinates,
    of_paper,
    select,
    show,
)
from invariance_jax.report.read import SUMMARY, Run
from invariance_jax.report.words import Words


class Table(NamedTuple):
    """A titled table of the page.

    Attributes:
      name: stem of its file; empty if it has none.
      title: heading.
      note: what is said below it.
      texts: its cells.
      source: what its file holds.
      words: how many of the columns, from the left, are words.
      faint: which rows are the paper's.
    """

    name: str
    title: str
    note: str
    texts: pd.DataFrame
    source: pd.DataFrame
    words: int
    faint: Sequence[bool]
    kind: str = "table"


def plain(
    frame: pd.DataFrame, name: str = "", title: str = "", note: str = ""
) -> Table:
    """Returns a table of texts as it stands."""
    faint = [False] * len(frame)
    return Table(name, title, note, frame.astype(str), frame, len(frame.columns), faint)


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
    targets = [words.value("target", target) for target in rows["target"]]
    metrics = map(words.word, rows["metric"])
    heads = [f"{m} of {t}" if t else m for m, t in zip(metrics, targets, strict=True)]
    texts = {words.word(n): [words.value(n, v) for v in rows[n]] for n in index}
    cells = [*map(show, rows["mean"], rows["standard_error"])]
    long = pd.DataFrame({**texts, "": of_paper(rows), "head": heads, "cell": cells})
    wide = long.pivot_table(
        "cell", ["", *texts], "head", aggfunc="first", sort=False, fill_value=""
    )
    wide = wide[[*dict.fromkeys(heads)]].reset_index()
    faint, note = [*wide.pop("")], " ".join(filter(None, [note, paper.note(rows)]))
    return Table(name, title, note, wide, tidy(rows), len(texts), faint)


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
    views = pd.to_numeric(rows["views"], errors="coerce")
    each = views.groupby(rows["run"])
    is_end = views.isna() | (views == each.transform("min"))
    is_end |= views == each.transform("max")
    kinds = [words.features(row) for row in rows.to_dict("records")]
    runs_in_order = [*dict.fromkeys(rows["run"])]
    order = [
        (runs_in_order.index(run), kind != "encoder", kind, m)
        for run, kind, m in zip(rows["run"], kinds, views.fillna(0), strict=True)
    ]
    rows = rows.assign(
        features=kinds, order=pd.Series(order, rows.index), is_end=is_end
    ).sort_values("order", kind="stable")
    is_own, is_end = ~of_paper(rows), rows.pop("is_end")
    del rows["order"]
    note, index = "M: number of averaged views.", ["run", "features", "views"]
    if len(runs) > 1:
        rows = rows[is_end & (rows["features"] == "encoder")]
    else:
        constant = select(table, {"metric": "mse.constant"}).assign(
            metric="mse", features="constant predictor", standard_error=float("nan")
        )
        grey = rows[is_end & ~is_own]  # the paper's name is enough
        rows = pd.concat([rows[is_own], constant, grey.assign(features=grey["run"])])
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
    known = [n for n in coordinates(rows) if n != "target"]
    names = ["run", *sorted(known, key=SUMMARY.__contains__)]  # its own first
    rows = rows[rows["metric"] != "gradient_norm"]
    kinds = rows[names].notna().astype(int).astype(str).agg("".join, axis=1)
    found = [
        numbers(part, words, names, name=f"{name}_{number + 1}", note=note)
        for number, (_, part) in enumerate(rows.groupby(kinds, sort=False))
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
    lines = [[*table.texts], *table.texts.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if n < table.words else ">" for n in range(len(widths))]
    return "\n".join(
        "  ".join(f"{t:{s}{w}}" for t, s, w in zip(line, sides, widths, strict=True))
        for line in lines
    )
