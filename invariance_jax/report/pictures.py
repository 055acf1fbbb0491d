"""The pictures of one run: views, neighbours, predictions, embeddings; training.

A picture is left out where `samples.npz` lacks what it shows.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from invariance_jax.report.read import Run
from invariance_jax.report.style import (
    COLORS,
    NARROW,
    TEXT,
    WIDTH,
    Picture,
    Style,
    add_legend,
    label,
    label_logs,
    line_style,
    looks,
    picture,
    spans,
    subplots,
)
from invariance_jax.report.words import Words

_MAX_ROWS, _MAX_VIEWS, _MAX_CLASSES = 6, 8, 20

_TRAINING = {
    "loss": "training loss",
    "penalty": "penalty",
    "probe_mse": "MSE of the online probe, validation",
    "probe_accuracy": "accuracy of the online probe, validation",
    "variance_normalized": "normalized variance of n(h)",
}


@looks()
def views(run: Run) -> list[Picture]:
    """Returns examples under several draws, the plain image at the left if known."""
    found, plain = run.samples.get("views"), run.samples.get("plain")
    if found is None:
        return []
    tiles, caption = found[:_MAX_ROWS, :_MAX_VIEWS], "."
    if plain is not None:
        tiles = np.concatenate([plain[: len(tiles), None], tiles], axis=1)
        caption = "; at the left the plain image."
    drawn = _tiles(tiles, plain is not None)
    caption = f"Rows: an example under draws of the transformation{caption}"
    return picture("views", "Views", caption, drawn)


@looks()
def _neighbors(run: Run) -> list[Picture]:
    """Returns the nearest neighbours of some examples, beside these."""
    found, labels = run.samples.get("neighbors"), run.samples.get("neighbor_labels")
    if found is None:
        return []
    names, others, caption = [""] * len(found), np.zeros(found.shape[:2], bool), ""
    if labels is not None:
        names = [_class_name(run, row[0]) for row in labels]
        others, caption = labels != labels[:, :1], " Framed: of another class."
    caption = (
        f"Left: examples of the {run.split} split; right of each its nearest by cosine "
        f"similarity of h, the nearest first.{caption}"
    )
    drawn = _tiles(found, True, names, others)
    return picture("neighbors", "Nearest neighbours", caption, drawn)


def _tiles(
    images: np.ndarray,
    apart: bool,
    names: Sequence[str] = (),
    framed: np.ndarray | None = None,
) -> Figure:
    """Draws rows of images `[R, V, S, S, 3]`; the first of a row may stand apart."""
    rows, columns, height, width, _ = images.shape
    gap = max(1, width // 12)
    lefts = np.arange(columns) * (width + gap) + 2 * gap * apart
    lefts[0], tops = 0, np.arange(rows) * (height + gap)
    # The gaps are transparent, so that they have the colour of the page.
    mosaic = np.zeros((tops[-1] + height, lefts[-1] + width, 4), np.uint8)
    for row, column in np.ndindex(rows, columns):
        top, left = tops[row], lefts[column]
        tile = mosaic[top : top + height, left : left + width]
        tile[..., :3], tile[..., 3] = images[row, column], 255
    size = NARROW, NARROW * mosaic.shape[0] / mosaic.shape[1]
    figure, (axes,) = subplots(1, 1, size)
    axes.imshow(mosaic, interpolation="none")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks(tops[: len(names)] + height / 2, [label(name) for name in names])
    for row, column in np.argwhere(framed) if framed is not None else ():
        corner = float(lefts[column]) - 0.5, float(tops[row]) - 0.5
        frame = Rectangle(corner, width, height, fill=False, edgecolor=COLORS[1])
        frame.set(linewidth=2, clip_on=False)
        axes.add_patch(frame)
    return figure


def _class_name(run: Run, number: int) -> str:
    """Returns the name of a class, its number if it has none."""
    names = run.settings.get("classes") or ()
    return str(names[number]) if 0 <= number < len(names) else str(number)


@looks()
def quality(run: Run) -> list[Picture]:
    """Returns the true against the predicted values or classes."""
    if "true" in run.samples:
        caption = (
            f"Examples of the {run.split} split; the line is a perfect prediction."
        )
        title, drawn = "Predicted against true values", _predictions(run)
        return picture("predictions", title, caption, drawn)
    if "confusion" in run.samples:
        caption = (
            f"Percent of each true class of the {run.split} split; features averaged "
            "over the largest M."
        )
        title, drawn = "Predicted against true classes", _confusion(run)
        return picture("confusion", title, caption, drawn)
    return []


def _predictions(run: Run) -> Figure:
    """Draws the predictions of each target, at one and at most views."""
    columns, words = min(4, len(run.targets)), Words([run])
    size = WIDTH / max(columns, 2)
    figure, grid = subplots(len(run.targets), columns, (size, size))
    largest = max(run.settings.get("num_views") or [1])
    layers = {"predicted_single": "M = 1", "predicted": f"M = {largest}"}
    styles: dict[str, Style] = {
        name: {"marker": marker, "color": color, "linestyle": ""}
        for name, marker, color in zip(layers, "so", COLORS[1::-1], strict=False)
        if name in run.samples
    }
    for number, (axes, target) in enumerate(zip(grid, run.targets, strict=True)):
        x, unit = run.samples["true"][:, number], words.unit(target)
        for name, style in styles.items():
            dots = {**style, "markersize": 2, "alpha": 0.6, "markeredgewidth": 0}
            axes.plot(x, run.samples[name][:, number], **dots, rasterized=True)
        axes.plot([x.min(), x.max()], [x.min(), x.max()], color=TEXT, linewidth=0.8)
        axes.set_xlabel(label(f"true {target} ({unit})" if unit else f"true {target}"))
    grid[0].set_ylabel("predicted")
    add_legend(figure, {layers[name]: style for name, style in styles.items()})
    return figure


def _confusion(run: Run) -> Figure:
    """Draws the share of each true class that is predicted as each class."""
    counts = run.samples["confusion"]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(counts) <= _MAX_CLASSES
    size = 1.6 + 0.36 * len(counts) if few else 6.0
    figure, (axes,) = subplots(1, 1, (size + 0.8, size))
    style: Style = {"cmap": "cividis", "vmin": 0, "vmax": 100, "square": True}
    style["cbar_kws"] = {"label": "% of the true class", "shrink": 0.6}
    if few:
        names = [label(_class_name(run, number)) for number in range(len(counts))]
        texts = np.where(shares >= 0.5, np.char.mod("%.0f", shares), "")
        style |= {"annot": texts, "fmt": "", "annot_kws": {"fontsize": 8}}
        style |= {"xticklabels": names, "yticklabels": names}
    else:
        style |= {"xticklabels": False, "yticklabels": False}
    seaborn.heatmap(shares, ax=axes, **style)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.tick_params("x", rotation=90)
    axes.tick_params("y", rotation=0)
    return figure


@looks()
def embeddings(run: Run) -> list[Picture]:
    """Returns the principal components, coloured by class or target; neighbours."""
    points, labels = run.samples.get("projection"), run.samples.get("projection_labels")
    if points is None:
        return _neighbors(run)
    targets, by = run.samples.get("projection_targets"), ""
    styles: dict[str, Style] = {"": {"color": COLORS[0]}}
    legend: dict[str, Style] = {}
    if labels is not None:
        classes, places = np.unique(labels, return_inverse=True)
        styles, by = {"": {"c": labels, "cmap": "viridis"}}, ", coloured by class"
        if len(classes) <= _MAX_CLASSES:
            palette = seaborn.color_palette("tab20" if len(classes) > 10 else "tab10")
            styles = {"": {"c": [palette[place] for place in places]}}
            dot = {"marker": "o", "linestyle": ""}
            legend = {
                _class_name(run, int(number)): {**dot, "color": color}
                for number, color in zip(classes, palette, strict=False)
            }
    elif targets is not None:
        each = zip(run.targets, targets.T, strict=True)
        styles = {name: {"c": values, "cmap": "viridis"} for name, values in each}
        by = ", coloured by target"
    caption = f"The two directions in which features of the {run.split} split vary most"
    drawn = _projection(run, styles, legend)
    title = "Principal components of h"
    return [*picture("projection", title, f"{caption}{by}.", drawn), *_neighbors(run)]


def _projection(run: Run, styles: dict[str, Style], legend: dict[str, Style]) -> Figure:
    """Draws the points once for each title and style."""
    columns = min(2, len(styles))
    figure, grid = subplots(len(styles), columns, (NARROW / columns, NARROW / columns))
    explained = run.samples.get("projection_explained", ())
    shares = [f" ({100 * share:.0f} %)" for share in explained] + ["", ""]
    for axes, (title, style) in zip(grid, styles.items(), strict=True):
        style = {**style, "s": 7, "alpha": 0.75, "linewidths": 0, "rasterized": True}
        axes.scatter(*run.samples["projection"].T, **style)
        axes.set(title=label(title), xticks=[], yticks=[])
        axes.set(xlabel=f"first{shares[0]}", ylabel=f"second{shares[1]}")
        axes.label_outer()
    if legend:
        add_legend(figure, legend)
    return figure


@looks()
def training(runs: Sequence[Run]) -> list[Picture]:
    """Returns the training curves of all runs: each seed thin, their mean thick."""
    log = pd.concat([run.log.assign(run=run.name) for run in runs])
    panels = [name for name in _TRAINING if name in {*log["name"]}]
    if not panels:
        return []
    figure, grid = subplots(len(panels), min(2, len(panels)), (WIDTH / 2, 2.4))
    styles = {run.name: line_style(n) | {"marker": ""} for n, run in enumerate(runs)}
    for axes, panel in zip(grid, panels, strict=True):
        rows = log[log["name"] == panel]
        for run, style in styles.items():
            seeds = rows[rows["run"] == run].pivot(
                index="step", columns="seed", values="value"
            )
            if seeds.shape[1] > 1:
                axes.plot(seeds, color=style["color"], linewidth=0.7, alpha=0.4)
            marker = {"marker": "."} if len(seeds) < 3 else {}
            # A step that some seed lacks has no mean.
            axes.plot(seeds.dropna().mean(axis=1), **{**style, **marker})
        axes.set(title=_TRAINING[panel], xlabel="step")
        if panel not in ("loss", "probe_accuracy") and spans(rows["value"]):
            axes.set_yscale("log")
            label_logs(axes.yaxis)
    if len(runs) > 1:
        add_legend(figure, styles)
    several = log.groupby("run")["seed"].nunique().max() > 1
    caption = "Thin: each seed; thick: their mean." if several else ""
    return picture("training", "Training curves", caption, figure)
