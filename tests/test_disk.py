"""A disk that is full or cannot be written: an error at once, not at the end."""

import resource
import shutil
from collections import namedtuple

import numpy as np
import processes
import pytest
from processes import CONFIG, SMALL
from tiny import SEEDS, tiny_config

from invariance_jax import train
from invariance_jax.models import weights
from invariance_jax.runs import checkpoints
from invariance_jax.runtime.files import named, replacing

Usage = namedtuple("Usage", "total used free")


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_once_in_one_line(tmp_path):
    wide = "encoder.width=256 steps=1000 steps_per_call=1 compilation_cache=off"
    words = [f"--workdir={tmp_path / 'run'}", *SMALL, *processes.config_flags(wide)]
    shell = ("bash", "-c", 'ulimit -f 100; exec "$@"', "bash")
    done = processes.launch(CONFIG, *words, "--mode=train", shell=shell)
    said = [line for line in done.stderr.splitlines() if not line.startswith("train")]
    assert done.returncode == 1
    assert said[-1] == (
        f"error: the checkpoint in {tmp_path / 'run' / 'checkpoints'} could not be "
        "written: File too large; the older ones are kept."
    )
    assert len(said) == 4  # with processes, compilation, and from what it began
    # Nothing is left that a resume would take for a checkpoint.
    names = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert not [name for name in names if name.isdecimal()]


def test_a_file_is_named_where_the_system_does_not(tmp_path):
    with pytest.raises(OSError, match=r"No space left.*: '/a/b'"), named("/a/b"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match=r"^no room$"), named("/a/b"):
        raise OSError("no room")


@pytest.fixture
def full():
    """A disk that is full after a kilobyte of each file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_of_a_file_that_does_not_fit_nothing_is_left(tmp_path, full, name):
    path, arrays = tmp_path / name, {"a": np.zeros(1000)}
    with pytest.raises(OSError, match="File too large"):
        weights.save_state_dict(path, arrays)
    with pytest.raises(OSError, match=f"File too large: '{path}'"):
        with replacing(path) as file:
            np.savez(file, **arrays)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 3),
        ({"checkpoints.every_steps": 30}, 2),
        ({"checkpoints.every_steps": 2, "checkpoints.keep_every_steps": 4}, 7),
        ({"seeds": 3}, 7),
    ],
)
def test_a_disk_without_room_for_the_checkpoints_is_refused(
    tmp_path, monkeypatch, changes, count
):
    """Of 20 steps, those that are kept: the two newest, and those along the way."""
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: Usage(9, 1, 8))
    with pytest.raises(OSError, match=rf"left; expected {count} times the .* Lower ch"):
        train.run(tiny_config(changes), tmp_path / "run")
    assert not [*tmp_path.rglob("checkpoints")]


def test_a_resumed_run_needs_room_for_the_checkpoints_that_it_adds(
    trained_seeds, tmp_path, monkeypatch
):
    """The last of the first seed is missing; the second has trained."""
    workdir = shutil.copytree(trained_seeds, tmp_path / "run")
    shutil.rmtree(workdir / "seed_0" / "checkpoints" / "20")
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: Usage(9, 1, 8))
    with pytest.raises(OSError, match="left; expected 2 times the"):
        train.run(tiny_config(SEEDS), workdir)


def test_checkpoints_that_were_removed_need_no_room(tmp_path, monkeypatch):
    state, steps = {"w": np.zeros(3)}, range(2, 21, 2)
    found = checkpoints.Checkpoints(tmp_path, keep=1, keep_every_steps=2)
    found.save(8, state)
    found.wait()
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: Usage(9, 1, 8))
    with pytest.raises(OSError, match="left; expected 7 times the"):
        found.check_room(state, steps)
    found.close()
