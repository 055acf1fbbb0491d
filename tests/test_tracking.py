"""Weights & Biases: one run over all starts, each step there once."""

import json
import signal
import struct

import processes
import pytest
from tiny import tiny_config

from invariance_jax import train
from invariance_jax.runs import tracking
from invariance_jax.runs.tracking import Tracker, check_tracking
from invariance_jax.settings import resolve

PROJECT = {"logging.wandb_project": "project"}

# A run that ends, or is ended, as soon as it has written the rows of a step.
PROGRAM = """
import os, signal, sys
from tiny import tiny_config
from invariance_jax import train
from invariance_jax.runs.log import MetricsWriter

workdir, stop, how = sys.argv[1:]
write = MetricsWriter.write

def stopped(writer, step, values):
    write(writer, step, values)
    if step == int(stop) and how == "error":
        raise KeyError
    if step == int(stop) and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)

MetricsWriter.write = stopped
config = tiny_config({"logging.wandb_project": "project", "encoder.depth": 1})
train.run(config, workdir)
"""


def start(workdir, *, stop=0, how="none"):
    """Trains in a process of its own, and returns its exit status."""
    own = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    arguments = ["-c", PROGRAM, workdir, stop, how]
    ((status,), _) = processes.finish(processes.start(arguments, **own))
    return status


def records(path):
    """Yields what an offline run has written: a log of LevelDB with messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, message = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32_768 - position % 32_768
        if left < 7:  # a header does not lie in two blocks
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        position += 7 + size
        message += content[position - size : position]
        if kind in (1, 4):  # a whole message, or the last part of one
            yield Record.FromString(message)
            message = b""


def offline_runs(workdir):
    """Returns the id and the rows of each offline run, in the order of starts."""
    runs = []
    for folder in sorted((workdir / "wandb").glob("offline-run-*")):
        # There is no file yet if a kill came soon.
        found = [record for path in folder.glob("*.wandb") for record in records(path)]
        rows = [
            {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in history}
            for history in (r.history.item for r in found if r.HasField("history"))
        ]
        runs.append((folder.name.split("-")[-1], rows))
    return runs


def expected_steps(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return sorted({json.loads(line)["step"] for line in lines})


@pytest.mark.parametrize("how", ["error", "kill"])
def test_two_starts_are_one_run_with_each_step_once(tmp_path, how):
    # Rows at 5, 10, 15 and 20, checkpoints at 10 and 20: step 15 is trained twice.
    status = start(tmp_path, stop=15, how=how)
    assert status == (1 if how == "error" else -signal.SIGKILL)
    assert start(tmp_path) == 0
    (first, rows), (second, more) = offline_runs(tmp_path)
    assert first == second == json.loads((tmp_path / "wandb.json").read_text())["id"]
    steps = [row["_step"] for row in rows + more]
    assert steps == expected_steps(tmp_path) == [5, 10, 15, 20]
    assert rows if how == "error" else not rows
    by_step = {row["_step"]: row for row in rows + more}
    assert {"loss", "penalty", "probe_mse"} <= {*by_step[10]}
    assert "probe_mse" not in by_step[15]


class Run:
    """Stands for a run of Weights & Biases."""

    def __init__(self, *, offline=False, disabled=False, starting_step=0):
        self.offline, self.disabled = offline, disabled
        self.starting_step, self.events = starting_step, []

    def log(self, row, step):
        self.events.append((step, {k: v for k, v in row.items() if k != "_timestamp"}))

    def finish(self, exit_code):
        self.events.append(exit_code)


@pytest.fixture
def make(monkeypatch, tmp_path):
    """Makes a tracker of a run, and keeps what the run was asked for."""

    def made(run, rows=()):
        def init(**arguments):
            asked.append(arguments)
            if isinstance(run, Exception) and "mode" not in arguments:
                raise run
            return Run(offline=True) if isinstance(run, Exception) else run

        monkeypatch.setattr("wandb.init", init)
        monkeypatch.setattr("wandb.Settings", lambda **_: None)
        settings = resolve(tiny_config(PROJECT))
        return Tracker(settings, tmp_path, [json.dumps(row) for row in rows])

    made.asked = asked = []
    return made


def noted(tmp_path):
    return json.loads((tmp_path / "wandb.json").read_text())["step"]


def test_rows_of_a_step_are_one_and_go_when_the_next_begins(make):
    run = Run()
    tracker = make(run)
    tracker.write(1, {"loss": 0.5, "speed": None})
    tracker.write(1, {"probe": 2.0})
    assert run.events == []
    tracker.write(3, {"loss": 0.25})
    assert run.events == [(1, {"loss": 0.5, "probe": 2.0})]
    tracker.close()
    assert run.events[1:] == [(3, {"loss": 0.25}), 0]


def test_a_folder_gets_its_rows_at_the_end(make, tmp_path):
    run = Run(offline=True)
    tracker = make(run)
    for step in (1, 2):
        tracker.write(step, {"loss": 0.5})
    assert (run.events, noted(tmp_path)) == ([], 0)
    tracker.close()
    assert [event[0] for event in run.events[:-1]] == [1, 2]
    assert noted(tmp_path) == 2


def test_the_server_tells_what_it_has(make):
    run = Run(starting_step=4)
    tracker = make(run, [{"step": step, "loss": step / 2} for step in (2, 3, 4, 5)])
    tracker.close()
    assert run.events == [(4, {"loss": 2.0}), (5, {"loss": 2.5}), 0]


def test_an_error_is_told(make):
    run = Run()
    tracker = make(run)
    try:
        raise KeyError
    except KeyError:
        tracker.close()
    assert run.events == [1]


def test_the_run_is_named_and_has_the_settings(make, tmp_path):
    for _ in range(2):
        make(Run()).close()
    first, second = make.asked
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["reinit"] == "create_new"  # beside those of other seeds
    assert first["dir"] == str(tmp_path)
    assert first["name"] == f"{tmp_path.parent.name}/{tmp_path.name}"
    assert first["project"] == "project"
    assert first["config"]["logging"]["wandb_project"] == "project"


def test_where_no_server_answers_the_rows_go_to_a_folder(make, tmp_path, caplog):
    import wandb

    tracker = make(wandb.errors.CommError("Timed out.\nConsider increasing"))
    assert [asked.get("mode") for asked in make.asked] == [None, "offline"]
    (line,) = caplog.messages
    assert "(Timed out.): rows are saved in" in line and "WANDB_MODE=offline" in line
    tracker.write(1, {"loss": 0.5})
    tracker.close()
    assert noted(tmp_path) == 1


@pytest.mark.parametrize("mode", [None, "offline", "disabled"])
def test_a_missing_key_is_said_before_anything_is_written(tmp_path, mode):
    code = (
        "from tiny import tiny_config\n"
        "from invariance_jax import train\n"
        "from invariance_jax.runs.tracking import check_tracking\n"
        "config = tiny_config({'logging.wandb_project': 'project'})\n"
        f"if {mode!r}:\n    check_tracking(config)\n"
        f"else:\n    train.run(config, {str(tmp_path / 'run')!r})\n"
    )
    changes = {"HOME": str(tmp_path), "WANDB_MODE": mode, "WANDB_API_KEY": None}
    done = processes.python("-c", code, **changes)
    if mode:
        assert done.returncode == 0, done.stderr
    else:
        assert "ValueError: logging.wandb_project is 'project', but W" in done.stderr
        assert "expected WANDB_API_KEY or WANDB" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"is 'project', but the package wandb is mi"):
        train.run(tiny_config(PROJECT), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_tracking(tiny_config())
