"""Jobs on a real SLURM of two nodes, started here: `python -m pytest --slurm`.

The jobs run small programs in place of `launch.py` where only the way of a job through
the queue is looked at: each start adds a line to a file.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import loopback_slurm
import pytest

from invariance_jax.cluster.job import PREEMPTED, Launch
from invariance_jax.cluster.options import Request
from invariance_jax.cluster.submission import _executor

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[1]

# What the programs begin with: one line per start and task in the file `starts`.
BEGIN = """
import os, signal, sys, time
task = int(os.environ["SLURM_PROCID"])
with open("starts", "a") as file:
    print(task, os.environ.get("SLURM_RESTART_COUNT", 0), file=file)
again = "SLURM_RESTART_COUNT" in os.environ
print("start", again)
"""
WAIT = "if not again: time.sleep(100)\n"
SAVE = f"""
def save(number, frame):
    print("saved")
    sys.exit({PREEMPTED})
signal.signal(signal.SIGUSR2, save)
signal.signal(signal.SIGTERM, save)
"""


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    """The cluster, for all tests of this file."""
    with loopback_slurm.cluster(tmp_path_factory.mktemp("slurm")) as path:
        yield path


def submit(folder, code, *, nodes=1, tasks=1, minutes=None, delay=20, runs=1):
    """Submits a program as launch.py is submitted; returns the job."""
    folder.mkdir(exist_ok=True)
    program = folder / "program.py"
    program.write_text(BEGIN + code)
    request = Request(
        cluster="slurm",
        nodes=nodes,
        gpus_per_node=None,
        tasks_per_node=tasks,
        minutes=minutes,
        signal_delay=delay,
        setup=(f"export PYTHONPATH={ROOT}",),
        parallelism=None,
        folder=None,
        dry_run=False,
        options=dict.fromkeys(["cpus_per_task"]),
    )
    executor = _executor(request, folder / "slurm", "test")
    launch = Launch(str(program), (), str(folder))
    return [job.job_id for job in executor.submit_array([launch] * runs)]


def scontrol(*arguments):
    command = ["scontrol", *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout


def state(job):
    found = re.search(r"JobState=(\w+)", scontrol("show", "job", job, "-o"))
    return found.group(1) if found else "unknown"


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, scontrol("show", "job", "-o")
        time.sleep(0.2)


def wait_for_state(job, *states, seconds=90):
    wait_for(lambda: state(job) in states, seconds)


def starts(folder):
    """Returns (task, restarts) of every start so far."""
    path = folder / "starts"
    text = path.read_text() if path.exists() else ""
    return [tuple(map(int, line.split())) for line in text.splitlines()]


def warn(job, name="USR2"):
    subprocess.run(["scancel", f"--signal={name}", job], check=True)


ENDED = "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"


@pytest.mark.parametrize("handlers", ["", SAVE], ids=["before", "in"])
@pytest.mark.parametrize(("nodes", "tasks"), [(1, 1), (2, 1), (1, 2)])
def test_a_warned_job_is_queued_again_once(tmp_path, handlers, nodes, tasks):
    (job,) = submit(tmp_path, handlers + WAIT, nodes=nodes, tasks=tasks)
    count = nodes * tasks
    wait_for(lambda: len(starts(tmp_path)) == count)
    time.sleep(0.5)
    warn(job)
    wait_for_state(job, *ENDED)
    assert state(job) == "COMPLETED"
    expected = [(task, again) for again in (0, 1) for task in range(count)]
    assert sorted(starts(tmp_path), key=lambda s: s[::-1]) == expected
    assert "Restarts=1 " in scontrol("show", "job", job, "-o")


def test_the_log_of_the_first_start_is_kept(tmp_path):
    (job,) = submit(tmp_path, SAVE + WAIT)
    wait_for(lambda: starts(tmp_path))
    time.sleep(0.5)
    warn(job)
    wait_for_state(job, *ENDED)
    log = (tmp_path / "slurm" / f"{job}_0_log.out").read_text()
    assert re.findall("start|saved", log) == ["start", "saved", "start"]
    errors = (tmp_path / "slurm" / f"{job}_0_log.err").read_text()
    assert errors.count(f"job {job} is queued again") == 1


@pytest.mark.parametrize("handlers", ["", SAVE], ids=["before", "in"])
def test_a_cancelled_job_is_not_queued_again(tmp_path, handlers):
    (job,) = submit(tmp_path, handlers + WAIT)
    wait_for(lambda: starts(tmp_path))
    time.sleep(0.5)
    subprocess.run(["scancel", job], check=True)
    wait_for_state(job, *ENDED)
    time.sleep(8)  # longer than a requeued job waits
    assert state(job) == "CANCELLED"
    assert len(starts(tmp_path)) == 1
    log = (tmp_path / "slurm" / f"{job}_0_log.err").read_text()
    assert "not queued again" in log


def test_a_task_of_an_array_is_queued_again_alone(tmp_path):
    first, second = submit(tmp_path, SAVE + WAIT, runs=2)
    wait_for(lambda: len(starts(tmp_path)) == 2)
    time.sleep(0.5)
    warn(second)
    wait_for_state(second, *ENDED)
    assert state(second) == "COMPLETED"
    assert state(first) == "RUNNING"
    assert sorted(starts(tmp_path)) == [(0, 0), (0, 0), (0, 1)]
    subprocess.run(["scancel", first], check=True)


def test_a_task_that_fails_ends_the_others(tmp_path):
    code = "if task: sys.exit('error: too bad')\n" + WAIT
    (job,) = submit(tmp_path, code, tasks=2)
    wait_for_state(job, *ENDED, seconds=40)
    assert state(job) == "FAILED"
    assert "error: too bad" in (tmp_path / "slurm" / f"{job}_1_log.err").read_text()


@pytest.mark.slow
def test_the_time_limit_warns_and_the_job_goes_on(tmp_path):
    (job,) = submit(tmp_path, SAVE + WAIT, minutes=1, delay=30)
    wait_for_state(job, *ENDED, seconds=150)
    assert state(job) == "COMPLETED"
    assert starts(tmp_path) == [(0, 0), (0, 1)]


def launch(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "launch.py", *map(str, arguments)],
        cwd=ROOT,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
