"""The pictures of one run: views, neighbours, predictions, embeddings; training."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from invariance_jax.report.read import Run
from invariance_jax.report.style import (
    COLORS,
    TEXT,
    WIDTH,
    Picture,
    Style,
    add_legend,
    label,
    label_logs,
    line_style,
    render,
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


def views(run: Run) -> Picture | None:
    """Returns examples under several draws, the plain image at the left if known."""
    found, plain = run.samples.get("views"), run.samples.get("plain")
    if found is None:
        return None
    tiles, caption = found[:_MAX_ROWS, :_MAX_VIEWS], ""
    has_plain = plain is not None and plain.shape == found[:, 0].shape
    if has_plain and plain is not None:
        tiles = np.concatenate([plain[: len(tiles), None], tiles], axis=1)
        caption = "; at the left the plain image"
    caption = f"Rows: an example under draws of the transformation{caption}."
    return render("views", "Views", caption, partial(_tiles, tiles, has_plain))


def neighbors(run: Run) -> Picture | None:
    """Returns the nearest neighbours of some examples, beside these."""
    found, labels = run.samples.get("neighbors"), run.samples.get("neighbor_labels")
    if found is None:
        return None
    names, others, caption = [""] * len(found), np.zeros(found.shape[:2], bool), ""
    if labels is not None and labels.shape == others.shape:
        names = [class_name(run, row[0]) for row in labels]
        others, caption = labels != labels[:, :1], " Framed: of another class."
    caption = (
        f"Left: examples of the {run.split} split; right of each its nearest by cosine "
        f"similarity of h, the nearest first.{caption}"
    )
    draw = partial(_tiles, found, True, names, others)
    return render("neighbors", "Nearest neighbours", caption, draw)


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
    size = 5.6, 5.6 * mosaic.shape[0] / mosaic.shape[1]
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
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


def class_name(run: Run, number: int) -> str:
    """Returns the name of a class, its number if it has none."""
    names = run.settings.get("classes") or ()
    return str(names[number]) if 0 <= number < len(names) else str(number)


def predictions(run: Run) -> Picture | None:
    """Returns predicted against true values per target, at one and at most views."""
    true, largest = run.samples.get("true"), max(run.settings.get("num_views") or [1])
    if true is None or true.shape[1] != len(run.targets):
        return None
    layers = {"M = 1": "predicted_single", f"M = {largest}": "predicted"}
    found = {name: run.samples.get(key, true[:0]) for name, key in layers.items()}
    found = {name: y for name, y in found.items() if y.shape == true.shape}
    caption = f"Examples of the {run.split} split; the line is a perfect prediction."
    draw = partial(_predictions, run, true, found)
    return render("predictions", "Predicted against true values", caption, draw)


def _predictions(run: Run, true: np.ndarray, layers: dict[str, np.ndarray]) -> Figure:
    columns, words = min(4, len(run.targets)), Words([run])
    size = WIDTH / max(columns, 2)
    figure, grid = subplots(len(run.targets), columns, (size, size))
    styles: dict[str, Style] = {
        name: {"marker": marker, "color": color, "linestyle": ""}
        for name, marker, color in zip(layers, "so", COLORS[1::-1], strict=False)
    }
    for number, (axes, target) in enumerate(zip(grid, run.targets, strict=True)):
        x, unit = true[:, number], words.unit(target)
        for name, style in styles.items():
            dots = {**style, "markersize": 2, "alpha": 0.6, "markeredgewidth": 0}
            axes.plot(x, layers[name][:, number], **dots, rasterized=True)
        axes.plot([x.min(), x.max()], [x.min(), x.max()], color=TEXT, linewidth=0.8)
        axes.set_xlabel(label(f"true {target} ({unit})" if unit else f"true {target}"))
    grid[0].set_ylabel("predicted")
    add_legend(figure, styles)
    return figure


def confusion(run: Run) -> Picture | None:
    """Returns the share of each true class that is predicted as each class."""
    counts = run.samples.get("confusion")
    if counts is None or counts.shape[0] != counts.shape[1]:
        return None
    caption = (
        f"Percent of each true class of the {run.split} split; features averaged over "
        "the largest M."
    )
    draw = partial(_confusion, run, counts)
    return render("confusion", "Predicted against true classes", caption, draw)


def _confusion(run: Run, counts: np.ndarray) -> Figure:
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(counts) <= _MAX_CLASSES
    size = 1.6 + 0.36 * len(counts) if few else 6.0
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.add_subplot()
    names = [label(class_name(run, number)) for number in range(len(counts))]
    texts = np.where(shares >= 0.5, np.char.mod("%.0f", shares), "")
    style: Style = {"cmap": "cividis", "vmin": 0, "vmax": 100, "square": True}
    style["cbar_kws"] = {"label": "% of the true class", "shrink": 0.6}
    for name in ("xticklabels", "yticklabels"):
        style[name] = names if few else False
    if few:
        style |= {"annot": texts, "fmt": "", "annot_kws": {"fontsize": 8}}
    seaborn.heatmap(shares, ax=axes, **style)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.tick_params("x", rotation=90)
    axes.tick_params("y", rotation=0)
    return figure


def projection(run: Run) -> Picture | None:
    """Returns the principal components, coloured by class or by each target."""
    points, labels = run.samples.get("projection"), run.samples.get("projection_labels")
    if points is None or points.shape[1] != 2:
        return None
    targets, by = run.samples.get("projection_targets", points[:0]), ""
    styles: dict[str, Style] = {"": {"color": COLORS[0]}}
    legend: dict[str, Style] = {}
    if labels is not None and labels.shape == points[:, 0].shape:
        classes, places = np.unique(labels, return_inverse=True)
        styles, by = {"": {"c": labels, "cmap": "viridis"}}, ", coloured by class"
        if len(classes) <= _MAX_CLASSES:
            palette = seaborn.color_palette("tab20" if len(classes) > 10 else "tab10")
            styles = {"": {"c": [palette[place] for place in places]}}
            dot = {"marker": "o", "linestyle": ""}
            legend = {
                class_name(run, int(number)): {**dot, "color": color}
                for number, color in zip(classes, palette, strict=False)
            }
    elif run.targets and targets.shape == (len(points), len(run.targets)):
        each = zip(run.targets, targets.T, strict=True)
        styles = {name: {"c": values, "cmap": "viridis"} for name, values in each}
        by = ", coloured by target"
    caption = f"The two directions in which features of the {run.split} split vary most"
    explained = run.samples.get("projection_explained", np.zeros(0))
    draw = partial(_projection, points, styles, legend, explained)
    return render("projection", "Principal components of h", f"{caption}{by}.", draw)


def _projection(
    points: np.ndarray,
    styles: dict[str, Style],
    legend: dict[str, Style],
    explained: np.ndarray,
) -> Figure:
    columns = min(2, len(styles))
    figure, grid = subplots(len(styles), columns, (5.6 / columns, 5.6 / columns))
    shares = [f" ({100 * share:.0f} %)" for share in explained] + ["", ""]
    for axes, (title, style) in zip(grid, styles.items(), strict=True):
        style = {**style, "s": 7, "alpha": 0.75, "linewidths": 0, "rasterized": True}
        axes.scatter(points[:, 0], points[:, 1], **style)
        axes.set(title=label(title), xticks=[], yticks=[])
        axes.set(xlabel=f"first{shares[0]}", ylabel=f"second{shares[1]}")
        axes.label_outer()
    if legend:
        add_legend(figure, legend)
    return figure


def training(runs: Sequence[Run]) -> Picture | None:
    """Returns the training curves of all runs: each seed thin, their mean thick."""
    log = pd.concat([run.log.assign(run=run.name) for run in runs])
    panels = [name for name in _TRAINING if name in {*log["name"]}]
    if not panels:
        return None
    several = log.groupby("run")["seed"].nunique().max() > 1
    caption = "Thin: each seed; thick: their mean." if several else ""
    draw = partial(_training, [run.name for run in runs], log, panels)
    return render("training", "Training curves", caption, draw)


def _training(names: Sequence[str], log: pd.DataFrame, panels: Sequence[str]) -> Figure:
    figure, grid = subplots(len(panels), min(2, len(panels)), (WIDTH / 2, 2.4))
    styles = {run: line_style(n) | {"marker": ""} for n, run in enumerate(names)}
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
    if len(names) > 1:
        add_legend(figure, styles)
    return figure


OF_ONE = (views, predictions, confusion, projection, neighbors)
"""Run -> picture, None if `samples.npz` lacks what it shows."""
