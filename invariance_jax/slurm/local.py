"""A job on this machine: starts the processes of a run, as SLURM does on its nodes."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from invariance_jax.runtime.preemption import PREEMPTED, SIGNALS, STOPPED, WARNINGS
from invariance_jax.slurm.job import Launch
from invariance_jax.slurm.options import Request

_POLL_SECONDS = 0.1
# Time that the other processes have to save after the first has stopped.
_GRACE_SECONDS = 120.0


def run(launch: Launch, folder: Path, request: Request) -> int:
    """Runs the processes of a job, waits for them, and returns the exit status."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    count, gpus = request.tasks_per_node, _visible_gpus(request.gpus_per_node)
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
                env=_environment(count, gpus, address, index),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                process_group=0,  # so that only `forward` delivers Ctrl-C
            )
            processes.append(process)
            stack.callback(process.wait)
            stack.callback(process.kill)
        status = _wait(processes)
        if status:
            index = [*map(_status, processes)].index(status)
            log = folder / f"{name}_{index}_log.err"
            last = log.read_text("utf-8", "replace").strip().split("\n")[-1]
            end = "was stopped" if status in STOPPED else f"ended with status {status}"
            text = f"job {name}: process {index} {end}, see {log}"
            print(f"{text}: {last}" if last else text, file=sys.stderr)
        return status


def log_pattern(folder: Path, job: str) -> str:
    """Returns the log paths of a job, with TASK in place of the task's number."""
    return f"{folder / job}_TASK_log.out and .err"


def _visible_gpus(count: int | None) -> list[str]:
    """Returns the names of the first `count` GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = [*map(str, range(count or 0))]
    names = numbers if visible is None else [*filter(None, visible.split(","))]
    if count is not None and count > len(names):
        raise ValueError(
            f"--gpus_per_node is {count}, but CUDA_VISIBLE_DEVICES is {visible!r}; "
            f"expected at most {len(names)}."
        )
    return names[: count or 0]


def _environment(
    count: int, gpus: list[str], address: str, index: int
) -> dict[str, str]:
    """Returns the environment of a process: its index, and its share of the GPUs."""
    # A surrounding SLURM job, if any, does not describe these processes.
    variables = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    if count > 1:
        variables["JAX_COORDINATOR_ADDRESS"] = address
        variables |= {"JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    if gpus:
        ends = (number * len(gpus) // count for number in (index, index + 1))
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slice(*ends)])
    return variables


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    """Waits for all processes, or for the first to fail; returns the job's status."""
    deadline = None
    while True:
        codes = [_status(process) for process in processes]
        failed = [code for code in codes if code not in (None, 0, *STOPPED)]
        if failed:
            return failed[0]
        stopped = [code for code in STOPPED if code in codes]
        if stopped and deadline is None:
            deadline = time.monotonic() + _GRACE_SECONDS
        is_late = deadline is not None and time.monotonic() > deadline
        if None not in codes or is_late:
            return stopped[-1] if stopped else 0
        time.sleep(_POLL_SECONDS)


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """Returns a process's exit status, None while it runs."""
    code = process.poll()
    if code is None or code >= 0:
        return code
    # A warning kills a process only before its handlers are installed, so nothing is
    # lost: at its end it ignores them. The status of another signal is 128 + its
    # number, as in a shell.
    return PREEMPTED if -code in WARNINGS else 128 - code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
