"""Draws figures that are data; see `panels`."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from invariance_jax.report.panels import (
    COLLAPSED,
    Dots,
    Interval,
    Look,
    Mark,
    Panel,
)
from invariance_jax.report.results import Statistic
from invariance_jax.report.style import (
    WIDTH,
    Draw,
    Theme,
    label,
    label_logs,
    line_style,
    outside_legend,
    paper_style,
    subplots,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(
    panels: Sequence[Panel | Dots], *, columns: int, height: float | None = None
) -> Draw | None:
    """Returns a figure of panels, None if there is none.

    Args:
      panels: in reading order.
      columns: how many stand beside each other at most.
      height: of a panel, inches; None is one that fits.
    """
    if not panels:
        return None
    if height is None:
        height = max(_height(panel) for panel in panels)
    return partial(_draw, tuple(panels), min(columns, len(panels)), height)


def _height(panel: Panel | Dots) -> float:
    if isinstance(panel, Panel):
        return 2.7
    return 0.8 + len(panel.names) * (0.1 + 0.17 * len(panel.spots))


def _draw(
    panels: Sequence[Panel | Dots], columns: int, height: float, theme: Theme
) -> "Figure":
    figure, grid = subplots(len(panels), columns, (WIDTH / columns, height))
    styles: dict[str, dict[str, Any]] = {}
    for number, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
        if isinstance(panel, Dots):
            _draw_dots(axes, panel, theme, named=number % columns == 0)
        else:
            _draw_panel(axes, panel, theme)
        for name, style in _legend(panel, theme):
            if name:
                styles.setdefault(name, style)
    _share_limits(grid, panels)
    for axes, panel in zip(grid, panels, strict=True):
        if axes.get_yscale() == "log":
            label_logs(axes.yaxis)
        if axes.get_xscale() == "log" and isinstance(panel, Dots):
            label_logs(axes.xaxis)
    if len(styles) > 1:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], **style) for style in styles.values()]
        outside_legend(figure, lines, [label(name) for name in styles])
    return figure


def _legend(panel: Panel | Dots, theme: Theme) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(panel, Panel):
        for curve in panel.curves:
            yield curve.name, _style(curve.look, theme, hollow=curve.hollow)
        for mark in panel.marks:
            yield mark.name, _mark_style(mark, theme)
        return
    for spots in panel.spots:
        yield spots.name, {**_style(spots.look, theme), "linestyle": ""}
    limits = _limits(panel)
    values = [one for spots in panel.spots for one in spots.values.values()]
    if any(one.collapsed and _is_inside(one.mean, limits) for one in values):
        yield COLLAPSED, _style(COLLAPSED, theme)


def _style(look: Look, theme: Theme, *, hollow: bool = False) -> dict[str, Any]:
    if look == COLLAPSED:
        ring = {"marker": "o", "markersize": 11, "markerfacecolor": "none"}
        return {"linestyle": "", "color": theme.text, **ring, "zorder": 4}
    if isinstance(look, str):
        return paper_style(look, theme)
    style = line_style(look, theme, marker=True)
    if not hollow:
        return style
    return {**style, "linestyle": (0, (2, 1.5)), "markerfacecolor": theme.background}


def _mark_style(mark: Mark, theme: Theme) -> dict[str, Any]:
    if mark.look is not None:
        color = _style(mark.look, theme)["color"]
        return {"color": color, "linewidth": 1.1, "linestyle": ":"}
    dashes = (0, (6, 3)) if mark.axis == "y" else (0, (1, 2))
    return {"color": theme.faint, "linewidth": 1.0, "linestyle": dashes}


def _draw_panel(axes: "Axes", panel: Panel, theme: Theme) -> None:
    for curve in panel.curves:
        style = _style(curve.look, theme, hollow=curve.hollow)
        x = [point for point, _ in curve.points]
        means = [statistic.mean for _, statistic in curve.points]
        errors = [statistic.standard_error or 0.0 for _, statistic in curve.points]
        bars = errors if np.any(errors) else None
        axes.errorbar(x, means, yerr=bars, capsize=2.5, **style)
        if curve.band and curve.points:
            _draw_band(axes, curve.points[0][1], style["color"])
    for mark in panel.marks:
        line = axes.axhline if mark.axis == "y" else axes.axvline
        line(mark.level, **_mark_style(mark, theme), zorder=1)
    axes.set(title=label(panel.title), xlabel=panel.x, ylabel=panel.y)
    _scale_x(axes, panel)
    values = [one.mean for curve in panel.curves for _, one in curve.points]
    values += [mark.level for mark in panel.marks if mark.axis == "y"]
    if not panel.bounded and _spans(values):
        axes.set_yscale("log")


def _draw_band(axes: "Axes", statistic: Statistic, color: str) -> None:
    error = statistic.standard_error or 0.0
    low, high = statistic.mean - error, statistic.mean + error
    axes.axhspan(low, high, color=color, alpha=0.18, linewidth=0, zorder=0.5)
    axes.axhline(statistic.mean, color=color, linewidth=0.8, linestyle=":", zorder=1)


def _scale_x(axes: "Axes", panel: Panel) -> None:
    points = sorted({x for curve in panel.curves for x, _ in curve.points})
    positive = [x for x in points if x > 0]
    if panel.scale == "symlog" and positive:
        axes.set_xscale("symlog", linthresh=positive[0])
        ends = (int(np.floor(np.log10(x))) for x in (positive[0], positive[-1]))
        decades = [10.0**power for power in range(next(ends), next(ends) + 1)]
        axes.set_xticks([0.0, *decades], ["0", *map(_tick, decades)])
        axes.set_xticks(positive, minor=True)
    elif panel.scale == "log" and positive:
        axes.set_xscale("log")
    if panel.ticks:
        axes.set_xticks(points, [f"{x:g}" for x in points])
        axes.minorticks_off()


def _tick(value: float) -> str:
    return f"1e{round(np.log10(value))}" if value < 0.01 else f"{value:g}"


def _spans(values: Sequence[float]) -> bool:
    """Returns whether numbers are positive and so far apart that a log axis helps."""
    found = np.array([value for value in values if np.isfinite(value)])
    return bool(found.size and found.min() > 0 and found.max() >= 3 * found.min())


def _share_limits(grid: Sequence["Axes"], panels: Sequence[Panel | Dots]) -> None:
    groups: dict[str, list[Axes]] = {}
    for axes, panel in zip(grid, panels, strict=True):
        if isinstance(panel, Panel) and panel.group:
            groups.setdefault(panel.group, []).append(axes)
    for members in groups.values():
        if len({axes.get_yscale() for axes in members}) > 1:
            for axes in members:
                axes.set_yscale("log")
        limits = np.array([axes.get_ylim() for axes in members])
        for axes in members:
            axes.set_ylim(limits[:, 0].min(), limits[:, 1].max())


def _draw_dots(axes: "Axes", panel: Dots, theme: Theme, *, named: bool) -> None:
    places = {name: -float(number) for number, name in enumerate(panel.names)}
    limits = _limits(panel)
    for number, spots in enumerate(panel.spots):
        style = {**_style(spots.look, theme), "linestyle": ""}
        offset = 0.75 * (0.5 - (number + 0.5) / len(panel.spots))
        for name, value in spots.values.items():
            if np.isfinite(value.mean):
                _draw_dot(axes, value, places[name] + offset, limits, style, theme)
    if panel.zero is not None:
        axes.axvline(panel.zero, color=theme.text, linewidth=0.8, zorder=1)
    means = [one.mean for spots in panel.spots for one in spots.values.values()]
    if panel.log and _spans(means):
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=5)
        if limits:
            axes.set_xlim(*limits)
    names = [label(name) if named else "" for name in panel.names]
    axes.set_yticks(list(places.values()), names)
    axes.set_ylim(0.6 - len(places), 0.6)
    axes.set(title=label(panel.title), xlabel=panel.x)


def _draw_dot(
    axes: "Axes",
    value: Interval,
    y: float,
    limits: tuple[float, float] | None,
    style: dict[str, Any],
    theme: Theme,
) -> None:
    mean = value.mean
    text = {"va": "center", "color": style["color"], "fontsize": 8}
    if limits and mean > limits[1]:
        axes.text(limits[1], y, f"{mean:.2g} \N{RIGHTWARDS ARROW}", ha="right", **text)
    elif limits and mean < limits[0]:
        axes.text(limits[0], y, f"\N{LEFTWARDS ARROW} {mean:.2g}", ha="left", **text)
    else:
        bars = [[mean - value.low], [value.high - mean]]
        axes.errorbar(
            [mean], [y], xerr=bars if np.any(bars) else None, capsize=2.5, **style
        )
        if value.collapsed:
            axes.plot([mean], [y], **_style(COLLAPSED, theme))


def _is_inside(value: float, limits: tuple[float, float] | None) -> bool:
    return limits is None or limits[0] <= value <= limits[1]


def _limits(panel: Dots) -> tuple[float, float] | None:
    """Returns limits of x that hold all but what a collapse put out of scale."""
    values = [one for spots in panel.spots for one in spots.values.values()]
    if panel.zero is None or not any(one.collapsed for one in values):
        return None
    kept = [one for one in values if not one.collapsed and np.isfinite(one.mean)]
    if not kept:
        return None
    low = min(panel.zero, *(one.low for one in kept))
    high = max(panel.zero, *(one.high for one in kept))
    margin = 0.3 * (high - low) or 1.0
    return low - margin, high + margin
