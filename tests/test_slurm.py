"""Jobs on a real SLURM of two nodes, started here: `python -m pytest --slurm`.

The jobs run small programs in place of `launch.py` where only the way of a job through
the queue is looked at: each start adds a line to a file.
"""

import json
import re
import subprocess
import time
from pathlib import Path

import jax
import loopback_slurm
import numpy as np
import processes
import pytest
from processes import CONFIG, SMALL
from test_submission import read

from invariance_jax.evaluate import load_parts
from invariance_jax.runtime.preemption import PREEMPTED
from invariance_jax.slurm.job import Launch
from invariance_jax.slurm.submission import make_executor
from invariance_jax.sweeps import collect

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
    flags = {"cluster": "slurm", "nodes": str(nodes), "tasks_per_node": str(tasks)}
    flags |= {"time": str(minutes), "signal_delay": str(delay)} if minutes else {}
    request = read(setup=[f"export PYTHONPATH={ROOT}"], **flags)
    executor = make_executor(request, folder / "slurm", "test")
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


def assert_ends(job, expected="COMPLETED", *, seconds=90, workdir=None):
    wait_for(lambda: state(job) in ENDED, seconds)
    assert state(job) == expected, workdir and log(workdir, job)


def starts(folder):
    """Returns (task, restarts) of every start so far."""
    path = folder / "starts"
    text = path.read_text() if path.exists() else ""
    return [tuple(map(int, line.split())) for line in text.splitlines()]


def warn(job):
    time.sleep(0.5)  # until the program has its handlers
    subprocess.run(["scancel", "--signal=USR2", job], check=True)


ENDED = "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"


@pytest.mark.parametrize("handlers", ["", SAVE], ids=["before", "in"])
@pytest.mark.parametrize(("nodes", "tasks"), [(1, 1), (2, 1), (1, 2)])
def test_a_warned_job_is_queued_again_once(tmp_path, handlers, nodes, tasks):
    (job,) = submit(tmp_path, handlers + WAIT, nodes=nodes, tasks=tasks)
    count = nodes * tasks
    wait_for(lambda: len(starts(tmp_path)) == count)
    warn(job)
    assert_ends(job)
    expected = [(task, again) for again in (0, 1) for task in range(count)]
    assert sorted(starts(tmp_path), key=lambda s: s[::-1]) == expected
    assert "Restarts=1 " in scontrol("show", "job", job, "-o")


def test_the_log_of_the_first_start_is_kept(tmp_path):
    (job,) = submit(tmp_path, SAVE + WAIT)
    wait_for(lambda: starts(tmp_path))
    warn(job)
    assert_ends(job)
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
    assert_ends(job, "CANCELLED")
    time.sleep(8)  # longer than a requeued job waits
    assert state(job) == "CANCELLED"
    assert len(starts(tmp_path)) == 1
    log = (tmp_path / "slurm" / f"{job}_0_log.err").read_text()
    assert "not queued again" in log


def test_a_task_of_an_array_is_queued_again_alone(tmp_path):
    first, second = submit(tmp_path, SAVE + WAIT, runs=2)
    wait_for(lambda: len(starts(tmp_path)) == 2)
    warn(second)
    assert_ends(second)
    assert state(first) == "RUNNING"
    assert sorted(starts(tmp_path)) == [(0, 0), (0, 0), (0, 1)]
    subprocess.run(["scancel", first], check=True)


def test_a_task_that_fails_ends_the_others(tmp_path):
    code = "if task: sys.exit('error: too bad')\n" + WAIT
    (job,) = submit(tmp_path, code, tasks=2)
    assert_ends(job, "FAILED", seconds=40)
    assert "error: too bad" in (tmp_path / "slurm" / f"{job}_1_log.err").read_text()


@pytest.mark.slow
def test_the_time_limit_warns_and_the_job_goes_on(tmp_path):
    # SLURM looks every 30 seconds, warns a step that has begun, and ends a job that a
    # look finds past its limit: two looks lie between the first warning and that.
    (job,) = submit(tmp_path, SAVE + WAIT, minutes=2, delay=50)
    assert_ends(job, seconds=200)
    assert starts(tmp_path) == [(0, 0), (0, 1)]


LONG = [CONFIG, "--mode=train", *SMALL]
LONG += processes.config_flags("""
    steps=400 steps_per_call=5 checkpoints.every_steps=200
    logging.every_steps=20 logging.probe_every_steps=0
""")


def launch(*arguments):
    """Submits a run by its command line; returns the job."""
    done = processes.launch("--cluster=slurm", *arguments)
    assert done.returncode == 0, done.stderr
    return re.search(r"submitted job (\d+)", done.stdout).group(1)


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def log(workdir, job, task=0):
    return (workdir / "slurm" / f"{job}_{task}_log.err").read_text()


@pytest.fixture(scope="module")
def whole(slurm, tmp_path_factory):
    """A run over two processes of one node: its work directory and job."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    job = launch(*LONG, f"--workdir={workdir}", "--tasks_per_node=2")
    assert_ends(job, seconds=400, workdir=workdir)
    return workdir, job


def test_a_run_over_two_tasks_finishes(whole):
    workdir, job = whole
    assert "processes: 2; devices: 2 (cpu)" in log(workdir, job)
    assert last_step(workdir) == 400


def test_a_run_over_two_nodes_finishes(tmp_path):
    job = launch(*LONG, f"--workdir={tmp_path}", "--nodes=2", "--config.steps=40")
    assert_ends(job, seconds=400, workdir=tmp_path)
    assert "processes: 2; devices: 2 (cpu)" in log(tmp_path, job)
    assert last_step(tmp_path) == 40


def test_a_run_that_is_queued_again_ends_with_the_same_bits(whole, tmp_path):
    job = launch(*LONG, f"--workdir={tmp_path}", "--tasks_per_node=2")
    wait_for(lambda: last_step(tmp_path) > 20, seconds=300)
    warn(job)
    assert_ends(job, seconds=400, workdir=tmp_path)
    assert "Restarts=1 " in scontrol("show", "job", job, "-o")
    step = int(re.search(r"resumed at step (\d+)", log(tmp_path, job)).group(1))
    assert 20 < step < 400
    one, other = (load_parts(path)[2] for path in (whole[0], tmp_path))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_run_that_is_cancelled_keeps_its_steps_and_is_not_queued_again(tmp_path):
    # Longer than any machine needs to cancel it, and only the signal makes it save.
    endless = "--config.steps=1000000", "--config.checkpoints.every_steps=1000000"
    job = launch(*LONG, *endless, f"--workdir={tmp_path}")
    wait_for(lambda: last_step(tmp_path) > 20, seconds=300)
    subprocess.run(["scancel", job], check=True)
    assert_ends(job, "CANCELLED")
    time.sleep(8)
    assert state(job) == "CANCELLED"
    (saved,) = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert 20 < saved < 1000000


def test_a_sweep_is_an_array_and_its_variants_are_compared(tmp_path):
    sweep = tmp_path / "sweep.py"
    grid = {"penalty.weight": (0.0, 0.1), "seed": (0, 1)}
    sweep.write_text(f"def get_sweep():\n    return {grid}\n")
    arguments = [*LONG, "--mode=all", "--config.steps=20", f"--sweep={sweep}"]
    arguments += processes.config_flags(
        "data.test_examples=70 evaluation.num_views=(1,)"
    )
    workdir = tmp_path / "sweep"
    job = launch(*arguments, f"--workdir={workdir}", "--array_parallelism=2")
    tasks = [f"{job}_{number}" for number in range(4)]
    wait_for(lambda: all(state(task) in ENDED for task in tasks), seconds=600)
    assert [state(task) for task in tasks] == ["COMPLETED"] * 4
    found = [path.name for path in collect.finished([workdir])]
    assert found == ["penalty.weight=0.0", "penalty.weight=0.1"]


def test_what_slurm_refuses_is_one_line_and_nothing_is_written(tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(AssertionError) as caught:
        launch(*LONG, f"--workdir={workdir}", "--partition=none")
    (line,) = str(caught.value).splitlines()[:1]
    assert "error: SLURM refuses the job: " in line and "partition" in line
    assert not workdir.exists()
