"""How figures look: palette, two themes, and a figure as PNG and SVG.

Colours are those of Okabe and Ito (2008), told apart under every common colour
blindness; runs also differ in line style and marker, so grey print stays readable.
Matplotlib is imported when a figure is drawn, and no global state of it is changed.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


class Theme(NamedTuple):
    """Colours of a figure; `runs` is cycled over the runs that are compared."""

    background: str
    text: str
    faint: str
    grid: str
    runs: tuple[str, ...]


LIGHT = Theme(
    background="#ffffff",
    text="#1b1f24",
    faint="#7d7d7d",
    grid="#e3e6ea",
    runs=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)

DARK = Theme(
    background="#171b21",
    text="#e4e8ee",
    faint="#9b9b9b",
    grid="#2f363f",
    runs=("#56b4e9", "#e69f00", "#2fc79a", "#e59cc5", "#f0e442", "#4f8ff7"),
)

LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))

MARKERS = ("o", "s", "^", "D", "v", "P")

WIDTH = 9.6
"""Of a figure, inches: that of the page, so that all have letters of one size."""

Draw = Callable[[Theme], "Figure"]


class Picture(NamedTuple):
    """A finished figure: its PNG in both themes and its SVG in the light one."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes
    svg: bytes


@contextmanager
def _settings(theme: Theme) -> Iterator[None]:
    import matplotlib

    settings: Any = {
        "axes.axisbelow": True,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": theme.background,
        "axes.grid": True,
        "axes.labelcolor": theme.text,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlesize": 10,
        "axes.titlecolor": theme.text,
        "figure.constrained_layout.h_pad": 0.08,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.facecolor": theme.background,
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.labelcolor": theme.text,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "figure.dpi": 150,
        # The same numbers give the same bytes.
        "svg.hashsalt": "invariance_jax",
        "text.color": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
    }
    with matplotlib.rc_context(settings):
        yield


def render(name: str, title: str, caption: str, draw: Draw) -> Picture:
    """Returns a figure drawn in both themes.

    Args:
      name: the stem of its files.
      title: its heading on the page.
      caption: what it shows, one or two sentences.
      draw: theme -> figure.
    """
    with _settings(LIGHT):
        figure = draw(LIGHT)
        light, svg = _save(figure, "png"), _save(figure, "svg")
    with _settings(DARK):
        # The same letters in other colours: the layout, which is slow, is the same.
        other = draw(DARK)
        other.set_layout_engine("none")
        for axes, like in zip(other.axes, figure.axes, strict=True):
            axes.set_position(like.get_position(original=True))
        dark = _save(other, "png")
    return Picture(name, title, caption, light, dark, svg)


def _save(figure: "Figure", kind: str) -> bytes:
    """Returns a file of a figure; draws it once, where `savefig` does so twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.BytesIO()
    if kind == "png":
        FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
        figure.set_layout_engine("none")
    else:
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    return stream.getvalue()


def label(text: str) -> str:
    """Returns a name as Matplotlib shall write it: no formulas, never hidden.

    >>> label("a$b"), label("_run")
    ('a\\\\$b', ' _run')
    """
    escaped = text.replace("$", r"\$")
    # Matplotlib leaves labels that start with an underscore out of legends.
    return f" {escaped}" if escaped.startswith("_") else escaped


def line_style(index: int, theme: Theme, *, marker: bool = False) -> dict[str, Any]:
    """Returns how the index-th of the compared runs is drawn."""
    style: dict[str, Any] = {
        "color": theme.runs[index % len(theme.runs)],
        "linestyle": LINES[(index + index // len(LINES)) % len(LINES)],
    }
    return {**style, "marker": MARKERS[index % len(MARKERS)]} if marker else style


def paper_style(kind: str, theme: Theme) -> dict[str, Any]:
    """Returns how the paper's numbers with or without a penalty are drawn."""
    common = {"color": theme.faint, "linewidth": 1.1, "zorder": 1.5}
    if kind == "penalty":
        return {**common, "linestyle": "-", "marker": "+", "markersize": 6.5}
    return {**common, "linestyle": ":", "marker": "x"}


def label_logs(axis: "Axis") -> None:
    """Labels a logarithmic axis at 1, 2, 5 and so on, as many as it needs, and briefly.

    >>> brief(2e-05), brief(0.003)
    ('2e-5', '0.003')
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    if decades > 2.5:
        subs = (1.0,)
    elif decades > 0.8:
        subs = (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(brief))
    axis.set_minor_locator(NullLocator())


def brief(value: float, position: float | None = None) -> str:
    """Returns a number as an axis shows it; Matplotlib also gives its position."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def subplots(
    count: int, columns: int, size: tuple[float, float]
) -> tuple["Figure", list["Axes"]]:
    """Returns a figure and its axes, `columns` per row, each of `size` inches."""
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def outside_legend(
    figure: "Figure", handles: Sequence[Any], titles: Sequence[str], **settings: Any
) -> None:
    """Adds a legend under the axes, for which the figure grows.

    It has as many columns as the figure is wide.
    """
    longest = max(map(len, titles), default=0)
    fitting = int(figure.get_figwidth() / (0.5 + 0.08 * longest))
    columns = max(1, min(4, len(titles), fitting))
    lines = -(-len(titles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.19 * lines)
    figure.legend(
        handles, titles, loc="outside lower center", ncols=columns, **settings
    )
