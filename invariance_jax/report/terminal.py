"""The results of one run as text, for a terminal."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from invariance_jax.report.experiments import sections
from invariance_jax.report.read import Run
from invariance_jax.report.results import check_results
from invariance_jax.report.tables import as_text, note_on, result_tables


def table(results: Mapping[str, Any]) -> str:
    """Returns the result tables of one run as text, for a terminal.

    Args:
      results: the content of a `results.json`.

    Raises:
      ValueError: if the format is newer, or the summary or an experiment is not as
        documented.
    """
    run = Run(
        name="",
        path=epath.Path(),
        config={},
        derived={},
        environment={},
        command=None,
        results=check_results(results),
        logs=(),
        samples=None,
    )
    contents = result_tables(run.results)
    for section in sections([run]).values():
        contents += section.tables([run])[: section.brief]
    blocks = [as_text(content) for content in contents if content.rows]
    return "\n\n".join([f"Results: {note_on([run])}", *blocks])
