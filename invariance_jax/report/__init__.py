"""Draws the report of one finished run, or the comparison of several.

`run` writes `report.html` (one file that a browser opens without a network), the same
figures as PNG and SVG, and every table as CSV. `table` is the text that a terminal
shows at the end of a run. Nothing is measured here: numbers come from `results.json`.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from invariance_jax.report import classification, figures, paper, samples
from invariance_jax.report.page import (
    command_html,
    details_html,
    facts_html,
    note_html,
    page,
    picture_html,
    table_html,
)
from invariance_jax.report.read import Run, flatten, read_runs
from invariance_jax.report.style import Draw, Picture, render
from invariance_jax.report.tables import (
    Table,
    comparison_table,
    config_table,
    difference_table,
    result_tables,
    table,
    to_csv,
)
from invariance_jax.training.files import plain_path

__all__ = ["run", "table"]

_HEADLINE = (
    "data.name",
    "data.train_examples",
    "augmentation.differentiate",
    "encoder.name",
    "encoder.width",
    "encoder.depth",
    "steps",
    "epochs",
    "batch_size",
    "temperature",
    "penalty.weight",
    "penalty.normalization",
    "penalty.directions",
    "penalty.example_limit",
    "penalty.batch_limit",
    "penalty.warmup_steps",
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.schedule",
    "batchnorm.group_size",
    "precision",
    "seed",
    "seeds",
)

_PAPER = (
    " Grey: Foster et al. (2021), ResNet-18, 3 seeds. Their linear regression is 500 "
    "steps of L-BFGS and may not have converged, the one here is solved exactly, so "
    "part of a difference can come from the probe."
)


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
    pictures: list[Picture] = []
    tables: dict[str, Table] = {}
    sections = _shared_sections(runs, pictures, tables)
    for one, slug in zip(runs, _slugs(runs), strict=True):
        sections += _own_sections(one, slug, len(runs) > 1, pictures, tables)
    title = runs[0].name if len(runs) == 1 else f"Comparison of {len(runs)} runs"
    subtitle = "Contrastive representation learning with invariance_jax"
    _write(out, page(title, subtitle, sections), pictures, tables)
    return plain_path(out / "report.html")


def _write(
    out: epath.Path, html: str, pictures: Sequence[Picture], tables: dict[str, Table]
) -> None:
    for folder in ("figures", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (out / "figures" / f"{picture.name}.png").write_bytes(picture.light)
        (out / "figures" / f"{picture.name}.svg").write_bytes(picture.svg)
    for name, content in tables.items():
        path = out / "tables" / f"{name}.csv"
        path.write_text(to_csv(content))
    (out / "report.html").write_text(html)


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


def _picture(
    name: str, title: str, caption: str, draw: Draw | None, into: list[Picture]
) -> str:
    if draw is None:
        return ""
    into.append(render(name, title, caption, draw))
    return picture_html(into[-1])


def _tables(contents: Sequence[Table], slug: str, into: dict[str, Table]) -> str:
    into.update({content.name + slug: content for content in contents})
    return "".join(map(table_html, contents))


def _shared_sections(
    runs: Sequence[Run], pictures: list[Picture], tables: dict[str, Table]
) -> list[tuple[str, str]]:
    """Returns the sections that hold every run: comparison, sweep, training."""
    sections = []
    if len(runs) > 1:
        compared = [comparison_table(runs)]
        differences = difference_table(runs)
        compared += [differences] if differences.rows else []
        sections.append(("Comparison", _tables(compared, "", tables)))
    else:
        sections.append(("Overview", _overview(runs[0], "", tables)))
        results = _tables(result_tables(runs[0].results), "", tables)
        sections.append(("Results", results))
    averaging = _averaging(runs, pictures)
    several = any(one.results.n > 1 for one in runs)
    caption = "Thin: each seed; thick: their mean." if several else "One seed per run."
    training = _picture(
        "training",
        "Training curves",
        caption,
        figures.training_figure(runs),
        pictures,
    )
    sections += [("Feature averaging", averaging)] if averaging else []
    return sections + [("Training", training or note_html("No training log found."))]


def _averaging(runs: Sequence[Run], pictures: list[Picture]) -> str:
    """Returns the figures of error and accuracy against averaged views."""
    several = any(one.results.n > 1 for one in runs)
    with_paper = any(paper.is_comparable(flatten(one.config)) for one in runs)
    caption = "Error of a linear regression on features averaged over M views."
    caption += " Bars: standard error over seeds." if several else ""
    errors = _picture(
        "averaging",
        "Error against the number of averaged views",
        caption + (_PAPER if with_paper else ""),
        figures.averaging_figure(runs),
        pictures,
    )
    accuracy = _picture(
        "accuracy",
        "Accuracy against the number of averaged views",
        "Logistic regression on the average of M views, or the average of its "
        "predictions." + (" Bars: standard error over seeds." if several else ""),
        classification.accuracy_figure(runs),
        pictures,
    )
    return errors + accuracy


def _own_sections(
    one: Run,
    slug: str,
    compared: bool,
    pictures: list[Picture],
    tables: dict[str, Table],
) -> list[tuple[str, str]]:
    """Returns the sections of one run: samples, and its tables if it is compared."""
    suffix = f"-{slug}" if compared else ""
    views = _picture(
        f"views{suffix}",
        "Example views",
        "Each row is one test example under random draws of the transformation.",
        samples.views_figure(one),
        pictures,
    )
    first = " First seed." if one.results.n > 1 else ""
    predictions = _picture(
        f"predictions{suffix}",
        "Predicted against true values",
        "Test examples, one panel per task; the line is a perfect prediction." + first,
        samples.predictions_figure(one),
        pictures,
    )
    predictions += _picture(
        f"confusion{suffix}",
        "Predicted against true classes",
        "Share of each true class of the test split, in percent; features averaged "
        "over the largest M." + first,
        classification.confusion_figure(one),
        pictures,
    )
    if compared:
        content = _overview(one, suffix, tables)
        content += _tables(result_tables(one.results), suffix, tables)
        return [(one.name, content + views + predictions)]
    found = [("Views", views), ("Predictions", predictions)]
    return [section for section in found if section[1]]


def _overview(one: Run, suffix: str, tables: dict[str, Table]) -> str:
    flat = flatten(one.config)
    if flat.get("encoder.name") != "mlp":
        # Only the MLP reads them.
        flat = {**flat, "encoder.width": None, "encoder.depth": None}
    if paper.is_spirograph(flat):
        flat = {**flat, "augmentation.differentiate": None}
    facts = [
        (key, _joined(flat[key])) for key in _HEADLINE if flat.get(key) is not None
    ]
    facts += [(f"{key} (derived)", _joined(v)) for key, v in one.derived.items()]
    facts += _speed(one)
    settings = {k: v for k, v in one.results.settings.items() if k != "num_views"}
    if settings:
        facts.append(("evaluation", _joined(settings)))
    commit = one.environment.get("git_commit")
    facts.append(("git commit", str(commit or "none: not run from a git checkout")))
    facts += [
        (key, _joined(value))
        for key, value in one.environment.items()
        if key != "git_commit"
    ]
    facts.append(("work directory", str(one.path)))
    content = command_html(one.command) if one.command else ""
    content += facts_html(facts)
    for log in one.logs:
        if log.skipped:
            where = f"{log.label}/metrics.jsonl" if log.label else "metrics.jsonl"
            content += note_html(f"{log.skipped} unreadable line(s) of {where} skipped")
    config = _tables([config_table(one)], suffix, tables)
    return content + details_html("Every configuration key", config)


def _speed(one: Run) -> list[tuple[str, str]]:
    facts = []
    speeds = [log.curves.get("examples_per_second") for log in one.logs]
    values = [float(np.median(curve[1])) for curve in speeds if curve]
    if values:
        facts.append(("speed", f"{np.mean(values):,.0f} examples per second (median)"))
    times = [log.curves.get("seconds") for log in one.logs]
    ends = [float(curve[1][-1]) for curve in times if curve]
    if ends:
        each = " per seed" if len(ends) > 1 else ""
        facts.append(("training time", f"{np.mean(ends):,.0f} s{each}"))
    return facts


def _joined(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_joined(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        texts = [_joined(entry) for entry in value]
        counts = {text: texts.count(text) for text in texts}
        return ", ".join(f"{n} x {t}" if n > 1 else t for t, n in counts.items())
    return str(value)
