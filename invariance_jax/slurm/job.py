"""What a submitted job does on its nodes: runs `launch.py`, and is queued again.

A job has one owner of the requeue, task 0 of this module. SLURM warns (SIGUSR2 before
the time limit, SIGTERM at preemption), the run saves a checkpoint and leaves with the
status `PREEMPTED`, and task 0 queues the job again if SLURM still runs it. The handlers
that submitit puts in, which queue the job on their own, are replaced first.

Nothing here imports jax: a warning may come before the run has begun.
"""

import dataclasses
import os
import re
import runpy
import signal
import subprocess
import sys
from types import FrameType

from invariance_jax.runtime.preemption import PREEMPTED, WARNINGS, say

_SECONDS = 60  # the longest that the controller of SLURM is waited for


@dataclasses.dataclass(frozen=True)
class Launch:
    """A command line without the submission, pickled here and called on nodes."""

    program: str
    arguments: tuple[str, ...]
    folder: str

    def __call__(self) -> None:
        """Runs the program within this process; exits with its status if not 0."""
        try:
            for number in WARNINGS:
                signal.signal(number, _leave)
            os.chdir(self.folder)
            sys.argv = [self.program, *self.arguments]
            sys.path.insert(0, os.path.dirname(self.program))
            # Not in a child process: the handlers of the run go in after these, and
            # SLURM's signals reach it.
            runpy.run_path(self.program, run_name="__main__")
        except SystemExit as stop:
            if stop.code == PREEMPTED:
                _preempted()
            if stop.code:
                raise
        finally:
            _ignore_warnings()  # the run is over, whatever comes now


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends a run that has not yet begun, or has just ended: nothing is to be saved."""
    _ignore_warnings()
    raise SystemExit(PREEMPTED)


def _ignore_warnings() -> None:
    for number in WARNINGS:
        signal.signal(number, signal.SIG_IGN)


def _preempted() -> None:
    """Queues the job again, and exits with 0.

    Another status of one task would end the job before the others have saved.
    """
    _ignore_warnings()  # `scontrol` inherits that
    if int(os.environ.get("SLURM_PROCID", 0)) == 0:
        requeue(job_id())
    raise SystemExit(0)


def job_id() -> str:
    """Returns the identifier of this SLURM job; of a task of an array, JOB_TASK."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def requeue(job: str) -> None:
    """Queues a job again if SLURM still runs it."""
    found = re.search(r"\bJobState=(\w+)", _scontrol("show", "job", job, "--oneliner"))
    state = found.group(1) if found else "unknown"
    if state == "RUNNING":
        _scontrol("requeue", job)
        say(f"invariance_jax: job {job} is queued again")
    else:
        say(f"invariance_jax: job {job} is {state}: not queued again")


def _scontrol(*arguments: str) -> str:
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()
        say(
            f"invariance_jax: the state is saved, but {' '.join(command)} failed "
            f"({reason}): submit the same command again to continue"
        )
        raise SystemExit(PREEMPTED) from error
    return done.stdout
