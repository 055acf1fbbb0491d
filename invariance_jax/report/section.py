"""What the report shows of an experiment, before it is drawn."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from invariance_jax.report.read import Run
from invariance_jax.report.style import Draw
from invariance_jax.report.tables import Table


class Shown(NamedTuple):
    """A figure, not yet drawn: the stem of its files, heading, caption, drawing."""

    name: str
    title: str
    caption: str
    draw: Draw | None


class Section(NamedTuple):
    """What the report shows of an experiment.

    Attributes:
      title: its heading.
      text: what is measured.
      figures: runs -> its figures.
      tables: runs -> its tables.
      more: runs -> every number.
      brief: how many of its tables a terminal shows; all, if None.
      folded: whether `more` is on the page, folded away; else it is a file only.
    """

    title: str
    text: str
    figures: Callable[[Sequence[Run]], list[Shown]]
    tables: Callable[[Sequence[Run]], list[Table]]
    more: Callable[[Sequence[Run]], list[Table]]
    brief: int | None = None
    folded: bool = True


def nothing(runs: Sequence[Run]) -> list[Table]:
    """Returns the tables of a section that has none."""
    return []


def are_repeated(runs: Sequence[Run]) -> bool:
    """Returns whether some run has several seeds."""
    return any(run.results.n > 1 for run in runs)


def bars(runs: Sequence[Run]) -> str:
    """Returns what a caption says of error bars."""
    return " Bars: standard error over seeds." if are_repeated(runs) else ""
