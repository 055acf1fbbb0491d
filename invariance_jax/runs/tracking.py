"""Weights & Biases: a copy of `metrics.jsonl`, one run over all starts."""

import functools
import importlib.util
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterable
from typing import Any

from etils import epath

from invariance_jax.runtime.files import is_url, write_json
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.settings import Settings, to_dict

_log = logging.getLogger(__name__)

_FILE = "wandb.json"
_SECONDS = 30.0  # that its server is waited for


def check_tracking(settings: Settings) -> None:
    """Raises ValueError if `logging.wandb_project` lacks the package or a key."""
    project = settings.logging.wandb_project
    if project is None:
        return
    if importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"logging.wandb_project is {project!r}, but the package wandb is missing; "
            "expected `pip install 'invariance_jax[wandb]'`, or None."
        )
    import wandb

    online = wandb.setup().settings.mode in (None, "online", "run", "shared")
    try:
        if online and is_main_process():
            wandb.login()
    except wandb.Error as error:
        raise ValueError(
            f"logging.wandb_project is {project!r}, but Weights & Biases knows no key "
            f"({error}); expected WANDB_API_KEY or WANDB_MODE=offline in the "
            "environment, or None."
        ) from error


class Tracker:
    """Copies the rows of a work directory to a run of Weights & Biases.

    `wandb.json` keeps its id and the last step that is surely there, so that a later
    start sends what is missing, and nothing twice. A server tells what it has; a folder
    (`WANDB_MODE`) does not, and loses rows in a kill: there all are written at the end.
    """

    def __init__(self, settings: Settings, workdir: epath.Path, rows: Iterable[str]):
        """Starts the run, or goes on with it and the lines of its `metrics.jsonl`."""
        self._file = workdir / _FILE
        self._id, self._sent = secrets.token_hex(4), 0
        if self._file.exists():
            known = json.loads(self._file.read_text())
            self._id, self._sent = known["id"], known["step"]
        self._note()
        self._run = self._start(settings, workdir)
        if not self._run.offline:
            self._sent = max(self._sent, self._run.starting_step - 1)
        self._rows: list[tuple[int, dict[str, float]]] = []
        for line in rows:
            values = json.loads(line)
            self.write(values.pop("step"), values)

    def _start(self, settings: Settings, workdir: epath.Path) -> Any:
        import wandb

        start = functools.partial(
            wandb.init,
            project=settings.logging.wandb_project,
            id=self._id,
            name="/".join(workdir.parts[-2:]),
            resume="allow",
            # The run of another seed may be open.
            reinit="create_new",
            # On its way it is on this machine, if the work directory is not.
            dir=None if is_url(workdir) else os.fspath(workdir),
            config=to_dict(settings),
            settings=wandb.Settings(console="off", silent=True, init_timeout=_SECONDS),
        )
        try:
            return start()
        except wandb.Error as error:
            _log.warning(
                "Weights & Biases does not answer (%s): the rows go to %s, as with "
                "WANDB_MODE=offline; `wandb sync` sends them",
                *(str(error).splitlines()[0], workdir / "wandb"),
            )
            return start(mode="offline")

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Takes a row; all rows of a step become one, sent when the next one begins."""
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
