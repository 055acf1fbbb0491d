"""The log of a run: rows of JSON, cut back to where a run goes on from."""

import json

import pytest

from invariance_jax.runs.metrics import MetricsWriter, final_metrics


def rows(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def write(workdir, first_step, steps):
    writer = MetricsWriter(workdir, first_step=first_step)
    for step in steps:
        writer.write(step, {"loss": step / 2, "speed": None})
    writer.close()


def test_rows_hold_the_step_and_the_values(tmp_path):
    write(tmp_path, 0, [1, 2])
    assert rows(tmp_path) == [
        {"step": 1, "loss": 0.5, "speed": None},
        {"step": 2, "loss": 1.0, "speed": None},
    ]


def test_a_row_is_on_the_disk_when_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path, first_step=0)
    writer.write(1, {"loss": 0.5})
    assert [row["step"] for row in rows(tmp_path)] == [1]
    writer.close()


@pytest.mark.parametrize("first_step", [0, 2, 3, 4])
def test_rows_after_the_first_step_are_removed(tmp_path, first_step):
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, first_step, [9])
    kept = [step for step in (1, 2, 3, 4) if step <= first_step]
    assert [row["step"] for row in rows(tmp_path)] == [*kept, 9]


def test_several_rows_of_one_step_are_kept(tmp_path):
    write(tmp_path, 0, [1, 2, 2, 3])
    write(tmp_path, 2, [])
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.5}', "\n"])
def test_a_last_line_that_was_cut_off_is_removed(tmp_path, torn):
    write(tmp_path, 0, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write(tmp_path, 3, [4])
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 4]


def test_event_files_are_written(tmp_path):
    write(tmp_path, 0, [1])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_no_temporary_file_is_left(tmp_path):
    write(tmp_path, 0, [1])
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.jsonl",
        "tensorboard",
    }


def test_the_last_row_of_steps_is_final_whatever_a_kill_has_left(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert final_metrics(tmp_path, step=9) == {}
    rows = [
        {"step": 5, "loss": 2.0, "penalty": 0.5},
        {"step": 10, "loss": 1.0, "penalty": 0.25},
        {"step": 10, "probe_mse": 0.1},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    log.write_text(text + '{"step": 15, "los')
    found = final_metrics(tmp_path, step=12)
    assert found == {"loss.final": 1.0, "penalty.final": 0.25}


def test_rows_after_the_checkpoint_are_not_final(tmp_path):
    rows = [{"step": step, "loss": step, "penalty": 0.0} for step in (5, 10, 15)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert final_metrics(tmp_path, step=10)["loss.final"] == 10


def test_a_row_without_the_penalty_leaves_the_one_before(tmp_path):
    rows = [{"step": 5, "loss": 2.0, "penalty": 0.5}, {"step": 6, "loss": 1.0}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    found = final_metrics(tmp_path, step=6)
    assert found == {"loss.final": 1.0, "penalty.final": 0.5}
