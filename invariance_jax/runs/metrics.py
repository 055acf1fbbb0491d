"""Metrics of a run: `metrics.jsonl`, TensorBoard event files, Weights & Biases."""

import json
import os
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from invariance_jax.runs.tracking import Tracker
from invariance_jax.runtime.files import write_text
from invariance_jax.runtime.processes import is_main_process


class MetricsWriter:
    """Appends rows of numbers to the log of a work directory.

    In every process but the main one it does nothing.

    Rows after the step that a run starts from are removed when it opens, since the run
    will write them again: no step is logged twice and none is missing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        first_step: int,
        settings: Any | None = None,
    ):
        """Opens the log.

        Args:
          workdir: the work directory of the run.
          first_step: finished steps of the state that the run starts from.
          settings: the result of `training.settings.resolve`; its
            `logging.wandb_project`, if there is one, gets the rows too.
        """
        self._board, self._tracker, self._kept = None, None, []
        if not is_main_process():
            return
        self._path = epath.Path(workdir) / "metrics.jsonl"
        # An object store knows no appending: there, the file is written as a whole.
        self._appends = "://" not in os.fspath(self._path)
        self._kept = [
            line
            for line in _whole_lines(self._path)
            if json.loads(line)["step"] <= first_step
        ]
        write_text(self._path, "".join(self._kept))
        self._board = SummaryWriter(
            os.fspath(self._path.parent / "tensorboard"), purge_step=first_step + 1
        )
        if settings is not None and settings.logging.wandb_project is not None:
            self._tracker = Tracker(settings, workdir, self._kept)

    @property
    def seconds(self) -> float:
        """Time that the kept rows took, over all starts of the run, in seconds."""
        seconds = [json.loads(line).get("seconds", 0.0) for line in self._kept]
        return max(seconds, default=0.0)

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Writes one row.

        Args:
          step: finished steps.
          values: name -> number; None is a number that is not known.
        """
        if self._board is None:
            return
        self._kept.append(json.dumps({"step": step, **values}) + "\n")
        if self._appends:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(self._kept[-1])
        else:
            write_text(self._path, "".join(self._kept))
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._board.flush()
        if self._tracker is not None:
            self._tracker.write(step, values)

    def close(self) -> None:
        """Closes the event file, and the run of Weights & Biases."""
        if self._board is not None:
            self._board.close()
        if self._tracker is not None:
            self._tracker.close()


def final_metrics(workdir: str | os.PathLike[str], *, step: int) -> dict[str, float]:
    """Returns `loss.final` and `penalty.final`, those of the last rows until a step.

    Args:
      workdir: the work directory of the run; without a log there are none.
      step: finished steps of the checkpoint, after which a killed run has more rows.
    """
    lines = _whole_lines(epath.Path(workdir) / "metrics.jsonl")
    rows = [
        row for row in map(json.loads, lines) if "loss" in row and row["step"] <= step
    ]
    return {
        f"{name}.final": row[name]
        for row in rows
        for name in ("loss", "penalty")
        if name in row
    }


def _whole_lines(path: epath.Path) -> list[str]:
    """Returns the rows of a log; one that was cut off by a crash is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith("}\n")]
