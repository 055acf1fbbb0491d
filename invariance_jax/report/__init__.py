"""Draws the report of one finished run, or the comparison of several.

Nothing is measured here: all numbers come from the `results.json` of the runs.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from invariance_jax.types import Json

__all__ = ["comparison_text", "run", "table"]


def run(
    workdirs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> Path | epath.Path:
    """Returns the path of the report that it wrote, `report.html` in `out`.

    Writes `report.html` (one file that a browser opens without a network),
    `figures/*.png` and `tables/*.csv` and no other file; all work directories are read
    and checked before the first is written.

    Args:
      workdirs: finished work directories; several are compared, to the first.
      out: the directory to write to, made if needed; may be a work directory.

    Returns:
      The path of `report.html`.

    Raises:
      ValueError: if a work directory is missing, unfinished, given twice or of another
        format, or `out` is a file.
    """
    _import_matplotlib()
    from invariance_jax.report import assemble

    return assemble.write(workdirs, out)


def table(results: Json) -> str:
    """Returns up to three main numbers of a `results.json`, and what they say."""
    from invariance_jax.report import compare, read

    return compare.terminal_text(read.check_results(results))


def comparison_text(workdirs: Sequence[str | os.PathLike[str]]) -> str:
    """Returns the main numbers of several runs, and their differences to the first."""
    from invariance_jax.report import compare, read

    return compare.Comparison(read.read_runs(workdirs)).text()


def _import_matplotlib() -> None:
    """Imports Matplotlib, which an unknown MPLBACKEND would stop; none is used here."""
    backend = os.environ.get("MPLBACKEND")
    if not backend or "matplotlib" in sys.modules:
        return
    os.environ["MPLBACKEND"] = ""
    import matplotlib

    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):  # whoever uses it gets Matplotlib's own error
        matplotlib.rcParams["backend"] = backend
