"""The training program: it learns, it logs, and it continues as if never stopped."""

import io
import logging
import shutil
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import processes
import pytest
from processes import rows
from tiny import tiny_config
from tqdm import tqdm

from invariance_jax import train
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.log import MetricsWriter
from invariance_jax.runtime.devices import all_devices
from invariance_jax.settings import resolve
from invariance_jax.training import parallel
from invariance_jax.training.optimizers import make_schedule

# Where one file of a checkpoint cannot be read, orbax closes its event loop before its
# threads have told that loop about the other files.
pytestmark = [
    pytest.mark.usefixtures("compiled_once"),
    pytest.mark.filterwarnings(
        "ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
    ),
]

SMOKE = {
    "steps": 60,
    "optimizer.learning_rate": 0.3,
    "checkpoints.every_steps": 15,
    "checkpoints.keep": 1,
    "checkpoints.keep_every_steps": 30,
    "logging.probe_every_steps": 20,
}


class Stop(Exception):
    """Stands for a machine that goes away."""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The work directory of a whole run."""
    workdir = tmp_path_factory.mktemp("smoke") / "run"
    train.run(tiny_config(SMOKE), workdir)
    return workdir


def checkpoint_steps(workdir):
    checkpoints = Checkpoints(workdir)
    found = checkpoints.steps()
    checkpoints.close()
    return found


def test_the_loss_goes_down(smoke):
    losses = [row["loss"] for row in rows(smoke) if "loss" in row]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3


def test_the_probe_gets_better(smoke):
    found = [row for row in rows(smoke) if "probe_mse" in row]
    assert found[-1]["probe_mse"] < found[0]["probe_mse"]
    assert all(0 < row["variance_normalized"] < 1.1 for row in found)


def test_a_row_holds_loss_penalty_rate_and_speed(smoke):
    settings = resolve(tiny_config(SMOKE))
    schedule = make_schedule(settings)
    found = [row for row in rows(smoke, without=()) if "loss" in row]
    for row in found:
        expected = row["contrastive"] + 0.1 * row["penalty"]
        assert row["loss"] == pytest.approx(expected, rel=1e-5)
        assert row["learning_rate"] == pytest.approx(float(schedule(row["step"] - 1)))
    # The step that compiles tells nothing about the speed.
    assert found[0]["examples_per_second"] is None
    assert all(row["examples_per_second"] > 0 for row in found[1:])


def test_a_run_leaves_what_is_promised_at_its_steps_and_nothing_else(smoke):
    found = rows(smoke)
    assert [row["step"] for row in found if "loss" in row] == list(range(5, 65, 5))
    assert [row["step"] for row in found if "probe_mse" in row] == [20, 40, 60]
    assert checkpoint_steps(smoke) == [30, 60]
    assert {path.name for path in smoke.iterdir()} == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "tensorboard",
    }


@pytest.mark.parametrize(
    ("kind", "name", "stop", "kept"),
    [
        (MetricsWriter, "write", 5, []),
        (MetricsWriter, "write", 20, [15]),
        (MetricsWriter, "write", 60, [30, 45]),
        (Checkpoints, "save", 45, [30, 45]),
    ],
)
def test_a_run_that_was_stopped_continues_to_the_same_numbers(
    smoke, tmp_path, monkeypatch, kind, name, stop, kept
):
    """The machine goes away after the rows of a step, or when it is saved."""
    method = getattr(kind, name)

    def stopped(self, step, *arguments, **note):
        method(self, step, *arguments, **note)
        if step == stop:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, stopped)
        with pytest.raises(Stop):
            train.run(tiny_config(SMOKE), tmp_path)
    assert checkpoint_steps(tmp_path) == kept
    train.run(tiny_config(SMOKE), tmp_path)
    processes.assert_same_run(tmp_path, smoke, step=60)


def test_calls_and_rows_may_change_when_a_run_continues(smoke, tmp_path):
    workdir = Path(shutil.copytree(smoke, tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "60")
    changes = {"steps_per_call": 2, "logging.every_steps": 30}
    train.run(tiny_config(SMOKE | changes), workdir)
    found, expected = (processes.arrays(path, 60) for path in (workdir, smoke))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_finished_run_is_left_alone(smoke, tmp_path, caplog):
    workdir = Path(shutil.copytree(smoke, tmp_path / "run"))
    with caplog.at_level(logging.INFO):
        train.run(tiny_config(SMOKE), workdir)
    assert "resumed at step 60" in caplog.text
    assert rows(workdir) == rows(smoke)
    assert checkpoint_steps(workdir) == checkpoint_steps(smoke)


def test_another_training_key_is_refused_and_nothing_changes(smoke):
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("*")}
    with pytest.raises(ValueError, match=r"holds a run with penalty\.weight = 0\.1"):
        train.run(tiny_config(SMOKE | {"penalty.weight": 0.2}), smoke)
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("*")} == before


def test_what_is_pending_stays_as_it_was_noted(log):
    log, _, _ = log
    log.add(sums(1.0, 2))
    noted = log.pending()
    log.add(sums(3.0, 1))
    log.write(6)
    assert noted["loss"] == (2.0, 2.0)


def test_a_torn_checkpoint_is_passed_over(smoke, tmp_path, caplog):
    workdir = Path(shutil.copytree(smoke, tmp_path / "run"))
    newest = workdir / "checkpoints" / "60"
    for path in newest.rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"")
    with caplog.at_level(logging.INFO):
        train.run(tiny_config(SMOKE), workdir)
    assert f"{newest} is damaged" in caplog.text
    assert "resumed at step 30" in caplog.text
    processes.assert_same_run(workdir, smoke, step=60)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"penalty.weight": -1.0}, r"penalty\.weight is -1\.0"),
        ({"encoder.name": "own_parts:endless"}, "are not finite"),
        ({"batch_size": 18}, "expected a multiple of the 4 devices"),
        ({"seeds": 2, "temperature": 0.0}, "temperature is 0.0"),
        (
            {"evaluation.experiments": ("no_such_module:f",)},
            r"evaluation\.experiments is 'no_such_modu",
        ),
    ],
)
def test_bad_settings_stop_before_anything_is_written(tmp_path, changes, expected):
    with pytest.raises(ValueError, match=expected):
        train.run(tiny_config(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path):
    # The first step has rate 0, the second makes the parameters huge.
    changes = {
        "optimizer.weight_decay": 1e38,
        "optimizer.warmup_fraction": 0.5,
        "logging.every_steps": 1,
        "logging.probe_every_steps": 0,
        "checkpoints.every_steps": 1,
    }
    with pytest.raises(FloatingPointError, match=r"between steps 2 and 3; lower"):
        train.run(tiny_config(changes), tmp_path)
    assert checkpoint_steps(tmp_path) == [1, 2]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    # With rarer rows the interval is wider, and no checkpoint comes within it.
    changes |= {"logging.every_steps": 7, "checkpoints.every_steps": 20}
    with pytest.raises(FloatingPointError, match=r"between steps 2 and 7; lower"):
        train.run(tiny_config(changes), tmp_path)
    assert checkpoint_steps(tmp_path) == [1, 2]


def test_the_time_of_a_probe_is_no_time_of_the_steps(monkeypatch):
    now = mock.Mock(return_value=0.0)
    monkeypatch.setattr(train, "time", mock.Mock(monotonic=now))
    rows, writer, _ = made_log(0)
    for step, probe in ((2, 0.0), (4, 7.0), (6, 0.0)):
        now.return_value += 2.0 + probe  # a second for each step
        rows.add(sums(1.0, 2))
        if probe:
            rows.write_others(step, {}, seconds=probe)
        else:
            rows.write(step)
    assert written(writer)[1]["examples_per_second"] == pytest.approx(16)


def made_log(step, **penalty):
    writer, bar = mock.Mock(seconds=0.0), tqdm(file=io.StringIO())
    changes = {f"penalty.{key}": value for key, value in penalty.items()}
    settings = resolve(tiny_config(changes))
    return train.Rows(settings, writer, bar, step, pending={}), writer, bar


def written(writer):
    """The step and the values of the last row."""
    return writer.write.call_args.args


@pytest.fixture
def log():
    return made_log(4)


def sums(loss, count):
    names = ("loss", "contrastive", "penalty")
    one = {name: (np.float32(loss * count), np.float32(count)) for name in names}
    return parallel.replicate(one, all_devices(2))


def test_a_row_is_the_mean_over_its_steps(log):
    log, writer, _ = log
    log.add(sums(1.0, 3))
    log.add(sums(5.0, 1))
    log.write(8)
    step, values = written(writer)
    assert (step, values["loss"]) == (8, 2.0)


def test_a_row_of_steps_without_the_penalty_leaves_it_out(log):
    log, writer, bar = log
    without = sums(1.0, 1)
    without["penalty"] = parallel.replicate((0.0, 0.0), all_devices(2))
    log.add(without)
    log.write(5)
    _, values = written(writer)
    assert values["loss"] == 1.0
    assert "penalty" not in values
    assert "penalty" not in bar.postfix


def test_the_bar_shows_loss_penalty_and_speed(log):
    log, _, bar = log
    for step in (6, 9):
        log.add(sums(1.5, 1))
        log.write(step)
    assert bar.n == 5
    shown = dict(item.split("=") for item in bar.postfix.split(", "))
    assert {*shown} == {"loss", "penalty", "examples/s"} and shown["loss"] == "1.5"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_its_steps(log, bad):
    log, writer, _ = log
    log.add(sums(1.0, 2))
    log.write(6)
    log.add(sums(bad, 2))
    with pytest.raises(
        FloatingPointError, match=r"is not finite between steps 6 and 8"
    ):
        log.write(8)
    writer.write.assert_called_once()


@pytest.mark.parametrize(
    ("shape", "limit", "penalty", "warns"),
    [
        ("hard", 0.3, np.float32(0.3), True),
        ("hard", 0.3, np.float32(0.3) * (1 + 1e-6), True),  # the rounding of a mean
        ("hard", 0.3, 0.2997, False),  # 1 % of the examples are at 0.27
        ("hard", 0.3, 0.0, False),
        ("hard", 0.0, 0.0, False),  # no limit
        ("log", 0.3, 0.3, False),
    ],
)
def test_a_penalty_without_gradient_is_said_once(shape, limit, penalty, warns, caplog):
    log, _, _ = made_log(4, example_limit=limit, limit_shape=shape)
    for step, value in ((6, 0.1), (8, penalty), (10, penalty)):
        log.add(sums(value, 2))
        log.write(step)
    text = "steps 7 to 8: practically every example is at penalty.example_limit (0.3)"
    assert caplog.text.count(text) == caplog.text.count("no gradient") == warns


def test_calls_end_where_something_is_due_also_when_a_run_continues():
    changes = {
        "steps": 23,
        "steps_per_call": 6,
        "logging.every_steps": 10,
        "logging.probe_every_steps": 0,
        "logging.profile_steps": "16:19",
        "checkpoints.every_steps": 15,
    }
    settings = resolve(tiny_config(changes))
    whole = list(train.boundaries(settings, 0))
    assert whole == [6, 10, 12, 15, 16, 18, 19, 20, 23]
    for number, step in enumerate(whole):
        assert list(train.boundaries(settings, step)) == whole[number + 1 :]
