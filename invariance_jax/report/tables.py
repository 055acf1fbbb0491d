"""Tables of aggregated rows, for the page, for a terminal and as CSV."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from invariance_jax.report import paper
from invariance_jax.report.aggregate import coordinates, of_paper, select, show
from invariance_jax.report.read import NUMBERS, SUMMARY
from invariance_jax.report.sections import KINDS
from invariance_jax.report.words import Words, word


class Table(NamedTuple):
    """A titled table of the page."""

    name: str  # stem of its file; empty if it has none
    title: str
    note: str
    texts: pd.DataFrame  # the cells
    source: pd.DataFrame  # the content of its file
    words: int  # number of leading columns that hold words
    faint: Sequence[bool]  # whether a row is the paper's
    kind: str = "table"


def plain(
    frame: pd.DataFrame, name: str = "", title: str = "", note: str = ""
) -> Table:
    """Returns a table of the entries of a frame, all as words."""
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
) -> list[Table]:
    """Returns a table with a column for each metric and target; [] without rows.

    It has a row for each combination of values of the index columns. These are left out
    if they have no value, and "run" also if the report is of one run, without rows of
    the paper.
    """
    if rows.empty:
        return []
    least = {"run": 1 if words.several else 2}
    index = [n for n in index if n in rows and rows[n].nunique() >= least.get(n, 1)]
    targets = rows["target"].map(lambda t: words.value("target", t))
    heads = rows["metric"].map(word) + (" of " + targets).where(targets != "", "")
    cells = [*map(show, rows["mean"], rows["standard_error"])]
    # Columns are named by numbers, as two of them may have the same words.
    texts = [rows[n].map(lambda v, n=n: words.value(n, v)) for n in index]
    long = pd.DataFrame(dict(enumerate([of_paper(rows), *texts])))
    keys, long = [*long.columns], long.assign(head=heads, cell=cells)
    wide = long.pivot_table(
        "cell", keys, "head", aggfunc="first", sort=False, fill_value=""
    )
    wide = wide[[*dict.fromkeys(heads)]].reset_index()
    faint, wide = [*wide.iloc[:, 0]], wide.iloc[:, 1:]
    wide.columns = [*map(word, index), *wide.columns[len(index) :]]
    note = " ".join(filter(None, [note, paper.note(rows)]))
    return [Table(name, title, note, wide, tidy(rows), len(index), faint)]


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Returns aggregated rows for a CSV file: without empty columns."""
    names = ["run", "experiment", "metric", *coordinates(table), *NUMBERS]
    return table[[name for name in dict.fromkeys(names) if name in table]]


def downstream(table: pd.DataFrame, words: Words) -> list[Table]:
    """Returns the tables of the downstream task: a row for each kind of features and M.

    Several runs, and the paper, are shown at the smallest and the largest M only.
    """
    is_task = table["experiment"].isin(["downstream", "averaging"])
    rows = table[is_task & table["views"].notna()]
    kinds = [words.place(kind) for kind in rows[[*KINDS]].to_dict("records")]
    rows = rows.assign(features=[kind or "encoder" for kind in kinds])
    views = pd.to_numeric(rows["views"], errors="coerce")
    by_run = views.groupby(rows["run"]).transform
    is_end = views.isna() | (views == by_run("min")) | (views == by_run("max"))
    # The encoder's own features, which have no words, come first.
    order = pd.DataFrame({"features": kinds, "views": views.fillna(0)}, rows.index)
    order = order.assign(run=pd.factorize(rows["run"])[0])
    order = order.sort_values(["run", "features", "views"], kind="stable")
    rows, is_end = rows.loc[order.index], is_end.loc[order.index]
    note, index = "M: number of averaged views.", ["features", "views"]
    if words.several:
        rows, index = rows[is_end & (rows["features"] == "encoder")], ["run", *index]
    else:
        constant = select(table, {"metric": "mse.constant"}).assign(
            metric="mse", features="constant predictor", standard_error=float("nan")
        )
        grey = rows[is_end & of_paper(rows)]
        grey = grey.assign(features=grey["run"])  # there is no column for the run
        rows = pd.concat([rows[~of_paper(rows)], constant, grey])
        if (rows["probe"] == "selected").any():
            note += " Probe with its own l2: chosen on held-out training examples."
    is_r2 = rows["metric"] == "r2"
    title = "R², the share of the variance that is explained"
    return [
        *numbers(rows[~is_r2], words, index, name="downstream", note=note),
        *numbers(rows[is_r2], words, index, name="r_squared", title=title),
    ]


def every_number(rows: pd.DataFrame, words: Words, name: str, note: str) -> list[Table]:
    """Returns all numbers of an experiment, a table for each set of coordinates."""
    names = [n for n in coordinates(rows) if n not in ("target", "table")]
    # Its own coordinates come before those of the summary.
    names = ["run", *sorted(names, key=SUMMARY.__contains__)]
    kinds = rows[names].notna().astype(int).astype(str).agg("".join, axis=1)
    return [
        table
        for number, (_, part) in enumerate(rows.groupby(kinds, sort=False), start=1)
        for table in numbers(part, words, names, name=f"{name}_{number}", note=note)
    ]


def joined(value: object) -> str:
    """Returns a value of a JSON file as one line of text.

    >>> joined(["cpu", "cpu"]), joined((16, 16)), joined({"jax": "0.10"})
    ('2 x cpu', '16, 16', 'jax 0.10')
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {joined(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        texts = [*map(joined, value)]
        if len({*texts}) == 1 < len(texts) and isinstance(value[0], str):
            return f"{len(texts)} x {texts[0]}"
        return ", ".join(texts)
    return str(value)


def facts(found: Mapping[str, object], name: str = "") -> Table:
    """Returns a table of names and values."""
    rows = [(key, joined(value)) for key, value in found.items()]
    return plain(pd.DataFrame(rows, columns=["name", "value"]), name)


def as_text(table: Table) -> str:
    """Returns a table as text with aligned columns, for a terminal."""
    lines = [[*table.texts], *table.texts.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = ["<" if n < table.words else ">" for n in range(len(widths))]
    return "\n".join(
        "  ".join(f"{t:{s}{w}}" for t, s, w in zip(line, sides, widths, strict=True))
        for line in lines
    )
