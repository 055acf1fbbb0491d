"""The log of a run: rows of JSON, cut back to where a run goes on from."""

import json
import logging

import pytest
from processes import rows
from tiny import tiny_config

from invariance_jax.runs.log import MetricsWriter, final_metrics
from invariance_jax.runs.workdir import claim
from invariance_jax.settings import resolve


def write(workdir, first_step, steps, **before):
    owner = claim(resolve(tiny_config()), workdir)
    writer = MetricsWriter(owner, first_step=first_step, **before)
    for step in steps:
        writer.write(step, {"loss": step / 2, "speed": None})
    writer.close()
    return writer.count


def test_rows_are_on_the_disk_when_they_are_written(tmp_path):
    writer = MetricsWriter(claim(resolve(tiny_config()), tmp_path), first_step=0)
    for step in (1, 2):
        writer.write(step, {"loss": step / 2, "speed": None})
        assert writer.count == step
        assert rows(tmp_path)[-1] == {"step": step, "loss": step / 2, "speed": None}
    writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config.json", "metrics.jsonl", "tensorboard")
    }
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


@pytest.mark.parametrize("first_step", [0, 2, 3, 4])
def test_rows_after_the_first_step_are_removed(tmp_path, first_step):
    write(tmp_path, 0, [1, 2, 2, 3, 4])
    write(tmp_path, first_step, [9])
    kept = [step for step in (1, 2, 2, 3, 4) if step <= first_step]
    assert [row["step"] for row in rows(tmp_path)] == [*kept, 9]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.5}', "\n"])
def test_a_last_line_that_was_cut_off_is_removed(tmp_path, torn):
    write(tmp_path, 0, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write(tmp_path, 3, [4])
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 4]


@pytest.mark.parametrize(
    ("damage", "kept", "bad"),
    [
        (lambda content: None, [], False),
        (lambda content: b"", [], False),
        (lambda content: bytes(len(content)), [], False),
        (lambda content: content[: len(content) // 2], [1, 2], False),
        (lambda content: bytes(10) + content[10:], [2, 3, 4], True),
        (lambda content: b"[]\n" + content, [1, 2, 3, 4], True),
        (lambda content: b'{"step": 1e999}\n' + content, [1, 2, 3, 4], True),
        (lambda content: b'{"step": 1, "seconds": ""}\n' + content, [1, 2, 3, 4], True),
        (lambda content: b"[" * 10**5 + b"\n" + content, [1, 2, 3, 4], True),
    ],
    ids=[
        *("deleted", "emptied", "zeroed", "cut", "begins with zeros", "a line more"),
        *("an infinite step", "a time that is no number", "a deep line"),
    ],
)
def test_rows_that_are_missing_are_said(tmp_path, caplog, damage, kept, bad):
    count, path = write(tmp_path, 0, [1, 2, 3, 4]), tmp_path / "metrics.jsonl"
    content = damage(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "invariance_jax"):
        write(tmp_path, 4, [5], rows=count)
    assert [row["step"] for row in rows(tmp_path)] == [*kept, 5]
    lost = 4 - len(kept)
    told = f"{path}: {lost} of the 4 rows until step 4 are missing" in caplog.text
    assert told == bool(lost)
    assert (f"{path}: damaged line 1 is dropped" in caplog.text) == bad


def test_a_start_writes_only_while_the_folder_is_its_own(tmp_path):
    first = MetricsWriter(claim(resolve(tiny_config()), tmp_path), first_step=0)
    first.write(1, {"loss": 0.5})
    write(tmp_path, 1, [2])
    with pytest.raises(OSError, match="was started a second time"):
        first.write(2, {"loss": 0.5})
    first.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    (tmp_path / "config.json").unlink()
    with pytest.raises(OSError, match=r"config\.json is gone"):
        first._owner.check()


FINAL = [
    {"step": 5, "loss": 2.0, "penalty": 0.5},
    {"step": 10, "loss": 1.0},
    {"step": 10, "probe_mse": 0.1},
    {"step": 15, "loss": 0.5, "penalty": 0.25},
]


def test_the_last_row_of_steps_until_the_checkpoint_is_final(tmp_path):
    assert final_metrics(tmp_path, step=9) == {}
    log = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in FINAL)
    log.write_text(text + '{"step": 20, "los')
    # The row of step 10 has no step with the penalty.
    expected = {"loss.final": 1.0, "penalty.final": 0.5}
    assert final_metrics(tmp_path, step=12) == expected
    log.write_text("what?\n" + text)
    message = r"metrics\.jsonl: line 1 is 'what\?', expected a row; remove"
    with pytest.raises(ValueError, match=message):
        final_metrics(tmp_path, step=12)


@pytest.mark.parametrize("kept", [3, 2, 0])
def test_with_rows_missing_no_row_is_final(tmp_path, caplog, kept):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in [*FINAL[:kept], FINAL[3]]))
    with caplog.at_level(logging.WARNING, "invariance_jax"):
        found = final_metrics(tmp_path, step=12, rows=3)
    expected = {"loss.final": 1.0, "penalty.final": 0.5} if kept == 3 else {}
    assert found == expected
    text = f"{log}: {3 - kept} of the 3 rows until step 12 are missing"
    assert (text in caplog.text) == (kept < 3)
