"""The look of figures, and their export as SVG for both colour schemes and as PNG.

The colours are those of Okabe and Ito (2008), which remain distinct under every common
colour blindness. Runs also differ in line and marker, so that grey prints stay
readable. A figure is drawn once, in light colours. In its SVG each colour is a CSS
variable, which has another value if the reader's screen is dark.
"""

import base64
import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import ArrayLike

WIDTH, NARROW = 11.4, 4.6
"""Widths of figures that fill the page or a phone, inches; the font size is equal."""

_SMALLEST = 0.72  # smallest scale of a figure on a screen: letters have 9 pixels

PAGE, TEXT, FAINT = "#fefefe", "#1b1f24", "#6f6f6f"

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
"""Colours of the runs, cycled."""

_LIGHT = (PAGE, TEXT, FAINT, "#e3e6ea", *COLORS)
_DARK_COLORS = ("#56b4e9", "#e69f00", "#2fc79a", "#e59cc5", "#f0e442", "#4f8ff7")
_DARK = ("#171b21", "#e4e8ee", "#9b9b9b", "#2f363f", *_DARK_COLORS)

_LINES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")

_FONTS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

Style = dict[str, Any]


class Picture(NamedTuple):
    """A finished figure."""

    name: str  # stem of its file
    title: str
    caption: str
    url: str  # the SVG for the page, as a data URL
    png: bytes
    least: int  # smallest width on a screen, pixels
    kind: str = "figure"


@contextlib.contextmanager
def looks() -> Iterator[None]:
    """Applies `report.mplstyle` to Matplotlib in place of the user's settings."""
    look = matplotlib.style.context(f"{__package__}.report", after_reset=True)
    with look, warnings.catch_warnings():
        # The PNG shows a box for a letter that the font lacks.
        warnings.filterwarnings("ignore", "Glyph")
        yield


def picture(name: str, title: str, caption: str, figure: Figure) -> list[Picture]:
    """Returns a figure in both formats; it must be drawn and exported in `looks`."""
    png, svg = io.BytesIO(), io.StringIO()
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout is done, and slow to repeat
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(svg, metadata=empty)
    least = round(_SMALLEST * 96 * figure.get_figwidth())
    content = base64.b64encode(_adaptive(svg.getvalue()).encode()).decode()
    url = f"data:image/svg+xml;base64,{content}"
    return [Picture(name, title, caption, url, png.getvalue(), least)]


def _adaptive(svg: str) -> str:
    """Returns an SVG whose colours follow the colour scheme of the reader's screen."""
    svg = svg[svg.index("<svg") :].replace("'DejaVu Sans'", _FONTS)
    light = dark = ""
    for number, (color, other) in enumerate(zip(_LIGHT, _DARK, strict=True)):
        svg = svg.replace(f": {color}", f": var(--c{number})")
        light, dark = f"{light}--c{number}: {color}; ", f"{dark}--c{number}: {other}; "
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}"
    style = f"<style>:root {{ {light}}} {dark}</style>"
    return re.sub("<svg[^>]*>", lambda tag: tag[0] + style, svg, count=1)


def label(text: str) -> str:
    """Returns a text as a Matplotlib label: shortened, without formulas, never hidden.

    >>> label("a$b"), label("_run")
    ('a\\\\$b', ' _run')
    """
    text = " ".join(text.split())
    text = text if len(text) <= 60 else f"{text[:40]}…{text[-18:]}"
    # Matplotlib leaves labels that start with an underscore out of legends.
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def line_style(color: int, look: int = 0) -> Style:
    """Returns the style of a curve; `look` numbers the curves of one colour."""
    number = color + color // len(_LINES) + look
    style = {"color": COLORS[color % 6], "linestyle": _LINES[number % 6]}
    style["marker"] = _MARKERS[number % 6]
    return style | ({"markerfacecolor": PAGE} if look else {})


def paper_style(name: str) -> Style:
    """Returns the style of the paper's numbers, with or without a penalty."""
    line, marker = (":", "x") if "no penalty" in name else ("-", "+")
    return {"color": FAINT, "linewidth": 1.1, "linestyle": line, "marker": marker}


def label_logs(axis: Axis) -> None:
    """Sets the ticks of a logarithmic axis; a shorter range has more per decade."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    few = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)
    subs = few if decades > 0.8 else (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(brief))
    axis.set_minor_locator(NullLocator())


def brief(value: float, _: float | None = None) -> str:
    """Returns a number as a short tick label.

    >>> brief(-2e-05), brief(0.003)
    ('-2e-5', '0.003')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def spans(values: ArrayLike) -> bool:
    """Returns whether the finite values are positive and span a factor of 3."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    return bool(finite.size and finite.min() > 0 and finite.max() >= 3 * finite.min())


def subplots(
    count: int, columns: int, size: tuple[float, float], *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """Returns a figure and its axes, `columns` per row, each of `size` inches."""
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel().tolist()
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def add_legend(figure: Figure, entries: Mapping[str, Style]) -> None:
    """Adds a legend below the axes and makes the figure higher for it."""
    fitting = int(figure.get_figwidth() / (0.5 + 0.08 * max(map(len, entries))))
    columns = max(1, min(5, len(entries), fitting))
    lines = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.19 * lines)
    handles = [Line2D([], [], label=label(n), **style) for n, style in entries.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
