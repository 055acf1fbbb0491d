"""Aggregates the long table over seeds; computes paired differences of runs.

An aggregated table has the columns run, experiment, metric, the coordinates, mean,
standard_error (NaN where it is not known) and n; one of differences also low and high.
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
"""Coordinate -> its value; None: no value; `max` or `min`: its extreme number."""


def long_table(each: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Returns the rows of all runs; drops what a second built-in experiment repeats."""
    rows = pd.concat(each, ignore_index=True)
    rows = rows.reindex(columns=[*dict.fromkeys([*KEYS, *rows.columns, *SUMMARY])])
    keys = ["metric", *(name for name in rows.columns if name not in KEYS)]
    first = rows.groupby(keys, dropna=False, sort=False)["experiment"].transform(
        "first"
    )
    is_own = rows["experiment"].str.contains(":")
    rows["experiment"] = rows["experiment"].where(is_own | ~_at_summary(rows), first)
    return rows.drop_duplicates([*set(rows.columns) - {"value"}])


def coordinates(table: pd.DataFrame) -> list[str]:
    """Returns the coordinates that at least one row of a table has."""
    names = [name for name in table.columns if name not in (*KEYS, *NUMBERS)]
    return [name for name in names if table[name].notna().any()]


def in_summary(table: pd.DataFrame) -> "pd.Series[bool]":
    """Returns a mask of the rows in the summary, the first of each of its names."""
    keys = [name for name in ("run", "metric", "seed", *SUMMARY) if name in table]
    rows = table[_at_summary(table)]
    return ~rows.duplicated(keys).reindex(table.index, fill_value=True)


def _at_summary(table: pd.DataFrame) -> "pd.Series[bool]":
    """Returns a mask of the rows all of whose coordinates are in `SUMMARY`."""
    others = [name for name in coordinates(table) if name not in SUMMARY]
    return table[others].isna().all(axis=1)


def of_paper(table: pd.DataFrame) -> "pd.Series[bool]":
    """Returns a mask of the rows of the paper."""
    return table["run"].astype(str).str.startswith("paper, ")


def over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns mean, standard error and n over seeds; a NaN makes the first two NaN."""
    keys = [name for name in rows.columns if name not in ("seed", "value")]
    groups = rows.groupby(keys, dropna=False, sort=False)["value"]
    # Arrays are in the order of the groups, so no keys, many of them NaN, are matched.
    error = groups.sem(ddof=1, skipna=False).to_numpy()
    table = groups.mean(skipna=False).rename("mean").reset_index()
    return table.assign(standard_error=error, n=groups.size().to_numpy())


def paired(rows: pd.DataFrame, first: str) -> pd.DataFrame:
    """Returns mean differences of the other runs to the first, over common seeds.

    A pair has the same seed, experiment, metric and coordinates. `low` and `high` are
    the ends of the 95 % interval of Student's t; they are NaN for a single pair.
    """
    keys = [name for name in rows.columns if name not in ("run", "value")]
    is_first = rows["run"] == first
    own = rows[is_first].drop(columns="run").rename(columns={"value": "of first"})
    pairs = rows[~is_first].merge(own, on=keys)
    pairs["value"] -= pairs.pop("of first")
    differences = over_seeds(pairs)
    mean, error = differences["mean"], differences["standard_error"]
    # The standard error of a single pair is NaN, and so is its interval.
    half = error * special.stdtrit(np.maximum(differences["n"] - 1, 1), 0.975)
    return differences.assign(low=mean - half, high=mean + half)


def holm(pairs: pd.DataFrame) -> pd.DataFrame:
    """Returns paired differences, their intervals corrected for several runs (Holm).

    For each number the differences of the m other runs are sorted by p-value. The k-th
    has the level 5 % / (m - k + 1), up to the first p-value above its own level; all
    later differences share that level.
    """
    keys = [name for name in pairs.columns if name not in ("run", *NUMBERS)]
    degrees_of_freedom = np.maximum(pairs["n"] - 1, 1)
    t = pairs["mean"] / pairs["standard_error"]
    p = 2 * special.stdtr(degrees_of_freedom, -t.abs())
    table = pairs.assign(p=p).sort_values("p", kind="stable")
    groups = table.groupby(keys, dropna=False, sort=False)
    level = 0.05 / (groups["p"].transform("count") - groups.cumcount()).clip(lower=1)
    number = groups.ngroup()
    failed = (table["p"] > level).astype(int)
    failed_before = failed.groupby(number).cumsum() - failed
    level = level.mask(failed_before > 0).groupby(number).ffill()
    quantile = special.stdtrit(degrees_of_freedom, 1 - level / 2)
    half = pairs["standard_error"] * quantile
    return pairs.assign(low=pairs["mean"] - half, high=pairs["mean"] + half)


def select(table: pd.DataFrame, where: Where) -> pd.DataFrame:
    """Returns the rows of a table at the given coordinates."""
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
    has_error = math.isfinite(error) and error > 0
    size = max(abs(mean), error) if has_error else abs(mean)
    power = math.floor(math.log10(size)) if size else 0
    power = 0 if -2 <= power < 4 else power
    decimals = 2 if power else 4
    if has_error:  # two digits of an error that begins with 1 or 2, else one
        digits = -math.floor(math.log10(error / 10.0**power / 3))
        decimals = min(max(digits, 1), 7)
    text, exponent = f"{mean / 10.0**power:.{decimals}f}", f"e{power}" if power else ""
    if not has_error:
        return text + exponent
    both = f"{text} ± {error / 10.0**power:.{decimals}f}"
    return f"({both}){exponent}" if exponent else both
