"""The figure of the training curves."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from invariance_jax.report.read import Run
from invariance_jax.report.style import (
    WIDTH,
    Draw,
    Theme,
    label,
    label_logs,
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
    """Returns the training curves of all runs: each seed thin, their mean thick.

    None where no run has a training log.
    """
    logged = {name for run in runs for log in run.logs for name in log.curves}
    panels = [panel for panel in _PANELS if panel[0] in logged]
    return partial(_draw_training, runs, panels) if panels else None


def _draw_training(
    runs: Sequence[Run], panels: Sequence[tuple[str, str, str]], theme: Theme
) -> "Figure":
    from matplotlib.lines import Line2D

    figure, grid = subplots(len(panels), 2, (WIDTH / 2, 2.5))
    for axes, (name, unit, title) in zip(grid, panels, strict=True):
        for index, run in enumerate(runs):
            curves = [log.curves[name] for log in run.logs if name in log.curves]
            _draw_curves(axes, curves, line_style(index, theme))
        axes.set(title=title, xlabel="step", ylabel=unit)
        values = [line.get_ydata() for line in axes.lines]
        if name not in ("loss", "probe_accuracy") and _is_positive(values):
            axes.set_yscale("log")
            label_logs(axes.yaxis)
        if not values:
            axes.set_visible(False)
    lines = [Line2D([], [], **line_style(i, theme)) for i in range(len(runs))]
    outside_legend(figure, lines, [label(run.name) for run in runs])
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


def _is_positive(arrays: Sequence[Any]) -> bool:
    values = np.concatenate([np.asarray(a, float) for a in arrays] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    return bool(values.size and (values > 0).all())
