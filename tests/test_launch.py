"""The command line as a newcomer uses it."""

import json
import re
import shutil
import sys
from pathlib import Path

import processes
import pytest
from absl import flags
from absl.testing import flagsaver
from processes import CONFIG, SMALL
from processes import launch as run

import launch
from invariance_jax.runtime import startup


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole run: its work directory and what the process said."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    arguments = [f"--workdir={workdir}", *SMALL, "--profile_steps=6:8"]
    return workdir, run(CONFIG, *arguments)


def test_a_whole_run_says_what_it_does_and_shows_the_result(whole):
    workdir, done = whole
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"report: {workdir / 'report.html'}")
    assert done.stderr.count("initialized from the seed") == 1
    assert "Warning" not in done.stderr and "\r" not in done.stderr
    for word in ("training: ", "10/10", "loss=", "penalty=", "examples/s="):
        assert word in done.stderr


def test_a_whole_run_leaves_what_is_promised(whole):
    names = "checkpoints config.json experiments metrics.jsonl profile report.html"
    names += " results.json samples.npz tensorboard"
    assert {path.name for path in whole[0].iterdir()} >= {*names.split()}


def test_representations_are_written_and_told(whole, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    found = run("--mode=embed", f"--workdir={workdir}")
    assert found.returncode == 0, found.stderr
    files = [Path(name) for name in found.stdout.split()]
    assert len(files) == 2
    assert all(path.parent == workdir and path.exists() for path in files)


def test_what_was_given_is_what_was_run(whole):
    content = json.loads((whole[0] / "config.json").read_text())
    assert content["config"]["penalty"]["batch_limit"] == 1000.0
    assert content["config"]["evaluation"]["num_views"] == [1, 2]
    assert content["derived"]["steps"] == 10
    assert content["config"]["logging"]["profile_steps"] == "6:8"
    assert "--config.steps=10" in content["command"]
    steps = {path.name for path in (whole[0] / "checkpoints").iterdir()}
    assert {"5", "10"} <= steps


def test_an_evaluation_needs_no_configuration(whole, tmp_path):
    workdir = Path(shutil.copytree(whole[0], tmp_path / "run"))
    before = json.loads((workdir / "results.json").read_text())
    (workdir / "results.json").unlink()
    done = run("--mode=evaluate", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    after = json.loads((workdir / "results.json").read_text())
    assert after["summary"] == before["summary"]


def test_a_report_compares_two_runs(whole, tmp_path):
    second = shutil.copytree(whole[0], tmp_path / "second")
    out = tmp_path / "both"
    done = run("--mode=report", f"--workdir={whole[0]},{second}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    text = (out / "report.html").read_text()
    assert "first" in text and "second" in text


def test_a_run_of_a_sweep_reports_in_its_own_folder(whole, tmp_path):
    """All jobs of a sweep have its flags, and must not write one report."""
    workdir = Path(shutil.copytree(whole[0], tmp_path / "sweep" / "base"))
    (workdir / "results.json").unlink()
    (workdir / "report.html").unlink()
    (tmp_path / "sweep.py").write_text("def get_sweep():\n    return {'base': {}}\n")
    one = [f"--sweep={tmp_path / 'sweep.py'}", "--sweep_run=base"]
    one += [f"--workdir={workdir.parent}", f"--out={tmp_path / 'out'}"]
    done = run(CONFIG, *SMALL, *one)
    assert done.returncode == 0, done.stderr
    assert (workdir / "report.html").exists() and not (tmp_path / "out").exists()


def assert_one_line(done, expected):
    assert done.returncode not in (0, None)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if not line.startswith("processes: ")]
    assert line.startswith("error: ") and expected in line


# Each line of flags is followed by its error.
MISTAKES = f"""
{CONFIG} --config.penalty.wieght=1
--config.penalty.wieght is not a key; the closest is --config.penalty.weight
--mode=evaluate
holds no run
--config configs/spirograph.py:smoke --config.optimiser.name lars
the closest is --config.optimizer.name
{CONFIG} --config.batch_size=2.5
batch_size is 2.5; expect
--mode=evaluate --profile_steps=30:50
--profile_steps goes with --mode=all, train, not evaluate
{CONFIG} --mode=train --out=a
--out goes with --mode=all, report, export, not train
{CONFIG} --out=README.md
README.md is a file; expected a folder
{CONFIG} --mode=check --sweep=configs/sweeps/savings.py
--sweep goes with --mode=all, train, evaluate, embed, not check
{CONFIG} --mode=report
--config goes with --mode=all, train, evaluate, embed, export, check, not report
--mode=report --num_processes=2
--num_processes goes with --mode=all, train, evaluate, embed, not report
--mode=report --heartbeat_timeout=3
--heartbeat_timeout goes with --mode=all, train, evaluate, embed, not report
--mode=keys --cluster=slurm
--mode=keys runs on this machine; leave --cluster=slurm out
--config=configs/spirograph.py:quikc
'quikc'; expected one of paper, quick, cpu, conv, conv_plain, smoke
{CONFIG} --config configs/none.py
twice: configs/spirograph.py:smoke, configs/none.py; expected one
--config=configs/none.py
{processes.ROOT}/configs/none.py is no file
{CONFIG} --wrokdir=a
wrokdir
--mode=all
--config is missing
{CONFIG} now
unexpected argument 'now'; quote '(1, 2)'
--mode=report
does not exist
""".strip().split("\n")
MISTAKES = [*zip(MISTAKES[::2], MISTAKES[1::2], strict=True)]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES[:2])
def test_an_error_is_one_line_and_nothing_is_written(tmp_path, arguments, expected):
    assert_one_line(run(f"--workdir={tmp_path / 'run'}", *arguments.split()), expected)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES[2:])
def test_a_mistake_is_named_and_nothing_is_written(
    tmp_path, arguments, expected, monkeypatch
):
    words = ["launch.py", f"--workdir={tmp_path / 'run'}", *arguments.split()]
    monkeypatch.chdir(processes.ROOT)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(startup, "initialize", lambda: True)  # is for a whole process
    with flagsaver.flagsaver(), pytest.raises((ValueError, flags.Error)) as caught:
        launch.main(startup.parse(words))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


def test_a_check_writes_nothing_and_simulates_devices(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"  # that of the run to come
    done = run(CONFIG, *SMALL, workdir, "--mode=check", "--check_devices=8")
    assert done.returncode == 0, done.stderr
    assert not any(tmp_path.iterdir())
    assert re.search(r"^devices +8 \(cpu, simulated\)$", done.stdout, re.MULTILINE)
    assert "16 examples, 2 per device" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([CONFIG, *SMALL, "--mode=check", "--check_devices=7"], "multiple of the 7"),
        ([CONFIG], "--workdir is missing"),
        (["--mode=keys", "a", "b"], "unexpected argument 'b'"),
    ],
)
def test_an_error_without_a_work_directory_is_one_line(arguments, expected):
    assert_one_line(run(*arguments), expected)
