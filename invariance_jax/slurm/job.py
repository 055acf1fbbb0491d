"""The code of a submitted job: runs `launch.py` on its nodes, and requeues the job.

SLURM sends a signal (SIGUSR2 before the time limit, SIGTERM at preemption), the run
saves a checkpoint and exits with the status `PREEMPTED`, and task 0 requeues the job.
The signal handlers of submitit, which would requeue it themselves, are replaced first.

This module does not import jax, as a signal may arrive before the run has started.
"""

import dataclasses
import os
import re
import runpy
import signal
import subprocess
import sys
from types import FrameType

from invariance_jax.runtime.preemption import PREEMPTED, WARNINGS, ignore_signals, say

_TIMEOUT = 60  # seconds, for an answer of SLURM's controller


@dataclasses.dataclass(frozen=True)
class Launch:
    """A command line without the flags of submission; pickled, and called on nodes."""

    program: str
    arguments: tuple[str, ...]
    folder: str

    def __call__(self) -> None:
        """Runs the program in this process; exits with its status unless that is 0."""
        try:
            for number in WARNINGS:
                signal.signal(number, _leave)
            os.chdir(self.folder)
            sys.argv = [self.program, *self.arguments]
            sys.path.insert(0, os.path.dirname(self.program))
            # In this process, not a child: SLURM's signals reach the run, and its
            # handlers replace those above.
            runpy.run_path(self.program, run_name="__main__")
        except SystemExit as stop:
            if stop.code == PREEMPTED:
                _requeue_and_exit()
            if stop.code:
                raise
        finally:
            ignore_signals()  # the run is over; a later signal has no meaning


def _leave(number: int, frame: FrameType | None) -> None:
    """Handles a signal before the run starts or after it ends: exits, saves nothing."""
    ignore_signals()
    raise SystemExit(PREEMPTED)


def _requeue_and_exit() -> None:
    ignore_signals()  # inherited by `scontrol`
    from submitit.slurm.slurm import SlurmJobEnvironment  # an optional package

    task = SlurmJobEnvironment()
    if task.global_rank == 0:
        requeue(task.job_id)
    # With another status, SLURM would end the job before the other tasks have saved.
    raise SystemExit(0)


def requeue(job: str) -> None:
    """Requeues a job if its state is RUNNING."""
    match = re.search(r"\bJobState=(\w+)", _scontrol("show", "job", job, "--oneliner"))
    state = match.group(1) if match else "unknown"
    if state == "RUNNING":
        _scontrol("requeue", job)
        say(f"invariance_jax: job {job} is queued again")
    else:
        say(f"invariance_jax: job {job} is {state}: not queued again")


def _scontrol(*arguments: str) -> str:
    """Returns the output of `scontrol`; exits with `PREEMPTED` if it fails."""
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()
        say(
            f"invariance_jax: the state is saved, but {' '.join(command)} failed "
            f"({reason}): submit the same command again to continue"
        )
        raise SystemExit(PREEMPTED) from error
    return done.stdout
