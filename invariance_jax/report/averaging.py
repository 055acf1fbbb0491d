"""The figures of feature averaging: error or accuracy against averaged views."""

from collections.abc import Sequence

from invariance_jax.report import paper
from invariance_jax.report.drawing import draw
from invariance_jax.report.names import image_set, titles, with_paper
from invariance_jax.report.panels import Curve, Mark, Panel, paper_curves
from invariance_jax.report.read import Run
from invariance_jax.report.results import Statistic
from invariance_jax.report.style import Draw

_METRICS = ("accuracy", "cross_entropy")
_PARTS = {
    "": "features, all views",
    "crop": "features, crop and flip only",
    "color": "features, colour only",
    "ensemble": "predictions, all views",
    "pixels": "raw pixels",
    "untrained": "untrained encoder",
    "selected": "features, l2 chosen",
}


def averaging_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns the errors against the number M of averaged views, one panel per task.

    The mean over the tasks comes first, of one run with averaged predictions and the
    baselines; what the paper measured is grey where a run saw the same images.
    """
    measured = _measured(runs)
    targets = dict.fromkeys(name for run in runs for name in run.results.targets)
    metrics = ["mse", *(f"mse.{target}" for target in targets)]
    panels = []
    for metric in metrics:
        if metric not in measured:
            continue
        parts = _PARTS if metric == "mse" and len(runs) == 1 else ("",)
        curves = _curves(runs, metric, parts)
        if with_paper(runs):
            curves += _paper_errors(metric.partition(".")[2])
        panels.append(_panel(metric, runs, curves))
    return draw(panels, columns=3)


def accuracy_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns accuracy and cross-entropy against the number M of averaged views.

    One run is shown with every family of views, several with the whole transformation
    only; the level of plain images is a horizontal line in the run's colour.
    """
    measured = _measured(runs)
    images = image_set(runs)
    panels = []
    for metric in _METRICS:
        if metric not in measured:
            continue
        curves = _curves(runs, metric, _PARTS if len(runs) == 1 else ("",))
        marks = _plain(runs, metric)
        if images and metric == "accuracy":
            curves += paper_curves(*paper.ACCURACY[images], "ResNet-50")
            marks += [
                Mark("y", found["accuracy@plain"].mean, "plain images (dotted)", kind)
                for kind, found in paper.IMAGES[images].items()
            ]
        panels.append(_panel(metric, runs, curves)._replace(marks=marks))
    return draw(panels, columns=2, height=3.2)


def _measured(runs: Sequence[Run]) -> set[str]:
    return {name.split("@")[0] for run in runs for name in run.results.summary}


def _panel(metric: str, runs: Sequence[Run], curves: Sequence[Curve]) -> Panel:
    title, y = titles(metric, runs)
    bounded = metric == "accuracy"
    return Panel(
        title,
        "M, averaged views",
        y,
        curves,
        scale="log",
        ticks=True,
        bounded=bounded,
    )


def _curves(runs: Sequence[Run], metric: str, parts: Sequence[str]) -> list[Curve]:
    curves = []
    for place, (run, part) in enumerate((run, part) for run in runs for part in parts):
        points = sweep(run, f"{metric}.{part}" if part else metric)
        name = _PARTS[part] if len(runs) == 1 else run.name
        # There are fewer looks than parts, but no run has all of them.
        look = len(curves) if len(runs) == 1 else place
        curves += [Curve(name, look, points)] if points else []
    return curves


def sweep(run: Run, quantity: str) -> list[tuple[float, Statistic]]:
    """Returns (M, number), by M, of a quantity of the summary.

    Args:
      run: the run that may have measured it.
      quantity: the part before the `@` of its names.
    """
    found = {
        float(views): statistic
        for name, statistic in run.results.summary.items()
        for measured, _, views in [name.partition("@")]
        if measured == quantity and views.isdigit()
    }
    return sorted(found.items())


def _plain(runs: Sequence[Run], metric: str) -> list[Mark]:
    levels = [run.results.summary.get(f"{metric}@plain") for run in runs]
    return [
        Mark("y", level.mean, "plain images (dotted)", look)
        for look, level in enumerate(levels)
        if level
    ]


def _paper_errors(target: str) -> list[Curve]:
    if not target:
        return paper_curves(paper.NUM_VIEWS, paper.MEAN, "ResNet-18")
    if target not in paper.TARGETS:
        return []
    single = {kind: (paper.SINGLE[kind][target],) for kind in paper.KINDS}
    return paper_curves((1,), single, "ResNet-18")
