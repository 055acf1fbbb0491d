"""Writes the results of finished runs to a file that `configs.results.page` reads.

    python -m configs.results.keep NAME "no penalty=runs/simclr" "penalty=runs/quick"

writes NAME.csv, which must not exist. It holds the numbers of each run's summary, and
for every run but the first the paired differences from the first, seed by seed. Their
95 % t-intervals are corrected for the number of compared runs (Holm). A label contains
no "=". Arguments such as "byol: penalty=runs/byol" form studies, each with its own
first run.
"""

import csv
import math
import sys
from typing import Any

from configs.results.page import FOLDER, Row
from invariance_jax.report.aggregate import in_summary
from invariance_jax.report.compare import Comparison
from invariance_jax.report.read import SUMMARY, Run, read_runs
from invariance_jax.report.words import word

COLUMNS = (
    "study run metric at mean standard_error difference low high n commit "
    "devices seconds"
).split()


def rows_of(names: list[str], runs: list[Run]) -> list[Row]:
    """Returns the rows of a study; `names` are the runs' labels on the page."""
    labels = dict(zip((run.name for run in runs), names, strict=True))
    data = {run.name: (*run.results["seeds"], run.data) for run in runs}
    if len({*data.values()}) > 1:
        raise ValueError(
            f"runs must have the same seeds, data, targets and split; found {data}."
        )
    comparison = Comparison(runs)
    pairs = comparison.pairs.drop(columns="n").rename(
        columns={"mean": "difference", "standard_error": "pair_error"}
    )
    table = comparison.table[in_summary(comparison.table)]
    table = table[table["run"].isin(labels)].merge(pairs, how="left")
    facts = {run.name: _facts(run) for run in runs}
    words = comparison.words
    return [
        {"run": labels[row["run"]], "metric": word(row["metric"])}
        | {"at": words.place({name: row[name] for name in ("target", *SUMMARY)})}
        | _text(row)
        | {"n": str(row["n"])}
        | facts[row["run"]]
        for row in table.to_dict("records")
    ]


def _facts(run: Run) -> Row:
    environment = run.results["environment"]
    commit, *changed = (environment["git_commit"] or "unknown").split("-")
    return {
        "commit": "-".join([commit[:7], *changed]),
        "devices": ", ".join(environment["devices"]),
        "seconds": f"{run.seconds:.0f}",
    }


def _text(row: Any) -> Row:
    """Returns the numbers of a row, rounded to two digits of the smaller error."""
    errors = [row["standard_error"], row["pair_error"]]
    known = [error for error in errors if error > 0]
    decimals = 1 - math.floor(math.log10(min(known))) if known else 4
    names = ("mean", "standard_error", "difference", "low", "high")
    return {
        name: "" if math.isnan(row[name]) else f"{row[name]:.{max(decimals, 0)}f}"
        for name in names
    }


def main(name: str, *labelled: str) -> None:
    """Writes NAME.csv of runs that are given as LABEL=WORKDIR."""
    studies: dict[str, dict[str, str]] = {}
    for label, workdir in (argument.split("=", 1) for argument in labelled):
        study, _, run = label.rpartition(": ")
        studies.setdefault(study, {})[run] = workdir
    rows = [
        {"study": study, **row}
        for study, runs in studies.items()
        for row in rows_of([*runs], read_runs([*runs.values()]))
    ]
    columns = COLUMNS if any(studies) else COLUMNS[1:]
    with (FOLDER / f"{name}.csv").open("x", newline="") as file:
        writer = csv.DictWriter(file, columns, "", "ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
