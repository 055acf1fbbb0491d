"""The figures and sections of the studies; their numbers: see `study_tables`."""

from collections.abc import Sequence
from functools import partial

from invariance_jax.report import paper, study_tables
from invariance_jax.report.drawing import draw
from invariance_jax.report.names import titles, with_paper
from invariance_jax.report.panels import (
    COLLAPSED,
    Curve,
    Dots,
    Interval,
    Panel,
    Spots,
    paper_curves,
)
from invariance_jax.report.read import Run
from invariance_jax.report.results import Row, Statistic
from invariance_jax.report.rows import all_rows, rows_of
from invariance_jax.report.section import Section, Shown, are_repeated, bars
from invariance_jax.report.study_tables import (
    has_collapsed,
    has_diverged,
    shown_metrics,
)
from invariance_jax.report.style import Draw

_TEXTS = {
    "penalty_weight": (
        "Study: weight of the penalty",
        "Short runs that differ in penalty.weight.",
    ),
    "directions": (
        "Study: directions",
        "Short runs that differ in the number K of directions per example and in the "
        "estimator: directional derivatives, or random sign projections (the paper).",
    ),
    "limits": (
        "Study: limits",
        "Short runs that differ in how the penalty is limited: per example or on the "
        "batch mean (the paper), with a hard or a smooth edge.",
    ),
    "normalization": (
        "Study: normalization",
        "Short runs that differ in what the change is measured against, and in whether "
        "batch statistics are differentiated (coupled) or held (example).",
    ),
    "placement": (
        "Study: placement",
        "Short runs that differ in the parameters along which, the representation at "
        "which and the views on which the penalty acts.",
    ),
    "savings": (
        "Study: savings",
        "Short runs that penalize a share of the examples, or of the steps with a "
        "weight as many times as large: a cheaper estimate of the same penalty.",
    ),
    "baselines": (
        "Study: baselines",
        "Short runs with something else in place of the penalty.",
    ),
}
"""Study -> its heading and what is compared."""


def weight_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns the numbers against the weight of the penalty; 0 is also a band."""
    found = shown_metrics(all_rows(runs, "penalty_weight"))
    panels = []
    for metric in found:
        curves: list[Curve] = []
        rings: list[tuple[float, Statistic]] = []
        for look, run in enumerate(runs):
            rows = _at_weight(run, metric)
            points = [(weight, row.values[metric]) for weight, row in rows]
            curves += [Curve(run.name, look, points, band=True)] if points else []
            gone = [(w, row.values[metric]) for w, row in rows if has_collapsed(row)]
            # The bars are those of the curve.
            rings += [(w, value._replace(standard_error=None)) for w, value in gone]
        if metric == "mse@1" and with_paper(runs):
            weights = list(paper.WEIGHTS)
            levels = {kind: list(paper.WEIGHTS.values()) for kind in paper.KINDS}
            sweep = paper_curves(weights, levels, "ResNet-18")[1]
            curves.append(sweep._replace(name="paper (ResNet-18, one seed)"))
            rings.append((0.1, Statistic(paper.WEIGHTS[0.1], None, 1)))
        curves += [Curve(COLLAPSED, COLLAPSED, rings)] if rings else []
        title, y = _titles(metric, runs)
        x = "weight of the penalty"
        panels.append(Panel(title, x, y, curves, scale="symlog"))
    return draw(panels, columns=3)


def _at_weight(run: Run, metric: str) -> list[tuple[float, Row]]:
    rows = [
        (float(row.at["weight"]), row)
        for row in rows_of(run, "penalty_weight")
        if isinstance(row.at.get("weight"), int | float) and metric in row.values
    ]
    return sorted(rows, key=lambda pair: pair[0])


def difference_figure(runs: Sequence[Run], study: str) -> Draw | None:
    """Returns the paired differences to the run without a penalty, with intervals."""
    rows = all_rows(runs, study)
    panels = []
    names = _compared(rows)
    for metric in shown_metrics(rows):
        spots = []
        for look, run in enumerate(runs):
            found = {str(row.at.get("run")): row for row in rows_of(run, study)}
            values = {
                _marked(label, rows): difference(row, metric)
                for label, row in found.items()
                if f"difference.{metric}" in row.values
            }
            spots += [Spots(run.name, look, values)] if values else []
        if spots:
            title, y = _titles(metric, runs)
            labels = [_marked(name, rows) for name in names]
            panels.append(Dots(title, f"difference of {y}", spots, labels, zero=0.0))
    return draw(panels, columns=3)


def difference(row: Row, metric: str) -> Interval:
    """Returns the paired difference of a run, with its interval if there is one."""
    mean = row.values[f"difference.{metric}"].mean
    ends = [row.values.get(f"interval.{metric}.{end}") for end in ("low", "high")]
    low, high = (mean if end is None else end.mean for end in ends)
    return Interval(mean, low, high, has_collapsed(row))


def _compared(rows: Sequence[Row]) -> list[str]:
    """Returns the labels of the runs that are compared to another one."""
    names = dict.fromkeys(
        str(row.at.get("run"))
        for row in rows
        if has_diverged(row) or any(n.startswith("difference.") for n in row.values)
    )
    return list(names)


def _marked(name: str, rows: Sequence[Row]) -> str:
    gone = any(has_diverged(row) for row in rows if row.at.get("run") == name)
    return f"{name} (diverged)" if gone else name


def _titles(metric: str, runs: Sequence[Run]) -> tuple[str, str]:
    quantity, at, views = metric.partition("@")
    title, y = titles(quantity, runs)
    if not at:
        return title, y
    kind = "plain images" if views == "plain" else f"M = {views}"
    return f"{title}, {kind}", y


def _weights(runs: Sequence[Run]) -> list[Shown]:
    beside = ""
    if with_paper(runs):
        beside = (
            " Grey: Foster et al. (2021), ResNet-18 after 50 epochs, one seed, where .1"
            " is a collapse."
        )
    caption = (
        f"Weight 0 is also a dotted line{_band(runs)}. A ring marks a representation "
        f"that collapsed.{bars(runs)}{beside}"
    )
    title, figure = "Weight of the penalty", weight_figure(runs)
    return [Shown("penalty_weight", title, caption, figure)]


def _band(runs: Sequence[Run]) -> str:
    return " with a band of its standard error" if are_repeated(runs) else ""


def _differences(runs: Sequence[Run], *, study: str) -> list[Shown]:
    ends = (
        "95 % t-interval over seeds"
        if are_repeated(runs)
        else "one seed, so no interval"
    )
    collapsed = any(map(has_collapsed, all_rows(runs, study)))
    arrow = " An arrow is a collapse that is off the scale." * collapsed
    caption = (
        "Each run less the one without a penalty (the line at 0) on the same seeds; "
        f"{ends}.{arrow}"
    )
    title, figure = "Paired differences", difference_figure(runs, study)
    return [Shown(study, title, caption, figure)]


def _study(study: str, title: str, text: str) -> Section:
    figures = partial(_differences, study=study)
    if study == "penalty_weight":
        figures = _weights
    tables = partial(study_tables.study_tables, study=study)
    more = partial(study_tables.every_number, study=study)
    return Section(title, text, figures, tables, more, brief=1, folded=False)


SECTIONS = {name: _study(name, *texts) for name, texts in _TEXTS.items()}
"""Study -> what is shown of it."""
