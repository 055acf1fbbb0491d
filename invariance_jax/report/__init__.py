"""Draws the report of one finished run, or the comparison of several.

`run` writes `report.html` (one file that a browser opens without a network), the same
figures as PNG and SVG, and every table as CSV. `table` is the text that a terminal
shows at the end of a run. Nothing is measured here: numbers come from `results.json`.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from invariance_jax.report import commands, grids, samples, training
from invariance_jax.report.document import Document
from invariance_jax.report.experiments import sections
from invariance_jax.report.headlines import headline_table
from invariance_jax.report.overview import overview
from invariance_jax.report.page import (
    commands_html,
    details_html,
    note_html,
    page,
)
from invariance_jax.report.read import Run, read_runs
from invariance_jax.report.section import Section, Shown
from invariance_jax.report.tables import (
    comparison_table,
    difference_table,
    result_tables,
)
from invariance_jax.report.terminal import table
from invariance_jax.runtime.files import plain_path

__all__ = ["run", "table"]

_Part = tuple[str, str]
"""Heading and HTML of a section of the page."""


def run(
    workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> Path | epath.Path:
    """Returns the path of the report that it wrote, `report.html` in `out`.

    Writes `report.html`, `figures/*.png`, `figures/*.svg` and `tables/*.csv` and no
    other file; all work directories are read and checked before the first is written.

    Args:
      workdirs: finished work directories; several are compared.
      out: the directory to write to, made if needed; may be a work directory.

    Raises:
      ValueError: if a work directory is missing, unfinished, given twice or of a newer
        format, or `out` is a file.
    """
    runs = read_runs(workdirs)
    out = epath.Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out must be a directory, found the file {out}")
    document = Document()
    parts = _first(runs, document)
    for name, section in sections(runs).items():
        parts.append((section.title, _experiment(runs, name, section, document)))
    parts.append(("Training", _training(runs, document)))
    for one, slug in zip(runs, _slugs(runs), strict=True):
        parts += _own(one, f"-{slug}" if len(runs) > 1 else "", document)
    title = runs[0].name if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    subtitle = "Contrastive representation learning with invariance_jax"
    document.write(out, page(title, subtitle, parts))
    return plain_path(out / "report.html")


def _slugs(runs: Sequence[Run]) -> list[str]:
    slugs: list[str] = []
    for one in runs:
        stem = slug = re.sub(r"[^\w.-]+", "_", one.name)
        number = 1
        while slug.casefold() in [other.casefold() for other in slugs]:
            number += 1
            slug = f"{stem}_{number}"
        slugs.append(slug)
    return slugs


def _first(runs: Sequence[Run], document: Document) -> list[_Part]:
    """Returns the overview and the downstream tasks."""
    beside = grids.paper_table(runs)
    papers = [beside] if beside else []
    if len(runs) == 1:
        tasks = document.tables([*result_tables(runs[0].results), *papers])
        return [("Overview", overview(runs[0], document)), ("Downstream tasks", tasks)]
    tables = [headline_table(runs), difference_table(runs)]
    return [
        ("Overview", document.tables(tables)),
        ("Downstream tasks", document.tables([comparison_table(runs), *papers])),
    ]


def _experiment(
    runs: Sequence[Run], name: str, section: Section, document: Document
) -> str:
    """Returns what the page shows of an experiment: figures, tables, commands."""
    content = note_html(section.text) if section.text else ""
    content += document.figures(section.figures(runs))
    content += document.tables(section.tables(runs))
    more = document.tables(section.more(runs))
    if more and section.folded:
        content += details_html("Every number", more)
    elif more:
        content += note_html(f"Every number: tables/{name}-all.csv")
    made = [one for one in runs if name in one.results.experiments]
    found = [commands.of_experiment(one, name) for one in made]
    lines = list(dict.fromkeys(command for command in found if command))
    return content + (details_html("Command", commands_html(lines)) if lines else "")


def _training(runs: Sequence[Run], document: Document) -> str:
    several = any(one.results.n > 1 for one in runs)
    caption = "Thin: each seed; thick: their mean." if several else "One seed per run."
    figure = training.training_figure(runs)
    shown = [Shown("training", "Training curves", caption, figure)]
    return document.figures(shown) or note_html("No training log found.")


def _own(one: Run, suffix: str, document: Document) -> list[_Part]:
    """Returns the sections of one run: samples, and its tables if it is compared."""
    first = " First seed." if one.results.n > 1 else ""
    views = Shown(
        "views",
        "Example views",
        "Each row is one test example under random draws of the transformation.",
        samples.views_figure(one),
    )
    predictions = Shown(
        "predictions",
        "Predicted against true values",
        "Test examples, one panel per task; the line is a perfect prediction." + first,
        samples.predictions_figure(one),
    )
    confusion = Shown(
        "confusion",
        "Predicted against true classes",
        "Share of each true class of the test split, in percent; features averaged "
        "over the largest M." + first,
        samples.confusion_figure(one),
    )
    if suffix:
        content = overview(one, document, suffix)
        content += document.tables(result_tables(one.results), suffix)
        content += document.figures([views, predictions, confusion], suffix)
        return [(one.name, content)]
    found = [
        ("Views", document.figures([views])),
        ("Predictions", document.figures([predictions, confusion])),
    ]
    return [part for part in found if part[1]]
