"""Pictures of one run (views, neighbours, predictions, embeddings); training curves.

A picture is left out if `samples.npz` lacks its arrays.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from invariance_jax.report import style
from invariance_jax.report.read import Run
from invariance_jax.report.style import Picture, Style, label
from invariance_jax.report.words import Words

_MAX_VIEWS, _MAX_CLASSES = 8, 20

_TRAINING = {
    "loss": "training loss",
    "penalty": "penalty",
    "probe_mse": "MSE of the online probe, validation",
    "probe_accuracy": "accuracy of the online probe, validation",
    "variance_normalized": "normalized variance of n(h)",
}


def views(run: Run, title: str = "Views") -> list[Picture]:
    """Returns rows of views of an example, after its plain image if there is one."""
    tiles, plain = run.samples.get("views"), run.samples.get("plain")
    if tiles is None:
        return []
    tiles, caption = tiles[:, :_MAX_VIEWS], ""
    if plain is not None:
        tiles = np.concatenate([plain[:, None], tiles], axis=1)
        caption = ", to the right of its plain image"
    drawn = _tiles(tiles, plain is not None)
    caption = f"Each row: random views of one example{caption}."
    return style.picture("views", title, caption, drawn)


def _neighbors(run: Run) -> list[Picture]:
    tiles, labels = run.samples.get("neighbors"), run.samples.get("neighbor_labels")
    if tiles is None:
        return []
    names, framed, caption = [""] * len(tiles), np.zeros(tiles.shape[:2], bool), ""
    if labels is not None:
        names = [run.settings["classes"][row[0]] for row in labels]
        framed, caption = labels != labels[:, :1], " Framed: of another class."
    caption = (
        f"Left: examples of the {run.split} split. Right: the neighbours of each by "
        f"cosine similarity of h, the nearest first.{caption}"
    )
    drawn = _tiles(tiles, True, names, framed)
    return style.picture("neighbors", "Nearest neighbours", caption, drawn)


def _tiles(
    images: np.ndarray,
    apart: bool,
    names: Sequence[str] = (),
    framed: np.ndarray | None = None,
) -> Figure:
    """Draws rows of images `[R, V, H, W, 3]`; `apart`: a wider gap after the first."""
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
    size = style.NARROW, style.NARROW * mosaic.shape[0] / mosaic.shape[1]
    figure, (axes,) = style.subplots(1, 1, size)
    axes.imshow(mosaic, interpolation="none")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks(tops[: len(names)] + height / 2, [label(name) for name in names])
    for row, column in np.argwhere(framed) if framed is not None else ():
        corner = float(lefts[column]) - 0.5, float(tops[row]) - 0.5
        frame = Rectangle(corner, width, height, fill=False, edgecolor=style.COLORS[1])
        frame.set(linewidth=2, clip_on=False)
        axes.add_patch(frame)
    return figure


def quality(run: Run) -> list[Picture]:
    """Returns the picture of predicted against true values or classes, if any."""
    if {"true", "predicted", "predicted_single"} <= {*run.samples}:
        caption = f"Examples of the {run.split} split. The line: exact predictions."
        title = "Predicted against true values"
        return style.picture("predictions", title, caption, _predictions(run))
    if "confusion" in run.samples:
        caption = (
            f"Percent of each true class of the {run.split} split, with features "
            "averaged over the largest M."
        )
        title = "Predicted against true classes"
        return style.picture("confusion", title, caption, _confusion(run))
    return []


def _predictions(run: Run) -> Figure:
    targets, views = run.settings["targets"], run.settings["num_views"]
    columns, words = min(4, len(targets)), Words([run])
    size = style.WIDTH / max(columns, 2)
    figure, grid = style.subplots(len(targets), columns, (size, size))
    layers: dict[str, Style] = {
        "predicted_single": {"marker": "s", "color": style.COLORS[1], "linestyle": ""},
        "predicted": {"marker": "o", "color": style.COLORS[0], "linestyle": ""},
    }
    for number, (axes, target) in enumerate(zip(grid, targets, strict=True)):
        true, unit = run.samples["true"][:, number], words.unit(target)
        for name, look in layers.items():
            dots = {**look, "markersize": 2, "alpha": 0.6, "markeredgewidth": 0}
            axes.plot(true, run.samples[name][:, number], **dots, rasterized=True)
        ends = [true.min(), true.max()]
        axes.plot(ends, ends, color=style.TEXT, linewidth=0.8)
        axes.set_xlabel(label(f"true {target} ({unit})" if unit else f"true {target}"))
    grid[0].set_ylabel("predicted")
    names = f"M = {views[0]}", f"M = {views[-1]}"
    style.add_legend(figure, dict(zip(names, layers.values(), strict=True)))
    return figure


def _confusion(run: Run) -> Figure:
    counts = run.samples["confusion"]
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(counts) <= _MAX_CLASSES
    size = 1.6 + 0.36 * len(counts) if few else 6.0
    figure, (axes,) = style.subplots(1, 1, (size + 0.8, size))
    look: Style = {"cmap": "cividis", "vmin": 0, "vmax": 100, "square": True}
    look["cbar_kws"] = {"label": "% of the true class", "shrink": 0.6}
    if few:
        texts = np.where(shares >= 0.5, np.char.mod("%.0f", shares), "")
        look |= {"annot": texts, "fmt": "", "annot_kws": {"fontsize": 8}}
    ticks = [*map(label, run.settings["classes"])] if few else False
    seaborn.heatmap(shares, ax=axes, xticklabels=ticks, yticklabels=ticks, **look)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    axes.tick_params("x", rotation=90)
    axes.tick_params("y", rotation=0)
    return figure


def embeddings(run: Run) -> list[Picture]:
    """Returns principal components, coloured by class or target, and neighbours."""
    points, labels = run.samples.get("projection"), run.samples.get("projection_labels")
    if points is None or "projection_explained" not in run.samples:
        return _neighbors(run)
    targets, by = run.samples.get("projection_targets"), ""
    looks: dict[str, Style] = {"": {"color": style.COLORS[0]}}
    legend: dict[str, Style] = {}
    if labels is not None:
        classes, places = np.unique(labels, return_inverse=True)
        looks, by = {"": {"c": labels, "cmap": "viridis"}}, ", coloured by class"
        if len(classes) <= _MAX_CLASSES:
            palette = seaborn.color_palette("tab20" if len(classes) > 10 else "tab10")
            looks = {"": {"c": [palette[place] for place in places]}}
            for number, color in zip(classes, palette, strict=False):
                dot = {"marker": "o", "linestyle": "", "color": color}
                legend[run.settings["classes"][number]] = dot
    elif targets is not None:
        columns = zip(run.settings["targets"], targets.T, strict=True)
        looks = {name: {"c": values, "cmap": "viridis"} for name, values in columns}
        by = ", coloured by target"
    per_row = min(2, len(looks))
    size = style.NARROW / per_row
    figure, grid = style.subplots(len(looks), per_row, (size, size))
    first, second = run.samples["projection_explained"]
    for axes, (name, look) in zip(grid, looks.items(), strict=True):
        look = {**look, "s": 7, "alpha": 0.75, "linewidths": 0, "rasterized": True}
        axes.scatter(*points.T, **look)
        axes.set(title=label(name), xticks=[], yticks=[])
        axes.set_xlabel(f"first ({100 * first:.0f} %)")
        axes.set_ylabel(f"second ({100 * second:.0f} %)")
        axes.label_outer()
    if legend:
        style.add_legend(figure, legend)
    caption = f"Directions in which features of the {run.split} split vary most{by}."
    title = "Principal components of h"
    return style.picture("projection", title, caption, figure) + _neighbors(run)


def training(runs: Sequence[Run]) -> list[Picture]:
    """Returns the training curves of all runs: a thin line per seed, a thick mean."""
    log = pd.concat([run.log.assign(run=run.name) for run in runs])
    panels = [name for name in _TRAINING if name in {*log["name"]}]
    if not panels:
        return []
    size, columns = (style.WIDTH / 2, 2.4), min(2, len(panels))
    figure, grid = style.subplots(len(panels), columns, size)
    lines = {
        run.name: style.line_style(n) | {"marker": ""} for n, run in enumerate(runs)
    }
    for axes, panel in zip(grid, panels, strict=True):
        rows = log[log["name"] == panel]
        for name, look in lines.items():
            seeds = rows[rows["run"] == name].pivot(
                index="step", columns="seed", values="value"
            )
            if seeds.shape[1] > 1:
                axes.plot(seeds, color=look["color"], linewidth=0.7, alpha=0.4)
            marker = {"marker": "."} if len(seeds) < 3 else {}
            # The mean has only the steps that all seeds have.
            axes.plot(seeds.dropna().mean(axis=1), **{**look, **marker})
        axes.set(title=_TRAINING[panel], xlabel="step")
        if panel not in ("loss", "probe_accuracy") and style.spans(rows["value"]):
            axes.set_yscale("log")
            style.label_logs(axes.yaxis)
    if len(runs) > 1:
        style.add_legend(figure, lines)
    several = log.groupby("run")["seed"].nunique().max() > 1
    caption = "Thin lines: single seeds. Thick lines: their mean." if several else ""
    return style.picture("training", "Training curves", caption, figure)
