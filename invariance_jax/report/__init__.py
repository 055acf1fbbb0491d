"""Draws the report of one finished run, or the comparison of several.

Nothing is measured here: the report shows what the runs left in their work directories.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from invariance_jax.types import Json

__all__ = ["comparison_text", "run", "table"]


def run(
    workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> Path | epath.Path:
    """Writes a report; returns the path of its page, `report.html` in `out`.

    All other work directories are compared to the first; `out` may be one of them.
    Writes `report.html` (one file that a browser opens without a network),
    `figures/*.png` and `tables/*.csv` and no other file. Before the first one it checks
    all work directories: ValueError if one is missing, unfinished, damaged, given twice
    or of another format, or if `out` holds a `report.html` of another origin.
    """
    from invariance_jax.report import assemble

    return assemble.write(workdirs, out)


def table(results: Json, *, of_sweep: bool = False) -> str:
    """Returns a text with the main numbers of a `results.json` and their meaning.

    A run that is not part of a sweep is told how to see the effect of its penalty.
    """
    from invariance_jax.report import compare, read

    return compare.terminal_text(read.check_results(results), of_sweep=of_sweep)


def comparison_text(workdirs: Sequence[str | os.PathLike[str]]) -> str:
    """Returns a text: main numbers of several runs, and differences to the first."""
    from invariance_jax.report import compare, read

    return compare.Comparison(read.read_runs(workdirs)).text()
