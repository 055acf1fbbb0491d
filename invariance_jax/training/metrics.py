"""Metrics of a run: rows of `metrics.jsonl` and TensorBoard event files."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsWriter:
    """Appends rows of numbers to the log of a work directory.

    Rows after the step that a run starts from are removed when it opens, since the run
    will write them again: no step is logged twice and none is missing.
    """

    def __init__(self, workdir: str | Path, *, first_step: int):
        """Opens the log.

        Args:
          workdir: the work directory of the run.
          first_step: finished steps of the state that the run starts from.
        """
        self._path = Path(workdir) / "metrics.jsonl"
        kept = [
            line for line in self._lines() if json.loads(line)["step"] <= first_step
        ]
        temporary = self._path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self._path)
        self._board = SummaryWriter(
            str(Path(workdir) / "tensorboard"), purge_step=first_step + 1
        )

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Writes one row.

        Args:
          step: finished steps.
          values: name -> number; None is a number that is not known.
        """
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._board.close()

    def _lines(self) -> list[str]:
        """Returns the whole rows; a row that was cut off by a crash is left out."""
        if not self._path.exists():
            return []
        text = self._path.read_text(encoding="utf-8")
        return [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
