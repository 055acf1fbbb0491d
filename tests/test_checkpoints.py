"""Checkpoints: whole or refused, never guessed."""

import contextlib
import functools
import json
import logging
import re
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from tiny import tiny_config

from invariance_jax.runs import checkpoints as module
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.workdir import claim
from invariance_jax.settings import resolve

# Where one file of a checkpoint cannot be read, orbax closes its event loop before its
# threads have told that loop about the other files.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s).*Event loop is closed:pytest.PytestUnraisableExceptionWarning"
)


class State(NamedTuple):
    step: np.ndarray
    params: dict
    empty: tuple


def state(step, width=300):
    generator = np.random.default_rng(step)
    kernel = generator.normal(size=(40, width)).astype("f4")
    bias = generator.normal(size=(3,)).astype("f4")
    params = {"encoder": {"kernel": kernel}, "head": {"bias": bias}}
    return State(np.int32(step), params, ())


def saved(workdir, steps, **settings):
    with contextlib.closing(Checkpoints(workdir, **settings)) as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step), note={"rows": step})


def opened(workdir, call):
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return call(checkpoints)


def restored(workdir, like=None, step=None):
    like = state(0) if like is None else like
    return opened(workdir, lambda one: one.restore(like, step=step)).state


def newest(workdir):
    return opened(workdir, lambda one: one.newest(state(0)))


def steps(workdir):
    return opened(workdir, lambda one: one.steps())


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    equal = functools.partial(np.testing.assert_array_equal, strict=True)  # and dtypes
    jax.tree.map(equal, found, expected)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A work directory with checkpoints of the steps 10 and 20."""
    workdir = tmp_path_factory.mktemp("run")
    saved(workdir, [10, 20])
    return workdir


@pytest.fixture
def workdir(original, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def test_nothing_is_written_before_the_first_save(tmp_path):
    saved(tmp_path / "run", [])
    assert not (tmp_path / "run").exists()
    assert newest(tmp_path / "run") is None


def test_a_state_comes_back_with_its_step_and_note(original):
    found = newest(original)
    assert (found.step, found.note) == (20, {"rows": 20})
    assert_same(found.state, state(20))
    assert_same(restored(original), state(20))
    assert_same(restored(original, step=10), state(10))
    assert steps(original) == [10, 20]


def test_what_a_killed_start_left_is_removed_by_its_owner_only(workdir):
    torn = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "20", torn)
    assert steps(workdir) == [10, 20]
    assert_same(restored(workdir), state(20))
    assert torn.exists()
    shutil.move(workdir / "checkpoints", workdir / "kept")
    owner = claim(resolve(tiny_config()), workdir)
    shutil.move(workdir / "kept", workdir / "checkpoints")
    saved(workdir, [40], owner=owner)
    assert not torn.exists()


def test_a_start_saves_only_while_the_folder_is_its_own(tmp_path):
    first = claim(resolve(tiny_config()), tmp_path)
    claim(resolve(tiny_config()), tmp_path)
    with pytest.raises(OSError, match="was started a second time"):
        saved(tmp_path, [1], owner=first)
    assert not (tmp_path / "checkpoints").exists()


def test_a_start_that_is_still_saving_leaves_the_step_to_its_owner(
    tmp_path, monkeypatch
):
    settings = resolve(tiny_config())
    writing, continues = threading.Event(), threading.Event()

    def sync(_):
        if not writing.is_set():  # the first start, which waits for the second
            writing.set()
            assert continues.wait(60)
        elif not continues.is_set():  # the second, until the first one has ended
            continues.set()
            with contextlib.suppress(OSError):
                first.wait()

    monkeypatch.setattr(module, "sync", sync)
    first = Checkpoints(tmp_path, owner=claim(settings, tmp_path))
    first.save(1, state(1))
    assert writing.wait(60)
    saved(tmp_path, [1], owner=claim(settings, tmp_path))
    assert_same(restored(tmp_path), state(1))


def test_what_is_saved_may_change_afterwards(tmp_path):
    checkpoints, changed = Checkpoints(tmp_path), state(5)
    checkpoints.save(5, changed)
    checkpoints.close()
    changed.params["head"]["bias"][:] = 0
    assert_same(restored(tmp_path), state(5))


def test_a_step_that_was_not_saved_names_those_that_were(original, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint of step 15 in .*\[10, 20\]"):
        restored(original, step=15)
    with pytest.raises(ValueError, match=f"no checkpoint .*in {tmp_path}"):
        restored(tmp_path)


def test_a_file_that_is_no_checkpoint_is_ignored(workdir):
    (workdir / "checkpoints" / "notes").mkdir()
    (workdir / "checkpoints" / "notes.txt").write_text("mine")
    assert steps(workdir) == [10, 20]


def files(workdir):
    folder = workdir / "checkpoints" / "20"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_or_whole(original, tmp_path, kind):
    """Every file in turn: state and note are what was saved, or there is an error."""
    refused = 0
    for number, path in enumerate(files(original)):
        copy = Path(shutil.copytree(original, tmp_path / str(number)))
        victim = copy / path.relative_to(original)
        if kind == "flipped" and not path.stat().st_size:
            continue
        DAMAGE[kind](victim)
        folder = copy / "checkpoints" / "20"
        try:
            assert_same(restored(copy, step=20), state(20))
        except ValueError as error:
            refused += 1
            assert str(error).startswith((f"the checkpoint {folder}", "no checkpoint"))
            assert "\n" not in str(error)
    assert refused >= 2


def test_every_flipped_bit_of_the_data_is_found_and_the_older_one_is_taken(
    original, tmp_path, caplog
):
    path = max(files(original), key=lambda path: path.stat().st_size)
    for number in range(20):
        copy = Path(shutil.copytree(original, tmp_path / str(number)))
        flip(copy / path.relative_to(original), 600 + number * 1000)
        with pytest.raises(ValueError, match=r"checkpoints/20 is damaged: "):
            restored(copy)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "invariance_jax"):
            found = newest(copy)
        assert (found.step, found.note) == (10, {"rows": 10})
        assert_same(found.state, state(10))
        assert "checkpoints/20 is damaged" in caplog.text


def test_a_note_that_was_changed_is_said(workdir, caplog):
    path = workdir / "checkpoints" / "20" / "_CHECKPOINT_METADATA"
    text = path.read_text()
    changed = text.replace('"rows": 20', '"rows": 21')
    for content in ("", "{", changed, json.dumps({"custom_metadata": None})):
        path.write_text(content)
        with pytest.raises(ValueError, match="20 is damaged: its _CHECKPOINT_METADATA"):
            restored(workdir)
        assert newest(workdir).step == 10
    path.write_text(text)
    assert newest(workdir).step == 20


def test_a_folder_whose_number_is_not_the_step_inside_is_not_believed(workdir, caplog):
    folder = workdir / "checkpoints"
    (folder / "20").rename(folder / "40")
    with pytest.raises(ValueError, match="40 is damaged: it holds step 20"):
        restored(workdir)
    assert newest(workdir).step == 10


def test_an_empty_folder_hides_no_checkpoint(workdir):
    (workdir / "checkpoints/40").mkdir()
    assert newest(workdir).step == 20


def test_nothing_begins_anew_over_damaged_checkpoints(workdir):
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match="every checkpoint in .* is damaged; move"):
        newest(workdir)


ZEROS = np.zeros(3)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            {"encoder": {"kernel": ZEROS}},
            "encoder.kernel expected (3,), found (40, 3",
        ),
        ({"head": {"bias": ZEROS, "a": ZEROS}}, "head.a expected (3,), found nothing"),
        ({"head": {}}, "head.bias expected nothing, found (3,)"),
    ],
)
def test_arrays_that_do_not_fit_are_named_and_are_no_damage(original, params, expected):
    like, expected = state(0), rf"does not fit .* for params\.{re.escape(expected)}"
    like.params.update(params)
    for read in ("restore", "newest"):
        with pytest.raises(ValueError, match=expected):
            opened(original, lambda one, read=read: getattr(one, read)(like))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_refused(workdir, bad):
    broken = state(30)
    broken.params["head"]["bias"][1] = bad
    expected = r"^params\.head\.bias is not finite at step 30"
    with pytest.raises(FloatingPointError, match=expected):
        opened(workdir, lambda one: one.save(30, broken))
    assert_same(restored(workdir), state(20))


def test_what_comes_after_a_step_is_removed_and_may_be_saved_anew(workdir):
    checkpoints = Checkpoints(workdir)
    checkpoints.remove_after(10)
    assert checkpoints.steps() == [10]
    checkpoints.save(20, state(21))
    checkpoints.close()
    assert_same(restored(workdir), state(21))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [10, 20, 30, 40, 50]),
        ({"keep": 2}, [40, 50]),
        ({"keep": 1, "keep_every_steps": 20}, [20, 40, 50]),
        ({"every_steps": 20, "keep": 3}, [20, 40, 50]),
        ({"every_steps": 20, "keep": 1, "keep_every_steps": 10}, [20, 40, 50]),
    ],
)
def test_the_newest_and_those_along_the_way_are_kept(tmp_path, settings, kept):
    saved(tmp_path, [10, 20, 30, 40, 50], **settings)
    assert steps(tmp_path) == kept


def test_a_run_that_saves_less_often_from_now_on_loses_none_of_those_to_keep(tmp_path):
    settings = {"keep": 1, "keep_every_steps": 10}
    saved(tmp_path, [10, 20, 30, 40], every_steps=10, **settings)
    saved(tmp_path, [80], every_steps=40, **settings)
    assert steps(tmp_path) == [10, 20, 30, 40, 80]
