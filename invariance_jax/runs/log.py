"""Metrics of a run: `metrics.jsonl`, TensorBoard event files, Weights & Biases."""

import json
import logging
import os

from etils import epath
from tensorboardX import SummaryWriter

from invariance_jax.runs.tracking import Tracker
from invariance_jax.runs.workdir import Owner
from invariance_jax.runtime.files import AnyPath, is_url, named, sync, write_text
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.settings import Settings
from invariance_jax.types import Json

_log = logging.getLogger(__name__)

_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends rows of numbers to `metrics.jsonl`, in the main process only.

    Removes the rows after the step that a run resumes from: the run writes them again.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        first_step: int,
        rows: int = 0,  # expected number of rows until first_step
        settings: Settings | None = None,
    ):
        """Opens the log; warns about damaged and missing rows."""
        self._owner, self._kept = owner, list[str]()
        self._board, self._tracker = None, None
        if not is_main_process():
            return
        self._path = owner.workdir / _FILE
        lines, damaged = read_rows(owner.workdir)
        for number, text in damaged:
            _log.warning("%s: damaged line %d is dropped: %s", self._path, number, text)
        self._kept = [line for line, row in lines if row["step"] <= first_step]
        missing = _missing(self._path, len(self._kept), rows, first_step)
        if missing:
            _log.warning("%s; the run continues without them", missing)
        owner.check()
        write_text(self._path, "".join(self._kept))
        self._board = SummaryWriter(
            os.fspath(self._path.parent / "tensorboard"), purge_step=first_step + 1
        )
        if settings is not None and settings.logging.wandb_project is not None:
            self._tracker = Tracker(settings, owner.workdir, self._kept)

    @property
    def seconds(self) -> float:
        """Training time until the last kept row, summed over all starts, in seconds."""
        seconds = [json.loads(line).get("seconds", 0.0) for line in self._kept]
        return max(seconds, default=0.0)

    @property
    def count(self) -> int:
        """Number of rows on the disk, which a checkpoint stores in its note."""
        return len(self._kept)

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Writes one row; None stands for an unknown value."""
        if self._board is None:
            return
        self._owner.check()
        self._kept.append(json.dumps({"step": step, **values}) + "\n")
        with named(self._path):
            if is_url(self._path):  # object stores cannot append to a file
                write_text(self._path, "".join(self._kept))
            else:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(self._kept[-1])
                    sync(file)
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._tracker is not None:
            self._tracker.write(step, values)

    def close(self) -> None:
        """Closes the event file and the run of Weights & Biases."""
        if self._board is not None:
            self._board.close()
        if self._tracker is not None:
            self._tracker.close()


def final_metrics(workdir: AnyPath, *, step: int, rows: int = 0) -> dict[str, float]:
    """Returns `loss.final` and `penalty.final`, from the last rows until a step.

    With fewer rows than expected, the last ones may be missing: returns neither.
    """
    path, (lines, damaged) = epath.Path(workdir) / _FILE, read_rows(workdir)
    for number, text in damaged:
        raise ValueError(
            f"{path}: line {number} is {text}, expected a row; remove it to evaluate "
            "without loss.final and penalty.final."
        )
    found = [row for _, row in lines if row["step"] <= step]
    missing = _missing(path, len(found), rows, step)
    if missing:
        _log.warning("%s; loss.final and penalty.final are left out", missing)
        return {}
    return {
        f"{name}.final": row[name]
        for row in found
        for name in ("loss", "penalty")
        if "loss" in row and name in row
    }


def _missing(path: epath.Path, found: int, rows: int, step: int) -> str:
    """Returns a message if fewer rows are found than expected, else an empty one."""
    if found >= rows:
        return ""
    lost = rows - found
    return f"{path}: {lost} of the {rows} rows until step {step} are missing"


def read_rows(
    workdir: AnyPath,
) -> tuple[list[tuple[str, Json]], list[tuple[int, str]]]:
    """Returns (line, row) of each valid line, and (number, text) of each damaged one.

    An incomplete last line, from a write that was cut off, is dropped.
    """
    path = epath.Path(workdir) / _FILE
    text = path.read_bytes().decode(errors="replace") if path.exists() else ""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("}\n"):
        del lines[-1]
    rows, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row.get("seconds", 0.0) + 0.0  # raises unless it is a number
            rows.append((line, {**row, "step": int(row["step"])}))
        except Exception:  # each kind of damage raises another type
            damaged.append((number, repr(line.strip()[:40])))
    return rows, damaged
