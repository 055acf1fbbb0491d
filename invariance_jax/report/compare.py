"""The main numbers of runs, and comparisons of all other runs to the first."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from invariance_jax.report import aggregate, paper, tables
from invariance_jax.report.aggregate import select, show
from invariance_jax.report.read import Run
from invariance_jax.report.tables import Table
from invariance_jax.report.words import Words, word
from invariance_jax.runs.results import NAMED, Value
from invariance_jax.types import Json

Place = tuple[str, Value | None]
"""A metric, and its views: M, "plain", or None if it has no views."""


class Headline(NamedTuple):
    """A main number on the first screen: its title, its value as text, a remark."""

    title: str
    number: str
    remark: str


def _main(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of the summary that have no coordinate but the views."""
    return select(table[aggregate.in_summary(table)], dict.fromkeys(NAMED))


def places(table: pd.DataFrame) -> list[Place]:
    """Returns the places of up to three main numbers of aggregated rows.

    They are the accuracy of plain images or the MSE of one view, the same metric at the
    largest M, and the normalized variance. Other numbers replace those that are absent.
    """
    main = _main(table)
    views = [None if pd.isna(m) else m for m in main["views"]]
    available: list[Place] = [*zip(main["metric"], views, strict=True)]
    preferred: list[Place] = []
    for metric in ("accuracy", "mse"):
        every = [m for name, m in available if name == metric]
        numeric = sorted(m for m in every if isinstance(m, int | float))
        first = ["plain"] if "plain" in every else numeric[:1]
        preferred += [(metric, m) for m in [*first, *numeric[-1:]]]
    names = ("variance.normalized", "loss.final", "penalty.final")
    preferred += [(name, None) for name in names]
    ordered = dict.fromkeys([*preferred, *available])
    return [place for place in ordered if place in available][:3]


def main_numbers(table: pd.DataFrame, where: Sequence[Place]) -> pd.DataFrame:
    """Returns the rows of the main numbers, with titles in the column metric."""
    main, parts = _main(table), []
    for metric, views in where:
        title = word(metric)
        if views == "plain":
            title += ", plain images"
        elif views is not None:
            title += ", one view" if views == 1 else f", average of {views:g} views"
        rows = select(main, {"metric": metric, "views": views})
        parts.append(rows.assign(metric=title))
    return pd.concat([main.iloc[:0], *parts])


def headlines(table: pd.DataFrame, settings: Json) -> list[Headline]:
    """Returns the main numbers of one run, from its rows and evaluation settings."""
    remarks = {"normalized variance": "0: invariant; 1: depends on the view only"}
    constant = select(table, {"metric": "mse.constant"})["mean"]
    if len(constant):
        remarks["MSE"] = f"constant predictor: {show(constant.iloc[0])}"
    if settings.get("classes"):
        remarks["accuracy"] = f"chance: {show(1 / len(settings['classes']))}"
    numbers = main_numbers(table, places(table))
    texts = map(show, numbers["mean"], numbers["standard_error"])
    cards = list[Headline]()
    for title, text in zip(numbers["metric"], texts, strict=True):
        remark = [note for start, note in remarks.items() if title.startswith(start)]
        cards.append(Headline(title, text, "".join(remark)))
    return cards


def in_words(table: pd.DataFrame, *, of_sweep: bool = False) -> list[str]:
    """Returns sentences on the effect of averaging and on that of the penalty.

    A sweep compares its runs itself, so a run of it gets no advice to compare.
    """
    main, lines = _main(table), []
    ends = places(table)[:2]
    means = main_numbers(table, ends)["mean"]
    metrics = [metric for metric, _ in ends]
    if metrics in (["accuracy"] * 2, ["mse"] * 2) and np.isfinite(means).all():
        (metric, first), (_, last) = ends
        single, averaged = means
        start = f"Averaging {last:g} views"
        images = "plain images" if first == "plain" else "one view"
        if metric == "accuracy" and last != 1:
            change = round(averaged - single, 3)
            verb = "raises" if change > 0 else "lowers" if change else "hardly changes"
            by = f" by {abs(change):.3f}" if change else ""
            lines.append(f"{start} {verb} the accuracy of {images}{by}.")
        elif metric == "mse" and averaged > 0:
            factor = f"{single / averaged:.2g}"
            lines.append(f"{start} divides the error of {images} by {factor}.")
    penalty = select(main, {"metric": "penalty.final"})["mean"]
    if (penalty > 0).any() and not of_sweep:
        lines.append(
            "To see the effect of the penalty, compare with a run of "
            "--config.penalty.weight=0 (--mode=report)."
        )
    return lines


def over(n: int, split: str) -> str:
    """Returns seeds and split of numbers in words, such as "3 seeds, test split"."""
    return f"{n} seeds, {split} split" if n > 1 else f"one seed, {split} split"


def terminal_text(results: Json, *, of_sweep: bool = False) -> str:
    """Returns the main numbers of a checked `results.json`, one per line."""
    settings = results["settings"]
    table = aggregate.over_seeds(aggregate.long_table([results["rows"]]))
    cards = headlines(table, settings)
    width = max((len(card.title) for card in cards), default=0)
    lines = [f"{card.title:<{width}}  {card.number}" for card in cards]
    seeds = over(len(results["seeds"]), settings["split"])
    lines[:1] = [f"{line}  ({seeds})" for line in lines[:1]]
    return "\n".join([*lines, *in_words(table, of_sweep=of_sweep)]) or "no results"


class Comparison:
    """A comparison of several runs: each other run is compared to the first."""

    def __init__(self, runs: Sequence[Run]):
        """Aggregates the runs; pairs by seed those of the first's data."""
        rows = aggregate.long_table([run.rows for run in runs])
        ours = aggregate.over_seeds(rows)
        self.table = pd.concat([ours, paper.rows(runs)], ignore_index=True)
        self.runs, self.first, self.words = runs, runs[0].name, Words(runs)
        alike = [run.name for run in runs if run.data == runs[0].data]
        pairs = aggregate.paired(rows[rows["run"].isin(alike)], self.first)
        self.pairs = aggregate.holm(pairs)
        by_run = [places(ours[ours["run"] == run.name]) for run in runs]
        self._places = list(dict.fromkeys(itertools.chain(*by_run)))
        self.main_pairs = main_numbers(self.pairs, self._places)

    def main(self) -> list[Table]:
        """Returns the main numbers: a row for each run and for each of the paper's."""
        note = f"Mean ± standard error over seeds, {self.runs[0].split} split."
        runs = {
            run.data: [r.name for r in self.runs if r.data == run.data]
            for run in self.runs
        }
        if len(runs) > 1:
            each = "; ".join(
                f"{', '.join(names)}: {data}" for data, names in runs.items()
            )
            note = "Mean ± standard error over seeds. Compare only numbers of the same "
            note += f"data, targets and split: {each}."
        rows = main_numbers(self.table, self._places)
        rows = rows.assign(seeds=rows.groupby("run")["n"].transform("max"))
        index = ["run", "seeds"]
        return tables.numbers(rows, self.words, index, name="comparison", note=note)

    def differences(self) -> Table:
        """Returns paired differences of the main numbers; the file has all numbers."""
        pairs = self.main_pairs
        ends = zip(pairs["low"].map(show), pairs["high"].map(show), strict=True)
        interval = pd.Series([" to ".join(pair) for pair in ends], pairs.index, str)
        interval = interval.where(pairs["low"].notna(), "not finite")
        texts = {
            "run": pairs["run"],
            "number": pairs["metric"],
            "difference": pairs["mean"].map(show),
            "95 % interval": interval.mask(pairs["n"] == 1, "one pair: none"),
            "pairs": pairs["n"],
        }
        note = f"Run minus {self.first}, over pairs with the same seed."
        # `holm` corrects only for the runs that have an interval of the same number.
        counts = pairs["metric"][pairs["low"].notna()].value_counts()
        if (most := max(counts, default=0)) > 1:
            note += f" Intervals are corrected for up to {most} runs (Holm)."
        unpaired = sorted({run.name for run in self.runs[1:]} - {*pairs["run"]})
        if unpaired:
            why = "other seeds, data, targets or split"
            note += f" Runs without a pair ({why}): {', '.join(unpaired)}."
        frame, source = pd.DataFrame(texts), tables.tidy(self.pairs)
        table = tables.plain(frame, "differences", "Paired differences", note)
        return table._replace(source=source, words=2)

    def settings(self) -> Table:
        """Returns the keys whose values differ; evaluation keys as last evaluated."""
        columns = {}
        for run in self.runs:
            evaluated = {f"evaluation.{key}": v for key, v in run.settings.items()}
            keys = run.config | evaluated
            columns[run.name] = {key: tables.joined(v) for key, v in keys.items()}
        frame = pd.DataFrame(columns)
        frame = frame[frame.nunique(axis=1) > 1].reset_index(names="key")
        return tables.plain(frame, "settings_that_differ", "Settings that differ")

    def text(self) -> str:
        """Returns the main numbers and their paired differences, for a terminal."""
        shown = [*self.main(), self.differences()]
        texts = [(tables.as_text(t) if len(t.texts) else "", t.note) for t in shown]
        return "\n\n".join(filter(None, itertools.chain(*texts)))
