"""The figures of runs that classify: accuracy against averaged views, confusion."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from invariance_jax.report.figures import draw_sweep
from invariance_jax.report.read import Run
from invariance_jax.report.style import (
    Draw,
    Theme,
    label,
    line_style,
    outside_legend,
    subplots,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = {"accuracy": "accuracy", "cross_entropy": "cross-entropy (nats)"}
_PARTS = {
    "": "features, all views",
    "crop": "features, crop and flip only",
    "color": "features, colour only",
    "ensemble": "predictions, all views",
}


def accuracy_figure(runs: Sequence[Run]) -> Draw | None:
    """Returns accuracy and cross-entropy against the number M of averaged views.

    One run is shown with every family of views, several with the whole transformation
    only; the level of plain images is a horizontal line in the run's colour.
    """
    measured = {name for run in runs for name in run.results.summary}
    panels = [panel for panel in _PANELS if f"{panel}@plain" in measured]
    return partial(_draw, runs, panels) if panels else None


def _draw(runs: Sequence[Run], panels: Sequence[str], theme: Theme) -> "Figure":
    from matplotlib.lines import Line2D

    figure, grid = subplots(len(panels), 2, (4.8, 3.2))
    parts = list(_PARTS) if len(runs) == 1 else [""]
    lines = {}
    for axes, panel in zip(grid, panels, strict=True):
        ticks: set[int] = set()
        for index, (run, part) in enumerate((r, p) for r in runs for p in parts):
            style = line_style(index, theme, marker=True)
            name = _PARTS[part] if len(runs) == 1 else run.name
            quantity = f"{panel}.{part}" if part else panel
            measured = draw_sweep(axes, run, quantity, style)
            if measured:
                ticks |= measured
                lines[name] = Line2D([], [], **style)
            plain = run.results.summary.get(f"{panel}@plain")
            if plain and part == "":
                level = axes.axhline(
                    plain.mean, color=style["color"], linestyle=":", linewidth=1.1
                )
                lines.setdefault("plain images (dotted)", level)
        axes.set(xlabel="M, averaged views", ylabel=_PANELS[panel], xscale="log")
        axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
        axes.minorticks_off()
    outside_legend(figure, list(lines.values()), [label(name) for name in lines])
    return figure


def confusion_figure(run: Run) -> Draw | None:
    """Returns the share of each true class that is predicted as each class."""
    if run.samples is None or run.samples.confusion is None:
        return None
    return partial(_draw_confusion, run.samples.confusion)


def _draw_confusion(counts: np.ndarray, theme: Theme) -> "Figure":
    from matplotlib.figure import Figure

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    axes.grid(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(counts) <= 20:
        classes = np.arange(len(counts))
        axes.set_xticks(classes)
        axes.set_yticks(classes)
        for row in classes:
            for column in classes:
                share = shares[row, column]
                if share >= 0.005:
                    axes.text(
                        column,
                        row,
                        f"{100 * share:.0f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="black" if share > 0.5 else "white",
                    )
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("share of the true class")
    return figure
