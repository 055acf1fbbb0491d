"""The main numbers of runs, and comparisons: the others against the first."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from invariance_jax.report import aggregate, paper, tables
from invariance_jax.report.aggregate import select, show
from invariance_jax.report.read import Run
from invariance_jax.report.tables import Table
from invariance_jax.report.words import Words, word
from invariance_jax.runs.results import NAMED, Value
from invariance_jax.types import Json

Place = tuple[str, Value | None]
"""A metric, and M, "plain" or None."""


class Headline(NamedTuple):
    """A number of the first screen: what it is, the number as text, a remark."""

    title: str
    number: str
    remark: str


def _main(table: pd.DataFrame) -> pd.DataFrame:
    return select(table[aggregate.in_summary(table)], dict.fromkeys(NAMED))


def places(table: pd.DataFrame) -> list[Place]:
    """Returns where the up to three main numbers of aggregated rows are.

    Accuracy of plain images or error of one view, the same at the largest M, and the
    normalized variance; what is missing is replaced by what else there is.
    """
    main = _main(table)
    views = [None if pd.isna(m) else m for m in main["views"]]
    every: list[Place] = [*zip(main["metric"], views, strict=True)]
    wanted: list[Place] = []
    for metric in ("accuracy", "mse"):
        own = [m for name, m in every if name == metric]
        numeric = sorted(m for m in own if isinstance(m, int | float))
        first = ["plain"] if "plain" in own else numeric[:1]
        wanted += [(metric, m) for m in [*first, *numeric[-1:]]]
    names = ("variance.normalized", "loss.final", "penalty.final")
    ordered = dict.fromkeys([*wanted, *((name, None) for name in names), *every])
    return [place for place in ordered if place in every][:3]


def main_numbers(table: pd.DataFrame, where: Sequence[Place]) -> pd.DataFrame:
    """Returns the rows of the main numbers, whose metrics become their titles."""
    main, each = _main(table), []
    for metric, views in where:
        title = word(metric)
        if views == "plain":
            title += ", plain images"
        elif views is not None:
            title += ", one view" if views == 1 else f", average of {views:g} views"
        rows = select(main, {"metric": metric, "views": views})
        each.append(rows.assign(metric=title))
    return pd.concat([main.iloc[:0], *each])


def headlines(table: pd.DataFrame, settings: Json) -> list[Headline]:
    """Returns the main numbers of one run, from its rows and evaluation settings."""
    remarks = {"normalized variance": "0: invariant; 1: knows only the view"}
    constant = select(table, {"metric": "mse.constant"})["mean"]
    if len(constant):
        remarks["MSE"] = f"constant predictor: {show(constant.iloc[0])}"
    if settings.get("classes"):
        remarks["accuracy"] = f"chance: {show(1 / len(settings['classes']))}"
    found = main_numbers(table, places(table))
    texts, each = map(show, found["mean"], found["standard_error"]), list[Headline]()
    for title, text in zip(found["metric"], texts, strict=True):
        remark = [said for start, said in remarks.items() if title.startswith(start)]
        each.append(Headline(title, text, "".join(remark)))
    return each


def in_words(table: pd.DataFrame) -> list[str]:
    """Returns what averaging did, and where the effect of the penalty shows."""
    main, lines = _main(table), []
    ends = places(table)[:2]
    if [metric for metric, _ in ends] in (["accuracy"] * 2, ["mse"] * 2):
        one, many = main_numbers(table, ends)["mean"]
        (metric, first), (_, last) = ends
        start = f"Averaging {last:g} views"
        what = "plain images" if first == "plain" else "one view"
        if metric == "accuracy":
            verb = "raises" if many > one else "lowers"
            change = f"{verb} the accuracy of {what} by {abs(many - one):.3f}"
            lines.append(f"{start} {change}.")
        elif many > 0:
            lines.append(f"{start} divides the error of {what} by {one / many:.2g}.")
    if (select(main, {"metric": "penalty.final"})["mean"] > 0).any():
        lines.append(
            "What the penalty does shows beside a run with --config.penalty.weight=0: "
            "--mode=report."
        )
    return lines


def over(n: int, split: str) -> str:
    """Returns what numbers are over, such as "3 seeds, test split"."""
    return f"{n} seeds, {split} split" if n > 1 else f"one seed, {split} split"


def terminal_text(results: Json) -> str:
    """Returns the main numbers of a checked `results.json`, a line each."""
    settings = results["settings"]
    table = aggregate.over_seeds(aggregate.long_table([results["rows"]]))
    found = headlines(table, settings)
    width = max((len(one.title) for one in found), default=0)
    lines = [f"{one.title:<{width}}  {one.number}" for one in found]
    what = over(len(results["seeds"]), settings["split"])
    lines[:1] = [f"{line}  ({what})" for line in lines[:1]]
    return "\n".join([*lines, *in_words(table)]) or "no results"


class Comparison:
    """Several runs, of which the others are compared to the first."""

    def __init__(self, runs: Sequence[Run]):
        """Aggregates the runs, and pairs them by their seeds."""
        rows = aggregate.long_table([run.rows for run in runs])
        own = aggregate.over_seeds(rows)
        self.table = pd.concat([own, paper.rows(runs)], ignore_index=True)
        self.runs, self.first, self.words = runs, runs[0].name, Words(runs)
        self.pairs = aggregate.holm(aggregate.paired(rows, self.first))
        each = [places(own[own["run"] == run.name]) for run in runs]
        self._places = list(dict.fromkeys(place for found in each for place in found))
        self.main_pairs = main_numbers(self.pairs, self._places)

    def main(self) -> list[Table]:
        """Returns one row for each run and for the paper's: the main numbers."""
        splits = {run.name: run.split for run in self.runs}
        seeds = f", {self.runs[0].split} split."
        if len({*splits.values()}) > 1:
            seeds = f"; different splits, not to be compared: {tables.joined(splits)}."
        note = "Mean ± standard error over seeds" + seeds
        found = main_numbers(self.table, self._places)
        found = found.assign(seeds=found.groupby("run")["n"].transform("max"))
        index = ["run", "seeds"]
        return tables.numbers(found, self.words, index, name="comparison", note=note)

    def differences(self) -> Table:
        """Returns the paired differences of the main numbers; its file has them all."""
        found = self.main_pairs
        ends = zip(found["low"].map(show), found["high"].map(show), strict=True)
        interval = pd.Series([" to ".join(pair) for pair in ends], found.index, str)
        texts = {
            "run": found["run"],
            "number": found["metric"],
            "difference": found["mean"].map(show),
            "95 % interval": interval.where(found["low"].notna(), "one pair: none"),
            "pairs": found["n"],
        }
        note = f"Run minus {self.first}, over pairs with the same seed."
        if (tried := found["run"].nunique()) > 1:
            note += f" Intervals are corrected for {tried} runs (Holm)."
        missing = sorted({run.name for run in self.runs[1:]} - {*found["run"]})
        if missing:
            note += f" Without a pair: {', '.join(missing)}."
        frame, source = pd.DataFrame(texts), tables.tidy(self.pairs)
        table = tables.plain(frame, "differences", "Paired differences", note)
        return table._replace(source=source, words=2)

    def settings(self) -> Table:
        """Returns the keys whose values differ; those of evaluation as it was made."""
        each = {}
        for run in self.runs:
            own = {f"evaluation.{name}": value for name, value in run.settings.items()}
            made = {key: own.get(key, value) for key, value in run.config.items()}
            each[run.name] = {key: tables.joined(value) for key, value in made.items()}
        frame = pd.DataFrame(each)
        frame = frame[frame.nunique(axis=1) > 1].reset_index(names="key")
        return tables.plain(frame, "settings_that_differ", "Settings that differ")

    def text(self) -> str:
        """Returns the main numbers and their differences, for a terminal."""
        differences = self.differences()
        shown = [table for table in [*self.main(), differences] if len(table.texts)]
        return "\n\n".join([*map(tables.as_text, shown), differences.note])
