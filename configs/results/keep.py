"""Keeps the results of finished runs as a file of `configs.results.page`.

    python -m configs.results.keep NAME "no penalty=runs/simclr" "penalty=runs/quick"

writes NAME.csv: the numbers of the summary of each run, and of all but the first the
paired differences to it, seed by seed, with 95 % intervals of Student's t.
"""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

from scipy import special

from configs.results.page import FOLDER, Row
from invariance_jax.runs import results

COLUMNS = (
    "run metric at mean standard_error difference low high n commit devices seconds"
).split()

_WORDS = {
    "mse": "MSE",
    "cross_entropy": "cross-entropy",
    "variance.normalized": "normalized variance of n(h)",
}


def rows_of(runs: dict[str, dict[str, Any]]) -> list[Row]:
    """Returns the rows of the page.

    Args:
      runs: name -> the content of its `results.json`; the first is compared to.
    """
    first, rows = next(iter(runs.values())), []
    for name, found in runs.items():
        fixed = {
            "run": name,
            "n": str(found["n"]),
            "commit": (found["environment"]["git_commit"] or "unknown")[:7],
            "devices": ", ".join(found["environment"]["devices"]),
            "seconds": f"{found['seconds']:.0f}",
        }
        pairs = results.summary(_pairs(found["rows"], first["rows"]))
        for number, one in found["summary"].items():
            pair = pairs.get(number) if found is not first else None
            rows.append(fixed | _place(number) | _text(one, pair))
    return rows


def _pairs(rows: list[dict[str, Any]], first: list[dict[str, Any]]) -> Any:
    """Yields the differences of rows that two runs have, of seeds that both have."""
    others = {_key(row): row["value"] for row in first}
    for row in rows:
        other = others.get(_key(row))
        if None not in (row["value"], other):
            yield row | {"value": row["value"] - other}


def _key(row: dict[str, Any]) -> str:
    return json.dumps({**row, "value": None}, sort_keys=True)


def _place(number: str) -> Row:
    name, _, views = number.partition("@")
    metric, _, rest = name.partition(".")
    metric = _WORDS.get(name) or ".".join(
        [_WORDS.get(metric, metric), *filter(None, [rest])]
    )
    at = {"plain": "plain images", "": ""}.get(views, f"M = {views}")
    return {"metric": metric, "at": at}


def _text(one: dict[str, Any], pair: dict[str, Any] | None) -> Row:
    """Returns mean, error, difference and interval, to two digits of the error."""
    error = one["standard_error"]
    if one["mean"] is None or not error:
        return {} if one["mean"] is None else {"mean": f"{one['mean']:.4g}"}
    numbers = {"mean": one["mean"], "standard_error": error}
    if pair and pair["standard_error"]:
        half = special.stdtrit(pair["n"] - 1, 0.975) * pair["standard_error"]
        low, high = pair["mean"] - half, pair["mean"] + half
        numbers |= {"difference": pair["mean"], "low": low, "high": high}
        error = min(error, pair["standard_error"])
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return {name: f"{value:.{decimals}f}" for name, value in numbers.items()}


def main(name: str, *runs: str) -> None:
    """Writes the file."""
    pairs = [run.split("=", 1) for run in runs]
    found = {
        label: json.loads((Path(workdir) / "results.json").read_text())
        for label, workdir in pairs
    }
    with (FOLDER / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows_of(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
