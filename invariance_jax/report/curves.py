"""The figures of the experiments on a trained encoder.

Each function takes runs and returns what is drawn of them, None where no run has
measured it.
"""

from collections.abc import Mapping, Sequence

from invariance_jax.report import paper
from invariance_jax.report.drawing import draw
from invariance_jax.report.names import (
    image_set,
    titles,
    with_paper,
    with_unit,
)
from invariance_jax.report.panels import (
    Curve,
    Dots,
    Mark,
    Panel,
    Spots,
    interval,
    paper_curves,
)
from invariance_jax.report.read import Run, flatten
from invariance_jax.report.results import Value
from invariance_jax.report.rows import all_rows, distinct, metrics, points, rows_of
from invariance_jax.report.style import Draw

_HOW = {
    "move": ("shift of {}", 0.0),
    "widen": ("width of the law of {}, times", 1.0),
    "strength": ("strength of the colour jitter", None),
}

_LINEARIZATION = (
    ("relative_error", "squared error over squared change", "relative error"),
    ("ratio", "squared first-order over true change", "ratio"),
    ("cosine", "cosine of the two changes", "cosine"),
)
_TOP_SHARE = "top_share", "largest 1 % of squared first-order changes", "share of sum"


def parameters_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns the normalized variance with one parameter redrawn, of n(h) and of h."""
    panels = []
    for of in ("n(h)", "h"):
        at = {"table": "parameters", "of": of}
        found = _dots(runs, "invariance", at, "parameter", "normalized")
        title, x = f"variance of {of} over views", "within / total variance"
        panels += [Dots(title, x, *found, log=True)] if found else []
    return draw(panels, columns=2)


def checkpoints_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns the normalized variance over the checkpoints, if there are several."""
    panels = []
    for of in ("n(h)", "h"):
        at = {"table": "checkpoints", "of": of}
        curves = _of_runs(runs, "invariance", at, "step", "normalized")
        if any(len(curve.points) > 1 for curve in curves):
            title, y = f"variance of {of} over views", "within / total variance"
            panels.append(Panel(title, "training step", y, curves))
    return draw(panels, columns=2)


def linearization_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns how good the first-order change is, against the length of the step."""
    panels = []
    for metric, title, y in _LINEARIZATION:
        at = {"parameters": "all"}
        curves = _of_runs(runs, "linearization", at, "step", metric)
        if len(runs) == 1:  # it has a name only beside the median
            name = "mean" if metric == "ratio" else ""
            curves = [curve._replace(name=name) for curve in curves]
        if metric == "ratio":
            medians = _of_runs(runs, "linearization", at, "step", "median_ratio")
            curves += [_called(curve, "median", runs, hollow=True) for curve in medians]
        if curves:
            x, bounded = "step, share of the way to another draw", metric == "cosine"
            mark = Mark("y", 1.0, "")
            panels.append(
                Panel(title, x, y, curves, [mark], "log", True, bounded=bounded)
            )
    return draw(panels, columns=3)


def _called(
    curve: Curve, name: str, runs: Sequence[Run], *, hollow: bool = False
) -> Curve:
    """Returns one of several curves of a run, with a name of its own."""
    name = f"{curve.name}, {name}" if len(runs) > 1 else name
    return curve._replace(name=name, hollow=hollow)


def linearization_parameters_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns the same at the full step, along each parameter alone.

    Beside it the share of the largest changes, which no length of the step alters.
    """
    steps = distinct(all_rows(runs, "linearization"), "step")
    panels = []
    if steps:
        at = {"step": max(step for (step,) in steps)}
        for metric, title, x in (*_LINEARIZATION, _TOP_SHARE):
            found = _dots(runs, "linearization", at, "parameters", metric)
            if found and len(found[1]) > 1:
                log, zero = metric != "cosine", None if metric == "top_share" else 1.0
                panels.append(Dots(title, x, *found, zero=zero, log=log))
    return draw(panels, columns=2)


def nuisance_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns R² of each parameter of a view, as a linear probe predicts it."""
    found = _dots(runs, "nuisance_prediction", {}, "parameter", "r2")
    if not found:
        return None
    return draw([Dots("", "R² on test views", *found, zero=0.0)], columns=1)


def shift_figure(runs: Sequence[Run], *, by_task: bool = False) -> Draw | None:
    """Returns the quality against each shift, one row of panels per M.

    Args:
      runs: those that are shown.
      by_task: whether each regression target has its own panel; else their mean.
    """
    rows = all_rows(runs, "shift")
    found = _shown(metrics(rows), by_task=by_task)
    panels = []
    for (views,) in distinct(rows, "views")[: 1 if by_task else None]:
        for what, how in distinct(rows, "parameter", "how"):
            at = {"parameter": what, "how": how, "views": views}
            each = [_shift_panel(runs, at, metric) for metric in found]
            panels += [panel for panel in each if panel.curves]
    columns = len(found) * (1 if by_task else len(distinct(rows, "parameter", "how")))
    return draw(panels, columns=columns if columns <= 4 else len(found), height=2.4)


def _shown(measured: Sequence[str], *, by_task: bool) -> list[str]:
    if by_task:
        return [name for name in measured if name.startswith("mse.")]
    return [name for name in ("mse", "accuracy", "cross_entropy") if name in measured]


def _shift_panel(runs: Sequence[Run], at: Mapping[str, Value], metric: str) -> Panel:
    curves = []
    for head in ("refitted", "fixed"):
        found = _of_runs(runs, "shift", {**at, "head": head}, "shift", metric)
        hollow = head == "fixed"
        curves += [_called(c, f"{head} head", runs, hollow=hollow) for c in found]
    what, how, views = str(at["parameter"]), str(at["how"]), at["views"]
    text, level = _HOW.get(how, (f"{how} of {{}}", None))
    if how == "strength":
        level = _strength(runs)
    marks = [] if level is None else [Mark("x", level, "law of the training")]
    curves += _paper_shift(runs, what, how) if (views, metric) == (1, "mse") else []
    if images := image_set(runs):
        paired = (views, metric, how) == (1, "accuracy", "strength")
        curves += paper_curves(*paper.STRENGTHS[images], "ResNet-50") if paired else []
    title, y = titles(metric, runs)
    return Panel(
        f"{title}, M = {views}",
        text.format(with_unit(what, runs) if how == "move" else what),
        y,
        curves,
        [*marks, *_constant(runs, curves, metric)],
        ticks=len({x for curve in curves for x, _ in curve.points}) <= 5,
        bounded=metric == "accuracy",
        group=f"{metric}, {views}",
    )


def _strength(runs: Sequence[Run]) -> float | None:
    found = {flatten(run.config).get("augmentation.strength") for run in runs}
    return float(found.pop()) if len(found) == 1 and None not in found else None


def _constant(runs: Sequence[Run], curves: Sequence[Curve], metric: str) -> list[Mark]:
    """Returns the level of the constant predictor if some error comes near it."""
    level = runs[0].results.summary.get("mse.constant")
    largest = max((one.mean for c in curves for _, one in c.points), default=0.0)
    if metric != "mse" or level is None or largest < 0.3 * level.mean:
        return []
    return [Mark("y", level.mean, "constant predictor")]


def _paper_shift(runs: Sequence[Run], what: str, how: str) -> list[Curve]:
    if how != "move" or what not in paper.SHIFTS or not with_paper(runs):
        return []
    return paper_curves(*paper.SHIFTS[what], "ResNet-18")


def fractions_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns the quality of the probe against the share of labels that it sees."""
    rows = all_rows(runs, "label_fraction")
    kinds = [views for (views,) in distinct(rows, "views")]
    found = _shown(metrics(rows), by_task=False) + _shown(metrics(rows), by_task=True)
    panels = []
    for metric in found:
        curves = []
        for number, views in enumerate(kinds):
            text = "plain images" if views == "plain" else f"M = {views}"
            at = {"views": views}
            for curve in _of_runs(runs, "label_fraction", at, "fraction", metric):
                hollow = number == 0 and len(kinds) > 1
                curves.append(_called(curve, text, runs, hollow=hollow))
        title, y = titles(metric, runs)
        x, bounded = "share of the labels", metric == "accuracy"
        panels.append(Panel(title, x, y, curves, (), "log", True, bounded=bounded))
    return draw(panels, columns=3 if len(panels) > 2 else 2)


def _of_runs(
    runs: Sequence[Run], experiment: str, at: Mapping[str, Value], x: str, metric: str
) -> list[Curve]:
    """Returns a curve per run that has measured it."""
    each = [points(rows_of(run, experiment, **at), x, metric) for run in runs]
    return [
        Curve(run.name, look, found)
        for look, (run, found) in enumerate(zip(runs, each, strict=True))
        if found
    ]


def _dots(
    runs: Sequence[Run], experiment: str, at: Mapping[str, Value], of: str, metric: str
) -> tuple[list[Spots], list[str]] | None:
    """Returns the dots of all runs, and the categories: the values of a coordinate."""
    spots = []
    for look, run in enumerate(runs):
        rows = rows_of(run, experiment, **at)
        values = {
            str(row.at[of]): interval(row.values[metric])
            for row in rows
            if of in row.at and metric in row.values
        }
        spots += [Spots(run.name, look, values)] if values else []
    names = dict.fromkeys(name for one in spots for name in one.values)
    return (spots, list(names)) if spots else None
