"""The overview of a run: what was run, its main numbers, its settings."""

from typing import Any

import numpy as np

from invariance_jax.report import commands, paper
from invariance_jax.report.document import Document
from invariance_jax.report.headlines import headline_table, sentence
from invariance_jax.report.page import (
    commands_html,
    details_html,
    facts_html,
    note_html,
)
from invariance_jax.report.read import Run, flatten
from invariance_jax.report.tables import config_table

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


def overview(one: Run, document: Document, suffix: str = "") -> str:
    """Returns the HTML of the overview of a run.

    Args:
      one: the run.
      document: that takes its tables.
      suffix: added to the names of their files.
    """
    flat = flatten(one.config)
    content = note_html(sentence(one, flat))
    recorded = commands.of_run(one)
    content += commands_html(recorded, heading="Command") if recorded else ""
    content += document.tables([headline_table([one])], suffix)
    content += facts_html("Settings", _facts(one, flat))
    for log in one.logs:
        if log.skipped:
            where = f"{log.label}/metrics.jsonl" if log.label else "metrics.jsonl"
            content += note_html(f"{log.skipped} unreadable line(s) of {where} skipped")
    config = document.tables([config_table(one)], suffix)
    return content + details_html("Every configuration key", config)


def _facts(one: Run, flat: dict[str, Any]) -> list[tuple[str, str]]:
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
    return facts


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
