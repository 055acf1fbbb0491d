"""Real processes on this machine: any number of them gives the numbers of one."""

import json
import re
import shutil
import signal
import socket
import time

import numpy as np
import processes
import pytest
import steps_of_a_process
from processes import CONFIG, SMALL


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory):
    """What two processes of two devices make."""
    out = tmp_path_factory.mktemp("steps") / "out.npz"
    processes.run(["tests/steps_of_a_process.py", out], processes=2, devices=2)
    with np.load(out) as archive:
        return dict(archive)


@pytest.mark.parametrize("count", [4, 1])
def test_two_processes_give_the_numbers_of_one(two_by_two, count, x64):
    """Of one process with as many devices, and of one device."""
    expected = steps_of_a_process.compute(count)
    assert {*two_by_two} == {*expected}
    for name, array in expected.items():
        error = np.abs(two_by_two[name] - array).max()
        # A few last bits of the kernels, for biases whose gradients nearly cancel.
        bits = 10 * np.finfo(np.float64).eps
        assert error <= 1e-9 * np.abs(array).max() + bits, name
    assert two_by_two["metrics"].dtype == np.float64
    assert len(two_by_two["metrics"]) == steps_of_a_process.STEPS


RUN = ["launch.py", CONFIG, *SMALL]
LARS = "--config.optimizer.name=lars"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run over two processes: its work directory and what they said."""
    workdir = tmp_path_factory.mktemp("runs") / "two"
    arguments = [*RUN, LARS, f"--workdir={workdir}"]
    return workdir, processes.run(arguments, processes=2, devices=2)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The work directory of the same run in one process."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    processes.run([*RUN, LARS, f"--workdir={workdir}"], devices=4)
    return workdir


def test_a_whole_run_leaves_what_one_process_leaves(run):
    workdir, _ = run
    assert (workdir / "report.html").exists()
    assert [row["step"] for row in processes.rows(workdir)] == [5, 10, 10]
    content = json.loads((workdir / "config.json").read_text())
    assert content["environment"]["processes"] == 2
    assert len(content["environment"]["devices"]) == 4
    # Event files of one process only.
    assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_only_the_main_process_speaks(run):
    first, second = run[1]
    assert "processes: 2; devices: 4 (cpu)" in first
    assert "report: " in first
    # Lines of the library's threads, which may be written into each other.
    ours = [line for line in second.splitlines() if "peer ranks" not in line]
    assert not re.sub(r"\[Gloo\].*", "", "\n".join(ours)).strip()


def test_results_are_those_of_one_process(run, alone):
    found, expected = (
        json.loads((path / "results.json").read_text())["summary"]
        for path in (run[0], alone)
    )
    assert {*found} == {*expected}
    for name in ("variance.total", "loss.final"):
        assert found[name]["mean"] == pytest.approx(expected[name]["mean"], rel=1e-3)


def test_a_run_continues_on_another_number_of_devices(run, alone, tmp_path):
    """Five steps on four devices in two processes, then five on one."""
    workdir = shutil.copytree(run[0], tmp_path / "stopped")
    shutil.rmtree(workdir / "checkpoints" / "10")
    arguments = [*RUN, LARS, "--mode=train", f"--workdir={workdir}"]
    (output,) = processes.run(arguments, devices=1)
    assert "resumed at step 5" in output
    found, expected = processes.rows(workdir), processes.rows(alone)
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        if "loss" in row:
            assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)


LONG = [*RUN, "--config.steps=100000", "--config.logging.probe_every_steps=0"]


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    running = processes.start([*LONG, f"--workdir={workdir}"], processes=2, devices=2)
    processes.wait_for_rows(workdir)
    running[1].send_signal(signal.SIGUSR1)
    statuses, outputs = processes.finish(running)
    assert statuses == [75, 75], outputs
    stops = [re.search(r"saved at step (\d+)", output).group(1) for output in outputs]
    assert stops[0] == stops[1]
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert stops[0] in names
    assert "SIGUSR1" in outputs[1] and "another process" in outputs[0]


def test_a_process_that_dies_takes_the_others_with_it(tmp_path):
    arguments = [*LONG, f"--workdir={tmp_path / 'run'}"]
    main, other = processes.start(arguments, processes=2, devices=1)
    processes.wait_for_rows(tmp_path / "run")
    other.kill()
    since = time.monotonic()
    statuses, outputs = processes.finish([main, other], seconds=60)
    assert time.monotonic() - since < 60
    assert statuses[0] != 0, outputs[0]


def test_the_same_program_runs_again(tmp_path):
    """One with many exchanges between the processes, of which one may have a cache."""
    method = ["--config.method.name=own_parts:remembering", "--config.more_views=1"]
    arguments = [*RUN, "--mode=train", "--config.steps=2", *method]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    for name in "ab":
        run = [*arguments, f"--workdir={tmp_path / name}"]
        processes.run(run, processes=2, **cache)


LATE = """
import sys, time
import jax
import numpy as np
from absl import flags
from invariance_jax.runtime import processes, startup
flags.FLAGS(sys.argv)
is_main = startup.initialize()
with processes.main_process_first():
    time.sleep(32)  # first in the main process, then in the other one
assert processes.any_process(not is_main)
print("first exchange", file=sys.stderr, flush=True)
total = jax.pmap(lambda x: jax.lax.psum(x, "all"), "all")(np.ones(2))
assert total.addressable_shards[0].data == 4
"""


def test_processes_wait_longer_for_one_another_than_gloo_does():
    for output in processes.run(["-c", LATE], processes=2, devices=2):
        assert "[Gloo]" not in output.split("first exchange")[1]


def test_an_interrupt_while_the_others_do_not_come_ends_a_process_at_once(tmp_path):
    arguments = [*RUN, f"--workdir={tmp_path / 'run'}"]
    (alone, other) = running = processes.start(arguments, processes=2)
    other.kill()
    host, port = alone.args[-3].removeprefix("--coordinator_address=").split(":")
    deadline, is_waiting = time.monotonic() + 100, False
    while not is_waiting:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        with socket.socket() as probe:
            is_waiting = probe.connect_ex((host, int(port))) == 0
    alone.send_signal(signal.SIGINT)
    statuses, outputs = processes.finish(running, seconds=30)
    assert statuses[0] == -signal.SIGINT, outputs[0]
    assert not outputs[0]


def test_a_process_that_does_not_come_is_an_error_that_names_what_was_found(tmp_path):
    arguments = [*RUN, f"--workdir={tmp_path / 'run'}", "--initialization_timeout=3"]
    (alone, other) = processes.start(arguments, processes=2)
    other.kill()
    statuses, outputs = processes.finish([alone, other], seconds=60)
    assert statuses[0] == 1
    assert "error: the processes of the run did not connect within 3 s" in outputs[0]
    assert "name=the flags" in outputs[0]
    assert not (tmp_path / "run").exists()
