"""Assembles the page of one or more runs; writes it, its figures and its tables.

The page has no script, and its content security policy forbids loading or running
anything. All text that comes from a run is escaped.
"""

import os
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd
from etils import epath

from invariance_jax.data.limits import some
from invariance_jax.experiments.shift import unshifted_values
from invariance_jax.report import commands, pictures, style, tables
from invariance_jax.report.aggregate import in_summary, select
from invariance_jax.report.compare import Comparison, Headline, headlines, over
from invariance_jax.report.draw import Shown, figure
from invariance_jax.report.read import Run, missing_variants, read_runs
from invariance_jax.report.sections import AVERAGING, SECTIONS, Spec, section_of
from invariance_jax.report.style import Picture
from invariance_jax.report.tables import Table
from invariance_jax.report.words import is_share
from invariance_jax.runs.workdir import check_folder, read_config
from invariance_jax.runtime.files import absolute, plain_path, write_bytes, write_text
from invariance_jax.settings.schema import WITH_PROBE
from invariance_jax.types import Json


class Group(NamedTuple):
    """Parts of the page that belong together.

    Kinds are "section", "pair" (side by side if there is room), "folded" (only the
    title is shown at first), "commands" and "headlines".
    """

    kind: str
    title: str
    parts: Sequence["Part | Headline"]
    text: str = ""


Part = Table | Picture | Group | str


def write(
    workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> Path | epath.Path:
    """Writes a report and returns the path of its page; see `report.run`."""
    runs, folder = read_runs(workdirs), epath.Path(os.path.expanduser(out))
    check_folder("out", folder)
    page, mark = folder / "report.html", b"default-src 'none'; img-src data:"
    if page.exists() and mark not in page.read_bytes():  # every report has it
        raise ValueError(f"{page} is not from a report; move it, or give another out.")
    with style.looks():
        first, sections = _Report(runs).parts()
    title, subtitle = runs[0].name, _sentence(runs[0])
    if len(runs) > 1:
        subtitle = f"All others are compared to the first, {title}."
        title = f"Comparison of {len(runs)} runs"
    missing = some(missing_variants(runs))
    if missing and absolute(folder) != runs[0].path:  # not the page of one variant
        subtitle += f" The sweep has further variants, which are not shown: {missing}."
    for name in ("figures", "tables"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for part in _contents([*first, *sections]):
        # An experiment of a user's own may have any name.
        stem = re.sub(r"[^\w.-]+", "_", part.name.replace(":", "-"))[:100]
        if isinstance(part, Picture):
            write_bytes(folder / "figures" / f"{stem}.png", part.png)
        elif stem:
            _write_csv(folder, stem, part.source)
    _write_csv(folder, "results", pd.concat([run.rows for run in runs]))
    source = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    values = {"title": title, "subtitle": subtitle, "first": first}
    values["sections"] = [section for section in sections if section.parts]
    write_text(page, environment.from_string(source).render(values))
    return plain_path(page)


def _contents(parts: Sequence[Part | Headline]) -> Iterator[Table | Picture]:
    for part in parts:
        if isinstance(part, Group):
            yield from _contents(part.parts)
        elif isinstance(part, Table | Picture):
            yield part


def _write_csv(folder: epath.Path, name: str, frame: pd.DataFrame) -> None:
    text = frame.convert_dtypes().to_csv(index=False)
    write_text(folder / "tables" / f"{name}.csv", text)


class _Report:
    """The parts of the page of some runs."""

    def __init__(self, runs: Sequence[Run]):
        self.runs, self.comparison = runs, Comparison(runs)
        self.words, table = self.comparison.words, self.comparison.table
        # The paper's runs of single weights are shown beside the main numbers only.
        self.table = table[~table["run"].astype(str).str.startswith("paper, weight")]
        training = {run.name: unshifted_values(read_config(run.path)) for run in runs}
        constant = select(table, {"metric": "mse.constant"})["mean"].mean()
        targets = {tuple(run.settings.get("targets", ())) for run in runs} - {()}
        if len(targets) > 1:  # each has its own
            constant = float("nan")
        names = [run.name for run in runs]
        self.shown = Shown(names, self.words, training, constant)

    def parts(self) -> tuple[list[Part], list[Group]]:
        """Returns the first screen and the sections."""
        run, task = self.runs[0], self._downstream()
        title = "Views" if len(self.runs) == 1 else f"Views of {run.name}"
        beside = Group("pair", "", [*self._averaging(), *pictures.views(run, title)])
        if len(self.runs) > 1:
            first, embeddings = [*self._compared(), beside], list[Group]()
            downstream, details = task, self._details()
        else:
            ours = self.table[self.table["run"] == run.name]
            first = [Group("headlines", "", headlines(ours, run.settings)), beside]
            downstream, details = [*task, *pictures.quality(run)], []
            maps = pictures.embeddings(run)
            embeddings = [Group("pair", "", maps)] if maps else []
        return first, [
            Group("section", "Downstream task", downstream),
            Group("section", "Embeddings", embeddings),
            *self._experiments(),
            Group("section", "Training", self._training()),
            Group("section", "Comparison in detail", details),
            Group("section", "Settings", self._settings()),
        ]

    def _downstream(self) -> list[Part]:
        """Returns the tables of the downstream task, or why there are none."""
        found = tables.downstream(self.table, self.words)
        left_out = f"has no labels: {', '.join(WITH_PROBE)} left out."
        notes = [
            f"The data set of {run.name} {left_out}"
            for run in self.runs
            if not {"targets", "classes"} & {*run.settings}
        ]
        return [*found, *notes]

    def _averaging(self) -> list[Picture]:
        """Returns the figure of averaging; with several runs each has one curve."""
        table = self.table[in_summary(self.table)]
        if len(self.runs) > 1:
            table = select(table, dict.fromkeys(AVERAGING.curves))
        return figure(AVERAGING, table, self.shown)

    def _compared(self) -> list[Part]:
        pairs = self.comparison.main_pairs.copy()
        better = ["higher" if is_share(name) else "lower" for name in pairs["metric"]]
        pairs["metric"] += [f"\n({direction} is better)" for direction in better]
        spec = Spec(
            "differences",
            f"Paired differences to {self.comparison.first}",
            f"{self.comparison.differences().note} The line marks no difference.",
            "run",
            metrics=tuple((metric,) for metric in dict.fromkeys(pairs["metric"])),
            dots=True,
            line=0.0,
        )
        return [*self.comparison.main(), *figure(spec, pairs, self.shown)]

    def _experiments(self) -> Iterator[Group]:
        """Yields a section for every experiment that at least one run has measured."""
        is_ours = self.table["run"].isin(self.shown.names)
        measured = {*self.table[is_ours]["experiment"]}
        order = [name for name in SECTIONS if name in {*measured, "averaging"}]
        for name in order + sorted(measured - {*SECTIONS, "downstream", "training"}):
            rows = self.table[self.table["experiment"] == name]
            section, every = section_of(name, rows), list[Table]()
            if name == "averaging":  # also rows that are kept under "downstream"
                rows = self.table[in_summary(self.table) & self.table["views"].notna()]
            else:
                every = tables.every_number(rows, self.words, name, section.note)
            parts: list[Part] = []
            for spec in section.figures:
                parts += figure(spec, rows, self.shown)
            if every:
                parts.append(Group("folded", "Every number", every))
            lines = [commands.of_experiment(run, name) for run in self.runs]
            if parts:
                command = Group("commands", "", [*dict.fromkeys(lines)])
                parts.append(Group("folded", "Command", [command]))
            yield Group("section", section.title, parts, section.text)

    def _training(self) -> list[Part]:
        last = self.table[self.table["experiment"] == "training"]
        table = tables.numbers(last, self.words, ["run"], name="training")
        skipped = [
            f"{run.name}: {count} unreadable line(s) of {file} skipped."
            for run in self.runs
            for file, count in run.skipped.items()
        ]
        return [*pictures.training(self.runs), *table, *skipped]

    def _details(self) -> list[Part]:
        parts: list[Part] = [self.comparison.settings(), self.comparison.differences()]
        for number, run in enumerate(self.runs, start=1):
            drawn = [*pictures.views(run), *pictures.quality(run)]
            drawn += pictures.embeddings(run)
            suffix = f"-{number}-{run.name}"
            drawn = [picture._replace(name=picture.name + suffix) for picture in drawn]
            if drawn:
                parts.append(Group("folded", f"Pictures of {run.name}", drawn))
        return parts

    def _settings(self) -> list[Part]:
        parts: list[Part] = []
        for number, run in enumerate(self.runs, start=1):
            name = "config" + f"-{number}-{run.name}" * (len(self.runs) > 1)
            groups = [
                Group("commands", "", commands.of_run(run)),
                Group("folded", "Environment and time", [tables.facts(_facts(run))]),
                Group("folded", "Evaluation", [tables.facts(run.settings)]),
                Group("folded", "Every key", [tables.facts(run.config, name)]),
            ]
            several = len(self.runs) > 1
            parts += [Group("folded", run.name, groups)] if several else groups
        return parts


def _facts(run: Run) -> Json:
    environment, log = dict(run.saved["environment"]), run.log
    commit = environment.pop("git_commit") or "none: not run from a git checkout"
    facts = {"git commit": commit, **environment, "work directory": str(run.path)}
    facts |= run.saved["derived"]
    speed = log[log["name"] == "examples_per_second"]["value"].median()
    if pd.notna(speed):
        facts["speed"] = f"{speed:,.0f} examples per second (median)"
    if pd.notna(run.seconds):
        facts["training time"] = f"{run.seconds:,.0f} s{' per seed' * (run.n > 1)}"
    for name, entry in run.results["experiments"].items():
        facts[f"time of {name}"] = f"{entry['seconds']:,.0f} s"
    return facts


def _sentence(run: Run) -> str:
    """Returns one line: the configuration, and the seeds and split of the numbers."""
    config, weight = run.config, run.config["penalty.weight"]
    names = ", ".join(config[f"{key}.name"] for key in ("data", "encoder", "method"))
    penalty = f"penalty of weight {weight}" if weight else "no penalty"
    last, step = run.saved["derived"]["steps"], run.settings["step"]
    steps = f"{last} steps of {config['batch_size']} examples"
    steps += f", evaluated after {step}" if step != last else ""
    numbers = "Mean ± standard error over " if run.n > 1 else "Numbers of "
    return f"{names}, {penalty}, {steps}. {numbers}{over(run.n, run.split)}."
