"""The figures that compare runs: training curves, error against averaged views.

Each `*_figure` takes runs and returns a function of the theme, or None where the runs
do not hold what it shows.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from invariance_jax.report import paper
from invariance_jax.report.read import Run, flatten
from invariance_jax.report.style import (
    Draw,
    Theme,
    label,
    line_style,
    outside_legend,
    subplots,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (
    ("loss", "loss", "training loss"),
    ("penalty", "penalty", "gradient penalty"),
    ("probe_mse", "mean squared error", "online probe, validation"),
    ("probe_accuracy", "accuracy", "online probe, validation"),
    ("variance_normalized", "within / total", "normalized variance of n(h)"),
)


def training_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns the training curves of all runs: each seed thin, their mean thick."""
    logged = {name for run in runs for log in run.logs for name in log.curves}
    panels = [panel for panel in _PANELS if panel[0] in logged]
    return partial(_draw_training, runs, panels) if panels else None


def _draw_training(
    runs: Sequence[Run], panels: Sequence[tuple[str, str, str]], theme: Theme
) -> "Figure":
    figure, grid = subplots(len(panels), 2, (4.8, 2.5))
    for axes, (name, unit, title) in zip(grid, panels, strict=True):
        for index, run in enumerate(runs):
            curves = [log.curves[name] for log in run.logs if name in log.curves]
            _draw_curves(axes, curves, line_style(index, theme))
        axes.set(title=title, xlabel="step", ylabel=unit)
        values = [line.get_ydata() for line in axes.lines]
        if name not in ("loss", "probe_accuracy") and _is_positive(values):
            axes.set_yscale("log")
        if not values:
            axes.set_visible(False)
    _legend(figure, runs, theme)
    return figure


def _draw_curves(
    axes: "Axes",
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    style: dict[str, Any],
) -> None:
    if not curves:
        return
    marker = "." if max(len(steps) for steps, _ in curves) < 3 else None
    if len(curves) > 1:
        for steps, values in curves:
            axes.plot(steps, values, color=style["color"], linewidth=0.7, alpha=0.4)
    common = set.intersection(*(set(steps.tolist()) for steps, _ in curves))
    if common:
        rows = [v[np.isin(steps, list(common))] for steps, v in curves]
        mean = np.mean(rows, axis=0)
        axes.plot(sorted(common), mean, **style, marker=marker)


def averaging_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns the errors against the number M of averaged views, one panel per task.

    The mean over the tasks comes first; error bars are standard errors over seeds; what
    the paper measured is drawn in grey where a run saw the same images.
    """
    measured = {
        name.split("@")[0]
        for run in runs
        for name in run.results.summary
        if name.partition("@")[2].isdigit()
    }
    targets = dict.fromkeys(name for run in runs for name in run.results.targets)
    panels = ["mse", *(f"mse.{target}" for target in targets)]
    panels = [panel for panel in panels if panel in measured]
    return partial(_draw_averaging, runs, panels) if panels else None


def _draw_averaging(
    runs: Sequence[Run], panels: Sequence[str], theme: Theme
) -> "Figure":
    columns = min(3, len(panels))
    figure, grid = subplots(len(panels), columns, (9.6 / columns, 2.7))
    with_paper = any(paper.is_comparable(flatten(run.config)) for run in runs)
    spirograph = any(paper.is_spirograph(flatten(run.config)) for run in runs)
    for axes, panel in zip(grid, panels, strict=True):
        ticks: set[int] = set()
        for index, run in enumerate(runs):
            ticks |= draw_sweep(axes, run, panel, line_style(index, theme, marker=True))
        target = panel.partition(".")[2]
        if with_paper and target in ("", *paper.TARGETS):
            ticks |= _draw_paper(axes, panel, theme)
        unit = paper.UNITS.get(target) if spirograph else None
        axes.set_title(label(target) if target else "mean over the tasks")
        axes.set_xlabel("M, averaged views")
        axes.set_ylabel(f"MSE, ({unit})²" if unit else "mean squared error")
        _log_axes(axes, sorted(ticks))
    _legend(figure, runs, theme, with_paper=with_paper, marker=True)
    return figure


def draw_sweep(
    axes: "Axes", run: Run, quantity: str, style: dict[str, Any]
) -> set[int]:
    """Draws a quantity against the number M of averaged views.

    Args:
      axes: where it is drawn.
      run: the run that may have measured it.
      quantity: the part before the `@` of its names in the summary.
      style: of the line.

    Returns:
      The values of M; empty if the run has not measured the quantity.
    """
    found = {
        int(views): statistic
        for name, statistic in run.results.summary.items()
        for measured, _, views in [name.partition("@")]
        if measured == quantity and views.isdigit()
    }
    if not found:
        return set()
    views = sorted(found)
    errors = [found[m].standard_error or 0.0 for m in views]
    means = [found[m].mean for m in views]
    axes.errorbar(
        views, means, yerr=errors if any(errors) else None, capsize=2.5, **style
    )
    return set(views)


def _draw_paper(axes: "Axes", panel: str, theme: Theme) -> set[int]:
    target = panel.partition(".")[2]
    for kind, style in _paper_lines(theme).items():
        if target:
            axes.plot([1], [paper.SINGLE[kind][target]], **style)
        else:
            axes.plot(paper.NUM_VIEWS, paper.MEAN[kind], **style)
    return {1} if target else {1, paper.NUM_VIEWS[-1]}


def _paper_lines(theme: Theme) -> dict[str, dict[str, Any]]:
    common = {"color": theme.faint, "linewidth": 1.1, "zorder": 1.5}
    return {
        "no penalty": {**common, "linestyle": ":", "marker": "x"},
        "penalty": {**common, "linestyle": "-", "marker": "+", "markersize": 6.5},
    }


def _is_positive(arrays: Sequence[Any]) -> bool:
    values = np.concatenate([np.asarray(a, float) for a in arrays] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    return bool(values.size and (values > 0).all())


def _log_axes(axes: "Axes", ticks: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    if _is_positive([line.get_ydata() for line in axes.lines]):
        axes.set_yscale("log")


def _legend(
    figure: "Figure",
    runs: Sequence[Run],
    theme: Theme,
    *,
    with_paper: bool = False,
    marker: bool = False,
) -> None:
    from matplotlib.lines import Line2D

    titles = [label(run.name) for run in runs]
    lines = [
        Line2D([], [], **line_style(i, theme, marker=marker)) for i in range(len(runs))
    ]
    if with_paper:
        for kind, style in _paper_lines(theme).items():
            titles.append(f"paper, {kind} (ResNet-18)")
            lines.append(Line2D([], [], **style))
    outside_legend(figure, lines, titles)
