"""How figures look, and a figure as SVG for both colour schemes and as PNG.

Colours are those of Okabe and Ito (2008), told apart under every common colour
blindness; runs also differ in line and marker, so that grey print stays readable. A
figure is drawn once, in light colours: in its SVG each of them is a variable, which has
another value where the reader's screen is dark.
"""

import base64
import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, NamedTuple

import matplotlib
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
"""Of figures as wide as the page and as a phone, inches, with letters of one size."""

_SMALLEST = 0.72  # share of its size to which a figure shrinks: to letters of 9 pixels

PAGE, TEXT, FAINT = "#fefefe", "#1b1f24", "#6f6f6f"

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")
"""Of the runs that are compared, cycled."""

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
    svg: str  # for the page
    png: bytes
    least: int  # pixels of a screen that it is at least wide
    kind: str = "figure"

    @property
    def source(self) -> str:
        """The SVG as the address of an image."""
        content = base64.b64encode(self.svg.encode()).decode()
        return f"data:image/svg+xml;base64,{content}"


@contextlib.contextmanager
def looks() -> Iterator[None]:
    """Makes Matplotlib draw as `report.mplstyle` says, whatever is set here."""
    own = resources.files(__package__).joinpath("report.mplstyle")
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Of a letter that the font lacks, the PNG shows a box.
        warnings.filterwarnings("ignore", "Glyph")
        matplotlib.rcdefaults()
        with resources.as_file(own) as path:
            matplotlib.rc_file(path, use_default_template=False)
        yield


def picture(name: str, title: str, caption: str, figure: Figure) -> list[Picture]:
    """Returns a figure that was drawn within `looks`."""
    png, svg = io.BytesIO(), io.StringIO()
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # it is slow, and done
    empty = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(svg, metadata=empty)
    least = round(_SMALLEST * 96 * figure.get_figwidth())
    adaptive = _adaptive(svg.getvalue())
    return [Picture(name, title, caption, adaptive, png.getvalue(), least)]


def _adaptive(svg: str) -> str:
    """Returns an SVG whose colours follow the colour scheme of the reader's screen."""
    svg = svg[svg.index("<svg") :].replace("'DejaVu Sans'", _FONTS)
    light = dark = ""
    for number, (color, other) in enumerate(zip(_LIGHT, _DARK, strict=True)):
        svg = svg.replace(f": {color}", f": var(--c{number})")
        light, dark = f"{light}--c{number}: {color}; ", f"{dark}--c{number}: {other}; "
    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}"
    style = f"<style>:root {{ {light}}} {dark}</style>"
    return re.sub("<svg[^>]*>", lambda found: found[0] + style, svg, count=1)


def label(text: str) -> str:
    """Returns a name as Matplotlib shall write it: short, no formulas, never hidden.

    >>> label("a$b"), label("_run")
    ('a\\\\$b', ' _run')
    """
    text = " ".join(text.split())
    text = text if len(text) <= 60 else f"{text[:40]}…{text[-18:]}"
    # Matplotlib leaves labels that start with an underscore out of legends.
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def line_style(color: int, look: int = 0) -> Style:
    """Returns how a curve is drawn; those of one colour differ in their look."""
    number = color + color // len(_LINES) + look
    style = {"color": COLORS[color % 6], "linestyle": _LINES[number % 6]}
    style["marker"] = _MARKERS[number % 6]
    return style | ({"markerfacecolor": PAGE} if look else {})


def paper_style(name: str) -> Style:
    """Returns how the paper's numbers with or without a penalty are drawn."""
    line, marker = (":", "x") if "no penalty" in name else ("-", "+")
    return {"color": FAINT, "linewidth": 1.1, "linestyle": line, "marker": marker}


def label_logs(axis: Axis) -> None:
    """Labels a logarithmic axis at 1, 2, 5 and so on, as many as it needs, briefly."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    few = (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)
    subs = few if decades > 0.8 else (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(brief))
    axis.set_minor_locator(NullLocator())


def brief(value: float, _: float | None = None) -> str:
    """Returns a number as an axis shows it.

    >>> brief(-2e-05), brief(0.003)
    ('-2e-5', '0.003')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def spans(values: ArrayLike) -> bool:
    """Returns whether numbers are positive and so far apart that a log axis helps."""
    found = np.asarray(values, float)
    found = found[np.isfinite(found)]
    return bool(found.size and found.min() > 0 and found.max() >= 3 * found.min())


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
    """Adds a legend under the axes, for which the figure grows."""
    fitting = int(figure.get_figwidth() / (0.5 + 0.08 * max(map(len, entries))))
    columns = max(1, min(5, len(entries), fitting))
    lines = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + 0.2 + 0.19 * lines)
    handles = [Line2D([], [], label=label(n), **style) for n, style in entries.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
