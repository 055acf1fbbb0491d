"""Figures as data: panels of curves or of dots, which `drawing` draws in any theme.

What a figure shows is decided without Matplotlib. Runs differ in colour, line and
marker; the second of two kinds of numbers of a run is hollow and dashed; numbers of the
paper are grey.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from invariance_jax.report.paper import KINDS
from invariance_jax.report.results import Statistic

COLLAPSED = "collapsed"
"""The look of a ring around a point."""

Look = int | str


class Curve(NamedTuple):
    """Points that a line joins.

    Attributes:
      name: in the legend, where a name stands once; an empty one does not.
      look: number of the run, one of the paper's kinds, or `COLLAPSED`.
      points: (x, number), in the order of x.
      hollow: whether markers are open and the line is dashed.
      band: whether the first number is also a horizontal band, as high as its error.
    """

    name: str
    look: Look
    points: Sequence[tuple[float, Statistic]]
    hollow: bool = False
    band: bool = False


class Mark(NamedTuple):
    """A line across a panel.

    Attributes:
      axis: "x" or "y", on which the level lies.
      level: where.
      name: in the legend.
      look: as that of a curve; None is a thin grey line.
    """

    axis: str
    level: float
    name: str
    look: Look | None = None


class Panel(NamedTuple):
    """Curves over one x.

    Attributes:
      title: above the panel.
      x: the text at the axis.
      y: the text at the axis, which is logarithmic where the numbers span it.
      curves: those that are drawn.
      marks: lines across the panel.
      scale: of x, "linear", "log" or "symlog".
      ticks: whether the ticks of x are the points themselves; not of "symlog".
      group: panels of one group, if it has a name, have the same limits of y.
      bounded: whether y is a share, which is never logarithmic.
    """

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    marks: Sequence[Mark] = ()
    scale: str = "linear"
    ticks: bool = False
    group: str = ""
    bounded: bool = False


class Interval(NamedTuple):
    """A number with the ends of its bar, and whether it is that of a collapse."""

    mean: float
    low: float
    high: float
    collapsed: bool = False


class Spots(NamedTuple):
    """The dots of one run: name in the legend, look, and category -> number."""

    name: str
    look: Look
    values: Mapping[str, Interval]


class Dots(NamedTuple):
    """Numbers of categories that stand below each other.

    Attributes:
      title: above the panel.
      x: the text at the axis.
      spots: the dots of each run.
      names: the categories, from above.
      zero: the level of a vertical line, if there is one.
      log: whether x is logarithmic where the numbers span it.
    """

    title: str
    x: str
    spots: Sequence[Spots]
    names: Sequence[str]
    zero: float | None = None
    log: bool = False


def interval(statistic: Statistic) -> Interval:
    """Returns a number with a bar of its standard error."""
    error = statistic.standard_error or 0.0
    return Interval(statistic.mean, statistic.mean - error, statistic.mean + error)


def paper_curves(
    x: Sequence[float], found: Mapping[str, Sequence[float]], encoder: str
) -> list[Curve]:
    """Returns the two curves of the paper.

    Args:
      x: where they were measured.
      found: kind -> numbers.
      encoder: that of the paper.
    """
    return [
        Curve(
            f"paper, {kind} ({encoder})",
            kind,
            [(at, Statistic(y, None, 3)) for at, y in zip(x, found[kind], strict=True)],
        )
        for kind in KINDS
    ]
