"""Draws curves and dots of aggregated rows, as declared in `sections`.

Curves of one of several runs share its colour, and the markers of all but the first are
open. Numbers of the paper are grey. Bars are standard errors over seeds, or confidence
intervals of differences.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from invariance_jax.report import paper, style
from invariance_jax.report.aggregate import of_paper, select
from invariance_jax.report.sections import Spec
from invariance_jax.report.style import Picture, Style, label
from invariance_jax.report.words import Words, is_share, word
from invariance_jax.types import Json

_ACROSS: Style = {"color": style.FAINT, "linewidth": 1.0, "linestyle": (0, (6, 3))}
_PLAIN: Style = {"linewidth": 1.1, "linestyle": ":"}


class Shown(NamedTuple):
    """What all figures of a report share."""

    names: list[str]  # of the runs, without the paper's
    words: Words
    training: Mapping[str, Mapping[str, float]]  # run -> kind of shift -> its value
    constant: float  # the MSE of a constant predictor; NaN if there is none


class _Panel(NamedTuple):
    rows: pd.DataFrame  # low and high are the ends of the bars
    metrics: tuple[str, ...]
    at: Json  # the coordinates of the panel


def figure(spec: Spec, table: pd.DataFrame, shown: Shown) -> list[Picture]:
    """Returns the figure of aggregated rows; [] if no run has measured enough of it."""
    panels = [*_panels(spec, table)]
    if not panels:
        return []
    rows = pd.concat([panel.rows for panel in panels])
    texts = [spec.caption, paper.note(rows, brief=True)]
    if rows[~of_paper(rows)]["standard_error"].notna().any():
        intervals = "95 % intervals of Student's t"
        bars = intervals if "low" in table else "standard error over seeds"
        texts.insert(1, f"Bars: {bars}.")
    drawn = _draw(spec, panels, shown)
    return style.picture(spec.name, spec.title, " ".join(filter(None, texts)), drawn)


def _panels(spec: Spec, table: pd.DataFrame) -> Iterator[_Panel]:
    """Yields the panels that have enough numbers of a run, not only of the paper."""
    table, panels = select(table, spec.where), [*spec.panels]
    if not {spec.x, *panels} <= {*table}:
        return
    table = table.dropna(subset=["mean", spec.x, *panels])
    if spec.dots:
        table = table[~of_paper(table)]
    mean, error = table["mean"], table["standard_error"]
    low, high = table.get("low", mean - error), table.get("high", mean + error)
    table = table.assign(low=low.fillna(mean), high=high.fillna(mean))
    for metrics in spec.metrics:
        rows = table[table["metric"].isin(metrics)]
        places = rows[panels].drop_duplicates()
        if panels:  # grouped by the first coordinate, in the order of the rows
            first = pd.factorize(places[panels[0]])[0]
            places = places.iloc[np.argsort(first, kind="stable")]
        for place in places.to_dict("records") if panels else [{}]:
            at = {str(name): value for name, value in place.items()}
            part = select(rows, at)
            num_points = part[~of_paper(part)][spec.x].nunique()
            if num_points >= (1 if spec.dots else 2):
                yield _Panel(part, metrics, at)


def _draw(spec: Spec, panels: Sequence[_Panel], shown: Shown) -> Figure:
    columns = min(spec.columns, len(panels))
    names = [*dict.fromkeys(name for panel in panels for name in panel.rows[spec.x])]
    height = 3.3 if columns == 1 else 2.7
    if spec.dots:
        height = 0.8 + len(names) * (0.1 + 0.17 * min(len(shown.names), 4))
    width = style.NARROW if columns == 1 else style.WIDTH / columns
    figure, grid = style.subplots(
        len(panels), columns, (width, height), sharey=spec.dots
    )
    if spec.share:
        _share(grid, panels, columns)
    entries: dict[str, Style] = {}
    looks: dict[str, int] = {}
    for axes, panel in zip(grid, panels, strict=True):
        curves = [*_curves(spec, panel, shown, looks)]
        entries |= {name: look for name, look, _ in curves if name}
        for number, (_, look, rows) in enumerate(curves):
            if spec.dots:
                place = 0.75 * (0.5 - (number + 0.5) / len(curves)) * (spec.x != "run")
                at = place - rows[spec.x].map(names.index).astype(float)
            else:
                at = pd.to_numeric(rows[spec.x], errors="coerce")
                for level in rows["mean"][rows[spec.x] == "plain"]:
                    axes.axhline(level, **_PLAIN, color=look["color"])
            _draw_points(axes, rows, at, look, dots=spec.dots)
        entries |= _marks(axes, spec, panel, shown)
        (_finish_dots if spec.dots else _finish)(axes, spec, panel, shown.words)
        if spec.dots:
            texts = [label(shown.words.value(spec.x, name)) for name in names]
            axes.set_yticks(-np.arange(len(names)), texts)
            axes.set_ylim(0.6 - len(names), 0.6)
    for axes in grid:
        if axes.get_yscale() == "log":
            style.label_logs(axes.yaxis)
    if entries and spec.x != "run":
        style.add_legend(figure, entries)
    return figure


def _share(grid: Sequence[Axes], panels: Sequence[_Panel], columns: int) -> None:
    """Lets panels of the same metrics share their limits; a row labels them once."""
    firsts: dict[tuple[str, ...], Axes] = {}
    for number, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
        first = firsts.setdefault(panel.metrics, axes)
        if axes is not first:
            axes.sharey(first)
        if number % columns and panels[number - 1].metrics == panel.metrics:
            axes.yaxis.label.set_visible(False)
            axes.tick_params(axis="y", labelleft=False)


def _curves(
    spec: Spec, panel: _Panel, shown: Shown, looks: dict[str, int]
) -> Iterator[tuple[str, Style, pd.DataFrame]]:
    """Yields name, style and points of each curve; a name has one style everywhere.

    The only curve of a panel has no name if it has no coordinates.
    """
    keys = ["run", "metric", *(name for name in spec.curves if name in panel.rows)]
    groups = panel.rows.groupby(keys, dropna=False, sort=False)
    for key, rows in groups:
        run, metric, *_ = map(str, key)
        at = dict(zip(keys[2:], key[2:], strict=True))
        several = len(panel.metrics) > 1
        text = word(metric) if several else shown.words.place(at)
        if run not in shown.names:
            yield run, style.paper_style(run), rows
            continue
        look = looks.setdefault(text, len(looks))
        if len(shown.names) == 1:
            plain = spec.plain if len(groups) > 1 else ""
            yield text or plain, style.line_style(look), rows
        else:
            name = ", ".join(filter(None, [run, text]))
            yield name, style.line_style(shown.names.index(run), look), rows


def _draw_points(
    axes: Axes, rows: pd.DataFrame, at: "pd.Series[float]", look: Style, *, dots: bool
) -> None:
    """Draws finite points with bars; `at` is the x of curves, the y of dots."""
    rows = rows[np.isfinite(rows["mean"])].assign(at=at)
    rows = rows.dropna(subset=["at"]).sort_values("at")
    bars = np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
    error = bars if bars.any() and look["color"] != style.FAINT else None
    if dots:
        axes.errorbar(rows["mean"], rows["at"], xerr=error, **{**look, "linestyle": ""})
    else:
        axes.errorbar(rows["at"], rows["mean"], yerr=error, **look)


def _marks(axes: Axes, spec: Spec, panel: _Panel, shown: Shown) -> dict[str, Style]:
    """Draws the reference lines of a panel; returns their legend entries."""
    entries: dict[str, Style] = {}
    if spec.line is not None:
        (axes.axvline if spec.dots else axes.axhline)(spec.line, **_ACROSS, zorder=1)
    how = str(panel.at.get("how"))
    training = [shown.training.get(run, {}) for run in panel.rows["run"]]
    levels = {values[how] for values in training if how in values}
    if len(levels) == 1:
        entries["value in training"] = {**_ACROSS, "linestyle": (0, (1, 2))}
        axes.axvline(*levels, **entries["value in training"], zorder=1)
    if (panel.rows[spec.x] == "plain").any():
        entries["plain images"] = {**_PLAIN, "color": style.TEXT}
    is_overall_mse = panel.metrics == ("mse",) and "target" in spec.where
    if is_overall_mse and panel.rows["mean"].max() > 0.3 * shown.constant:
        axes.axhline(shown.constant, **_ACROSS, zorder=1)
        entries["constant predictor"] = _ACROSS
    return entries


def _finish(axes: Axes, spec: Spec, panel: _Panel, words: Words) -> None:
    at = {name: words.value(name, value) for name, value in panel.at.items()}
    unit = words.unit(panel.at.get("parameter")) if at.get("how") == "shift" else ""
    x_label = spec.label.format_map(at)
    axes.set_xlabel(label(f"{x_label} ({unit})" if unit else x_label))
    others = {n: v for n, v in panel.at.items() if f"{{{n}}}" not in spec.label}
    axes.set_title(label(words.place(others)))
    axes.set_ylabel(label(words.axis(panel.metrics[0], panel.at.get("target"))))
    x, paper = pd.to_numeric(panel.rows[spec.x], errors="coerce"), of_paper(panel.rows)
    # The paper's points have ticks only beyond ours, so that ticks do not crowd.
    ticks = sorted({*x[~paper | (x > x[~paper].max())].dropna()})
    if spec.log and ticks[0] > 0:
        axes.set_xscale("log")
        style.label_logs(axes.xaxis)
    if len(ticks) <= 9:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    if not is_share(panel.metrics[0]) and style.spans(panel.rows["mean"]):
        axes.set_yscale("log")


def _finish_dots(axes: Axes, spec: Spec, panel: _Panel, words: Words) -> None:
    """Sets title, label and scale of a panel of dots.

    A linear axis leaves out numbers far from the others, such as those of a collapse.
    """
    axes.set_title(label(words.place(panel.at)))
    text = words.axis(panel.metrics[0])
    points = panel.rows[np.isfinite(panel.rows["mean"])]
    share = is_share(panel.metrics[0])
    if spec.line != 0 and not share and style.spans(points["mean"]):
        axes.set_xscale("log")
        style.label_logs(axes.xaxis)
    else:
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(FuncFormatter(style.brief))
        is_bounded = share or panel.metrics == ("normalized",)  # by 1
        size = max(10 * points["mean"].abs().median(), 1.2 * is_bounded)
        near = points[points["mean"].abs() <= size]
        if 0 < len(near) < len(points):
            low, high = min(0, *near["low"]), max(0, *near["high"])
            margin = 0.1 * (high - low)
            axes.set_xlim(max(low, -size) - margin, min(high, size) + margin)
            text += f"\n({len(points) - len(near)} outside the axis)"
    axes.set_xlabel("\n".join(map(label, text.split("\n"))))
