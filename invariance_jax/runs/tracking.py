"""Weights & Biases: a copy of `metrics.jsonl`, one W&B run for all starts."""

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
_SECONDS = 30.0  # to wait for the server


def check_tracking(settings: Settings) -> None:
    """Raises ValueError if `logging.wandb_project` lacks the package or an API key."""
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
            f"logging.wandb_project is {project!r}, but Weights & Biases finds no API "
            f"key ({error}); expected WANDB_API_KEY or WANDB_MODE=offline in the "
            "environment, or None."
        ) from error


class Tracker:
    """Copies the rows of a work directory to a run of Weights & Biases.

    `wandb.json` keeps the id of that run and the last step that was surely sent, so a
    later start sends the missing rows, and no row twice. A server reports the last step
    it has. An offline folder (`WANDB_MODE`) does not, and a killed process loses rows
    in it: offline, all rows are therefore written at the end.
    """

    def __init__(self, settings: Settings, workdir: epath.Path, rows: Iterable[str]):
        """Starts or resumes the W&B run, and sends `rows`, lines of `metrics.jsonl`."""
        self._file = workdir / _FILE
        self._id, self._sent = secrets.token_hex(4), 0
        if self._file.exists():
            saved = json.loads(self._file.read_text())
            self._id, self._sent = saved["id"], saved["step"]
        self._save()
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
            # The W&B run of another seed may be open.
            reinit="create_new",
            # None: wandb's default folder, on this machine, as it writes to no URL.
            dir=None if is_url(workdir) else os.fspath(workdir),
            config=to_dict(settings),
            settings=wandb.Settings(console="off", silent=True, init_timeout=_SECONDS),
        )
        try:
            return start()
        except wandb.Error as error:
            _log.warning(
                "Weights & Biases does not answer (%s): rows are saved in %s, as with "
                "WANDB_MODE=offline; `wandb sync` uploads them",
                *(str(error).splitlines()[0], workdir / "wandb"),
            )
            return start(mode="offline")

    def write(self, step: int, values: dict[str, float | None]) -> None:
        """Adds a row; merges rows of the same step, and sends them at the next step."""
        if step <= self._sent:
            return
        known = {name: value for name, value in values.items() if value is not None}
        if self._rows and self._rows[-1][0] == step:
            self._rows[-1][1].update(known)
            return
        if not self._run.offline:
            self._send()
        # The row keeps its own time, as it may be sent much later.
        self._rows.append((step, {**known, "_timestamp": time.time()}))

    def close(self) -> None:
        """Sends the remaining rows, and reports whether the run ended with an error."""
        self._send()
        self._run.finish(exit_code=int(sys.exc_info()[0] is not None))
        if not self._run.disabled:
            self._save()

    def _send(self) -> None:
        for step, row in self._rows:
            self._run.log(row, step=step)
            self._sent = step
        self._rows = []

    def _save(self) -> None:
        write_json(self._file, {"id": self._id, "step": self._sent})
