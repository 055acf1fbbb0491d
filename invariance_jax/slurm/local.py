"""Several processes of a run on this machine, as SLURM has them on its nodes."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from invariance_jax.runtime.preemption import INTERRUPTED, PREEMPTED, SIGNALS, WARNINGS
from invariance_jax.slurm.job import Launch
from invariance_jax.slurm.options import Request

_POLL_SECONDS = 0.1
# How long processes have to save after the first has been stopped.
_GRACE_SECONDS = 120.0


def run(launch: Launch, folder: Path, request: Request) -> int:
    """Runs the processes of a job to their end; returns its exit status."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    count = request.tasks_per_node
    print(f"job {name}: {count} process(es) here, logs {log_pattern(folder, name)}")
    folder.mkdir(parents=True, exist_ok=True)
    words = shlex.join([sys.executable, "-u", launch.program, *launch.arguments])
    command = "\n".join(["set -e", *request.setup, f"exec {words}"])
    address = f"127.0.0.1:{_free_port()}"
    processes: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    with ExitStack() as stack:
        for number in SIGNALS:
            stack.callback(signal.signal, number, signal.signal(number, forward))
        for index in range(count):
            logs = (folder / f"{name}_{index}_log.{end}" for end in ("out", "err"))
            out, err = (stack.enter_context(log.open("ab")) for log in logs)
            process = subprocess.Popen(
                ["bash", "-c", command],
                cwd=launch.folder,
                env=_environment(request, address, index),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,  # Ctrl-C comes through this process, once
            )
            processes.append(process)
            stack.callback(process.wait)
            stack.callback(process.kill)
        return _wait(processes)


def log_pattern(folder: Path, job: str) -> str:
    """Returns the paths of the logs of a job, with TASK for the number of the task."""
    return f"{folder / job}_TASK_log.out and .err"


def _environment(request: Request, address: str, index: int) -> dict[str, str]:
    count, gpus = request.tasks_per_node, request.gpus_per_node
    # The variables of a surrounding SLURM job are not those of these processes.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    if count > 1:
        kept["JAX_COORDINATOR_ADDRESS"] = address
        kept |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    if gpus is not None:
        own = range(index * gpus // count, (index + 1) * gpus // count)
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
    return kept


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
    # A warning that kills came before the run had handlers: nothing was begun. Another
    # signal is told as a shell does.
    return PREEMPTED if -code in WARNINGS else 128 - code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
