"""The figures of one run's samples: example views, predictions, confused classes."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from invariance_jax.report import paper
from invariance_jax.report.read import Run, flatten
from invariance_jax.report.style import Draw, Theme, label, outside_legend, subplots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_ROWS = 8
"""How many examples the figure of views shows at most."""


def views_figure(run: Run) -> Draw | None:
    """Returns the figure of examples (rows) under several draws (columns)."""
    if run.samples is None or run.samples.views is None or not run.samples.views.size:
        return None
    return partial(_draw_views, run.samples.views[:MAX_ROWS])


def _draw_views(views: np.ndarray, theme: Theme) -> "Figure":
    from matplotlib.figure import Figure

    rows, draws, height, width, _ = views.shape
    gap = max(1, width // 16)
    # The gaps are transparent, so that they take the colour of the page.
    mosaic = np.zeros(
        (rows * (height + gap) - gap, draws * (width + gap) - gap, 4), np.uint8
    )
    for row in range(rows):
        for draw in range(draws):
            top, left = row * (height + gap), draw * (width + gap)
            tile = mosaic[top : top + height, left : left + width]
            tile[..., :3] = views[row, draw]
            tile[..., 3] = 255
    size = 9.6
    figure = Figure(
        figsize=(size, 0.5 + size * mosaic.shape[0] / mosaic.shape[1]),
        layout="constrained",
    )
    axes = figure.add_subplot()
    axes.imshow(mosaic, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    columns = np.arange(draws) * (width + gap) + width / 2
    axes.set_xticks(columns, [str(draw + 1) for draw in range(draws)])
    lines = np.arange(rows) * (height + gap) + height / 2
    axes.set_yticks(lines, [str(row + 1) for row in range(rows)])
    axes.set_xlabel("draw of the transformation")
    axes.set_ylabel("example")
    return figure


def predictions_figure(run: Run) -> Draw | None:
    """Returns predicted against true values per task, at M = 1 and at the largest M."""
    samples = run.samples
    if samples is None or samples.true is None or not run.results.targets:
        return None
    views = [name.partition("@")[2] for name in run.results.summary]
    largest = max((int(m) for m in views if m.isdigit()), default=0)
    layers = {}
    if samples.predicted_single is not None:
        layers["M = 1"] = samples.predicted_single
    if samples.predicted is not None and largest != 1:
        layers[f"M = {largest}" if largest else "largest M"] = samples.predicted
    return partial(_draw_predictions, run, samples.true, layers) if layers else None


def _draw_predictions(
    run: Run, true: np.ndarray, layers: dict[str, np.ndarray], theme: Theme
) -> "Figure":
    targets = run.results.targets
    columns = min(4, len(targets))
    size = 9.6 / columns
    figure, grid = subplots(len(targets), columns, (size, size + 0.3))
    spirograph = paper.is_spirograph(flatten(run.config))
    for column, (axes, target) in enumerate(zip(grid, targets, strict=True)):
        for name, values in layers.items():
            axes.scatter(
                true[:, column],
                values[:, column],
                s=5,
                marker="s" if name == "M = 1" else "o",
                color=theme.runs[1 if name == "M = 1" else 0],
                alpha=0.45,
                linewidths=0,
                label=name,
                rasterized=True,
            )
        ends = [float(np.min(true[:, column])), float(np.max(true[:, column]))]
        axes.plot(ends, ends, color=theme.text, linewidth=0.8, zorder=3)
        unit = paper.UNITS.get(target) if spirograph else None
        suffix = f" ({unit})" if unit else ""
        axes.set_xlabel(f"true {label(target)}{suffix}")
        axes.set_ylabel("predicted")
        axes.set_title(label(target))
    handles, titles = grid[0].get_legend_handles_labels()
    outside_legend(figure, handles, titles, markerscale=2.5)
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
