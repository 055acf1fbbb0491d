"""Weights & Biases: a copy of `metrics.jsonl`, one run over all starts."""

import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Iterable
from typing import Any

from invariance_jax.runtime.files import absolute, write_json

_FILE = "wandb.json"


def check_package(settings: Any) -> None:
    """Checks that what `logging.wandb_project` needs is installed.

    Args:
      settings: the result of `training.settings.resolve`.

    Raises:
      ValueError: if it is given and the package wandb is missing.
    """
    project = settings.logging.wandb_project
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"logging.wandb_project is {project!r}, but the package wandb is missing; "
            "expected `pip install 'invariance_jax[wandb]'`, or an empty key."
        )


class Tracker:
    """Copies the rows of a work directory to a run of Weights & Biases.

    The work directory keeps the id of the run and the last step that is surely there,
    so that a later start goes on with the same run and sends what it lacks, and nothing
    twice, though it trains some steps again. Whether rows go to a server or into a
    folder says `WANDB_MODE`, as usual. The server tells what it has; a folder does not,
    and one that a kill cuts off lacks rows: there, all are written at the end.
    """

    def __init__(
        self, settings: Any, workdir: str | os.PathLike[str], rows: Iterable[str]
    ):
        """Starts, or goes on with, the run.

        Args:
          settings: the result of `training.settings.resolve`, with a
            `logging.wandb_project`.
          workdir: the work directory of the run.
          rows: the lines of its `metrics.jsonl`.
        """
        import wandb

        workdir = absolute(workdir)
        self._file = workdir / _FILE
        known = {"id": secrets.token_hex(4), "step": 0}
        if self._file.exists():
            known = json.loads(self._file.read_text())
        self._id, self._sent = known["id"], known["step"]
        self._note()
        self._run = wandb.init(
            project=settings.logging.wandb_project,
            id=self._id,
            name="/".join(workdir.parts[-2:]),
            resume="allow",
            # Else seeds that train as one would all log to the first one's run.
            reinit="create_new",
            # What is on its way lies on this machine, if the work directory does not.
            dir=None if "://" in os.fspath(workdir) else os.fspath(workdir),
            config=settings.to_dict(),
            settings=wandb.Settings(console="off", silent=True),
        )
        if not self._run.offline:
            self._sent = max(self._sent, self._run.starting_step - 1)
        self._rows: list[tuple[int, dict[str, float]]] = []
        for line in rows:
            values = json.loads(line)
            self.write(values.pop("step"), values)

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Takes one row; all rows of a step become one, sent when the next one begins.

        Args:
          step: finished steps, not fewer than in the last call.
          values: name -> number; None is a number that is not known.
        """
        if step <= self._sent:
            return
        known = {name: value for name, value in values.items() if value is not None}
        if self._rows and self._rows[-1][0] == step:
            self._rows[-1][1].update(known)
            return
        if not self._run.offline:
            self._send()
        # That of the row, which may be sent much later.
        self._rows.append((step, {**known, "_timestamp": time.time()}))

    def close(self) -> None:
        """Sends the rows that are left, and tells whether the run ended by an error."""
        self._send()
        self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
        if not self._run.disabled:
            self._note()

    def _send(self) -> None:
        for step, row in self._rows:
            self._run.log(row, step=step)
            self._sent = step
        self._rows = []

    def _note(self) -> None:
        write_json(self._file, {"id": self._id, "step": self._sent})
