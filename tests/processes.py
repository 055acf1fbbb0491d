"""Starts the processes of a run on this machine, and waits for them."""

import atexit
import contextlib
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_port():
    """Returns a port that nothing listens on."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@functools.cache
def compilation_cache():
    """Returns a folder that all processes of the tests share, gone at the end."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(devices, **changes):
    """Returns the environment of a process with that many CPU devices; None: unset."""
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": compilation_cache(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": paths,
    }
    together = inherited | own | changes
    return {name: value for name, value in together.items() if value is not None}


def start(arguments, *, processes=1, devices=1, **changes):
    """Starts `python ARGUMENTS` in every process, with the flags of a coordinator."""
    address = f"127.0.0.1:{free_port()}"
    return [
        subprocess.Popen(
            [
                sys.executable,
                *map(str, arguments),
                *(
                    f"--coordinator_address={address}",
                    f"--num_processes={processes}",
                    f"--process_id={index}",
                )[: 3 * (processes > 1)],
            ],
            cwd=ROOT,
            env=environment(devices, **changes),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(processes)
    ]


def finish(running, *, seconds=300):
    """Waits for processes; returns their exit statuses and outputs."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [process.returncode for process in running], outputs


def run(arguments, **places):
    """Starts the processes and waits; returns their outputs once all have succeeded."""
    statuses, outputs = finish(start(arguments, **places))
    assert not any(statuses), "\n".join(outputs)
    return outputs
