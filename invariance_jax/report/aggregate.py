"""Aggregates the long table: over seeds, and paired differences of runs.

An aggregated table has the columns run, experiment, metric, the coordinates, mean,
standard_error (NaN where it is not known) and n; of differences also low and high.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from invariance_jax.report.read import KEYS, NUMBERS, SUMMARY
from invariance_jax.runs.results import Value

Where = Mapping[str, Value | None | Callable[["pd.Series[Any]"], float]]
"""Coordinate -> its value; None: absent; `max` or `min`: the extreme of its numbers."""


def long_table(each: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Returns the rows of all runs; one that two experiments measured stands once."""
    rows = pd.concat(each, ignore_index=True)
    rows = rows.reindex(columns=[*dict.fromkeys([*KEYS, *rows.columns, *SUMMARY])])
    keys = ["metric", *(name for name in rows.columns if name not in KEYS)]
    first = rows.groupby(keys, dropna=False, sort=False)["experiment"].transform(
        "first"
    )
    rows["experiment"] = rows["experiment"].where(~in_summary(rows), first)
    return rows.drop_duplicates([*set(rows.columns) - {"value"}])


def coordinates(table: pd.DataFrame) -> list[str]:
    """Returns the coordinates that some row of a table has."""
    names = [name for name in table.columns if name not in (*KEYS, *NUMBERS)]
    return [name for name in names if table[name].notna().any()]


def in_summary(table: pd.DataFrame) -> "pd.Series[bool]":
    """Returns which rows are in the summary: they have no coordinate of their own."""
    others = [name for name in coordinates(table) if name not in SUMMARY]
    return table[others].isna().all(axis=1)


def of_paper(table: pd.DataFrame) -> "pd.Series[bool]":
    """Returns which rows are the paper's."""
    return table["run"].astype(str).str.startswith("paper, ")


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns mean, standard error and n of every number; a NaN among them stays."""
    keys = [name for name in rows.columns if name not in ("seed", "value")]
    groups = rows.groupby(keys, dropna=False, sort=False)["value"]
    # As arrays: the keys, of which many are absent, need not be matched.
    error = groups.sem(ddof=1, skipna=False).to_numpy()
    found = groups.mean(skipna=False).rename("mean").reset_index()
    return found.assign(standard_error=error, n=groups.size().to_numpy())


def paired(rows: pd.DataFrame, first: str) -> pd.DataFrame:
    """Returns the differences of the other runs to the first, over seeds of both.

    A pair has the same seed, experiment, metric and coordinates; low and high are the
    ends of the 95 % interval of Student's t, NaN for one pair.
    """
    keys = [name for name in rows.columns if name not in ("run", "value")]
    is_first = rows["run"] == first
    own = rows[is_first].drop(columns="run").rename(columns={"value": "of first"})
    pairs = rows[~is_first].merge(own, on=keys)
    pairs["value"] -= pairs.pop("of first")
    found = over_seeds(pairs)
    # Of one pair the error is NaN, whatever the quantile.
    quantile = special.stdtrit(np.maximum(found["n"] - 1, 1), 0.975)
    half = quantile * found["standard_error"]
    return found.assign(low=found["mean"] - half, high=found["mean"] + half)


def holm(pairs: pd.DataFrame) -> pd.DataFrame:
    """Returns paired differences with intervals corrected for their number.

    Of the runs that are compared by one number, the k-th smallest p-value of m has the
    level 5 % / (m - k + 1), until one is not below its own; the others share its level.
    """
    keys = [name for name in pairs.columns if name not in ("run", *NUMBERS)]
    freedom = np.maximum(pairs["n"] - 1, 1)
    p = 2 * special.stdtr(freedom, -(pairs["mean"] / pairs["standard_error"]).abs())
    table = pairs.assign(p=p).sort_values("p")
    groups = table.groupby(keys, dropna=False, sort=False)
    level = 0.05 / (groups["p"].transform("count") - groups.cumcount()).clip(lower=1)
    family = groups.ngroup()
    failed = (table["p"] > level).astype(int)
    before = failed.groupby(family).cumsum() - failed
    level = level.mask(before > 0).groupby(family).ffill()
    half = pairs["standard_error"] * special.stdtrit(freedom, 1 - level / 2)
    return pairs.assign(low=pairs["mean"] - half, high=pairs["mean"] + half)


def select(table: pd.DataFrame, where: Where) -> pd.DataFrame:
    """Returns the rows of a table at some coordinates."""
    for name, value in where.items():
        column = table.get(name, pd.Series(np.nan, table.index, dtype=object))
        if value is None:
            table = table[column.isna()]
        elif callable(value):
            numbers = pd.to_numeric(column, errors="coerce")
            table = table[numbers == value(numbers)]
        else:
            table = table[column == value]
    return table


def show(mean: float, error: float = math.nan) -> str:
    """Returns a number with as many digits as its error supports.

    >>> show(0.00199, 0.00003), show(0.93, 0.004), show(0.99912), show(2e-5)
    ('(1.99 ± 0.03)e-3', '0.930 ± 0.004', '0.9991', '2.00e-5')
    """
    if not math.isfinite(mean):
        return f"{mean:g}"
    known = math.isfinite(error) and error > 0
    size = max(abs(mean), error) if known else abs(mean)
    power = math.floor(math.log10(size)) if size else 0
    power = 0 if -2 <= power < 4 else power
    decimals = 2 if power else 4
    if known:  # two digits of an error that begins with 1 or 2, else one
        digits = -math.floor(math.log10(error / 10.0**power / 3))
        decimals = min(max(digits, 1), 7)
    text, end = f"{mean / 10.0**power:.{decimals}f}", f"e{power}" if power else ""
    if not known:
        return text + end
    both = f"{text} ± {error / 10.0**power:.{decimals}f}"
    return f"({both}){end}" if end else both
