"""The path of a submitted job on this machine: several processes, no SLURM.

The tasks are started as submitit starts them (`submitit.core._submit`, with the
environment of its local executor). They are watched here, because its controller
neither ends the others when one fails nor tells how they ended.
"""

import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from invariance_jax.runtime.files import private_folder
from invariance_jax.runtime.preemption import (
    INTERRUPTED,
    PREEMPTED,
    SIGNALS,
    WARNINGS,
)
from invariance_jax.slurm.job import Launch

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
# How long tasks have to save after the first has left with `PREEMPTED`.
_GRACE_SECONDS = 120.0


def run(
    launch: Launch, folder: Path, *, tasks: int, gpus: int | None, setup: Sequence[str]
) -> int:
    """Runs the tasks of a job to their end, starting again those that were preempted.

    A signal to this process is passed on to the tasks; once they have saved, it ends
    too. A warning to a task alone starts all of them again.

    Args:
      launch: what each task does.
      folder: where the pickled job and the logs go.
      tasks: the number of processes.
      gpus: how many GPUs all tasks see; None leaves the environment as it is.
      setup: shell lines that precede each task.

    Returns:
      The exit status: 0, that of the first task that failed, or of those that a signal
      has stopped.
    """
    import_submitit()
    from submitit.core.utils import DelayedSubmission, JobPaths

    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    paths = JobPaths(folder, job_id=name)
    private_folder(folder)  # the pickle is run
    DelayedSubmission(launch).dump(paths.submitted_pickle)
    print(f"job {name}: {tasks} task(s) here, logs {log_pattern(folder, name)}")
    environment = _environment(launch, name, tasks, gpus)
    command = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder)]
    if setup:
        script = "\n".join(["set -e", *setup, f"exec {shlex.join(command)}"])
        command = ["bash", "-c", script]
    while True:
        status, warned = _attempt(command, environment, folder, name, tasks)
        if status != PREEMPTED or warned:
            return status
        _log.info("job %s: preempted and saved; starting again", name)


def import_submitit() -> None:
    """Imports submitit, an optional dependency.

    Raises:
      ValueError: if it is not installed.
    """
    name, before = "SUBMITIT_LOG_LEVEL", os.environ.get("SUBMITIT_LOG_LEVEL")
    # Without this value its import would close every log handler of this program.
    os.environ[name] = "NOCONFIG"
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--cluster needs submitit, which is not installed; "
            "python -m pip install 'invariance_jax[slurm]'"
        ) from error
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def log_pattern(folder: Path, job: str) -> str:
    """Returns the paths of the logs of a job, with TASK for the number of the task."""
    return f"{folder / job}_TASK_log.out and .err"


def _environment(
    launch: Launch, name: str, tasks: int, gpus: int | None
) -> dict[str, str]:
    # The variables of a surrounding SLURM job are not those of these tasks.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    path = [os.path.dirname(launch.program), os.environ.get("PYTHONPATH")]
    kept |= {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": name,
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_NTASKS": str(tasks),
        "SUBMITIT_LOCAL_NODEID": "0",
    }
    if gpus is not None:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(gpus)))
    return kept


def _attempt(
    command: list[str], environment: dict[str, str], folder: Path, name: str, tasks: int
) -> tuple[int, bool]:
    """Starts every task once; returns the status and whether a warning came."""
    environment = environment.copy()
    if tasks > 1:
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{_free_port()}"
    processes: list[subprocess.Popen[bytes]] = []
    warned = False

    def forward(number: int, frame: object) -> None:
        nonlocal warned
        warned = True
        for process in processes:
            process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in SIGNALS}
    with ExitStack() as stack:
        try:
            for task in range(tasks):
                logs = (folder / f"{name}_{task}_log.{end}" for end in ("out", "err"))
                out, err = (stack.enter_context(log.open("ab")) for log in logs)
                ids = {f"SUBMITIT_LOCAL_{k}ID": str(task) for k in ("GLOBAL", "LOCAL")}
                process = subprocess.Popen(
                    command,
                    env=environment | ids,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    process_group=0,  # Ctrl-C comes through this process, once
                )
                processes.append(process)
                if warned:  # between the last signal and this start
                    process.send_signal(signal.SIGTERM)
            return _wait(processes), warned
        finally:
            for process in processes:
                process.kill()
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all, or for the first that fails; returns the status of the job."""
    deadline, stopped = None, (PREEMPTED, INTERRUPTED)
    while True:
        codes = [_status(process) for process in processes]
        failed = [code for code in codes if code not in (None, 0, *stopped)]
        if failed:
            return failed[0]
        found = [code for code in stopped if code in codes]
        if found and deadline is None:
            deadline = time.monotonic() + _GRACE_SECONDS
        late = deadline is not None and time.monotonic() > deadline
        if None not in codes or late:
            return found[-1] if found else 0
        time.sleep(_POLL_SECONDS)


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """Returns a process's exit status, None while it runs."""
    code = process.poll()
    if code is None or code >= 0:
        return code
    # A warning that kills came before the job had handlers: nothing was begun. Another
    # signal is told as a shell does.
    return PREEMPTED if -code in WARNINGS else 128 - code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
