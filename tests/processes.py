"""Starts the processes of a run on this machine, and compares what runs leave."""

import atexit
import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "--config=configs/spirograph.py:smoke"


def config_flags(text):
    """Returns flags of a text such as "steps=10 encoder.width=16"."""
    return [f"--config.{change}" for change in text.split()]


SMALL = config_flags("""
    batch_size=16 steps=10 encoder.width=16 encoder.depth=2 penalty.batch_limit=1000
    data.train_examples=200 data.validation_examples=60 data.test_examples=70
    data.image_size=8 data.num_points=10 evaluation.num_views=(1,2)
    evaluation.variance_views=3 checkpoints.every_steps=5 checkpoints.keep_every_steps=5
    logging.every_steps=5 logging.probe_every_steps=10
""")
"""Changes of `CONFIG` that make a run of seconds."""


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
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": compilation_cache(),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": paths,
        # As in a process that a notebook starts, whose backend may not be installed.
        "MPLBACKEND": "not_installed",
    }
    together = os.environ | own | changes
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


def python(*arguments, shell=(), **changes):
    """Runs Python in a process of its own, with changes of its environment."""
    return subprocess.run(
        [*shell, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment(1, **changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


launch = functools.partial(python, "launch.py")


def finish(running, *, seconds=300):
    """Waits for processes; returns their exit statuses and outputs."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [process.returncode for process in running], outputs


def run(arguments, **options):
    """Starts the processes and waits; returns their outputs once all have succeeded."""
    statuses, outputs = finish(start(arguments, **options))
    assert not any(statuses), "\n".join(outputs)
    return outputs


def wait_for_rows(workdir, count=1, *, while_running=None, seconds=200):
    """Waits until a log has so many rows, or that process has ended."""
    log, deadline = workdir / "metrics.jsonl", time.monotonic() + seconds
    while while_running is None or while_running.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        assert time.monotonic() < deadline
        time.sleep(0.005)


TIMED = ("seconds", "examples_per_second", "waited", "corrupt")


def rows(workdir, *, without=TIMED):
    """Returns the rows of a log, less what depends on the time or the source."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in without} for row in found]


def arrays(workdir, step):
    """Returns name -> array of a checkpoint."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(workdir / "checkpoints" / str(step) / "default")


def assert_same_run(workdir, other, *, step):
    """Compares rows, last checkpoint and names of all of two runs, bit by bit."""
    found, expected = arrays(workdir, step), arrays(other, step)
    assert {*found} == {*expected}
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
    assert rows(workdir) == rows(other)
    names = [{*os.listdir(path / "checkpoints")} for path in (workdir, other)]
    assert names[0] == names[1]
