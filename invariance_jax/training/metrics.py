"""Metrics of a run: `metrics.jsonl`, TensorBoard event files, Weights & Biases."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from invariance_jax.training.tracking import Tracker


class MetricsWriter:
    """Appends rows of numbers to the log of a work directory.

    Rows after the step that a run starts from are removed when it opens, since the run
    will write them again: no step is logged twice and none is missing.
    """

    def __init__(
        self, workdir: str | Path, *, first_step: int, settings: Any | None = None
    ):
        """Opens the log.

        Args:
          workdir: the work directory of the run.
          first_step: finished steps of the state that the run starts from.
          settings: the result of `training.settings.resolve`; its
            `logging.wandb_project`, if there is one, gets the rows too.
        """
        self._tracker = None
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
        if settings is not None and settings.logging.wandb_project is not None:
            self._tracker = Tracker(settings, workdir, kept)

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
        if self._tracker is not None:
            self._tracker.write(step, values)

    def close(self) -> None:
        """Closes the event file, and the run of Weights & Biases."""
        self._board.close()
        if self._tracker is not None:
            self._tracker.close()

    def _lines(self) -> list[str]:
        """Returns the whole rows; a row that was cut off by a crash is left out."""
        if not self._path.exists():
            return []
        text = self._path.read_text(encoding="utf-8")
        return [line for line in text.splitlines(keepends=True) if line.endswith("}\n")]
