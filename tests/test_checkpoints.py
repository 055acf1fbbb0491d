"""Checkpoints: whole or refused, never guessed."""

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runtime.files import absolute

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
    return State(
        np.int32(step),
        {
            "encoder": {"kernel": generator.normal(size=(40, width)).astype("f4")},
            "head": {"bias": generator.normal(size=(3,)).astype("f4")},
        },
        (),
    )


def saved(workdir, steps, **settings):
    checkpoints = Checkpoints(workdir, **settings)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.close()


def restored(workdir, like=None, step=None):
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore(state(0) if like is None else like, step=step)
    finally:
        checkpoints.close()


def steps(workdir):
    checkpoints = Checkpoints(workdir)
    found = checkpoints.steps()
    checkpoints.close()
    return found


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    dtypes = [
        [np.asarray(leaf).dtype for leaf in jax.tree.leaves(tree)]
        for tree in (found, expected)
    ]
    assert dtypes[0] == dtypes[1]


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


def test_a_note_comes_back_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1), note={"loss": [0.1, 3.0]})
    checkpoints.save(2, state(2))
    checkpoints.wait()
    assert checkpoints.note(1) == {"loss": [0.1, 3.0]}
    assert checkpoints.note(2) == {}
    checkpoints.close()


def test_what_a_killed_start_left_is_removed_by_its_owner_only(workdir):
    torn = workdir / "checkpoints" / "30.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "20", torn)
    assert steps(workdir) == [10, 20]
    assert torn.exists()
    saved(workdir, [40], owns=True)
    assert not torn.exists()


def test_the_folder_may_be_in_an_object_store():
    assert str(absolute("gs://bucket/run") / "checkpoints") == (
        "gs://bucket/run/checkpoints"
    )


def test_the_newest_state_comes_back(original):
    assert_same(restored(original), state(20))


def test_an_older_state_comes_back_by_its_step(original):
    assert_same(restored(original, step=10), state(10))


def test_what_is_saved_may_change_afterwards(tmp_path):
    checkpoints, changed = Checkpoints(tmp_path), state(5)
    checkpoints.save(5, changed)
    checkpoints.close()
    changed.params["head"]["bias"][:] = 0
    assert_same(restored(tmp_path), state(5))


def test_steps_are_in_order(original):
    assert steps(original) == [10, 20]


def test_a_step_that_was_not_saved_names_those_that_were(original):
    with pytest.raises(ValueError, match=r"no checkpoint of step 15 in .*\[10, 20\]"):
        restored(original, step=15)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"no checkpoint .*in {tmp_path}"):
        restored(tmp_path)


def test_a_checkpoint_that_was_cut_off_is_never_chosen(workdir):
    folder = workdir / "checkpoints"
    shutil.copytree(folder / "20", folder / "30.orbax-checkpoint-tmp-123")
    assert steps(workdir) == [10, 20]
    assert_same(restored(workdir), state(20))


def test_a_file_that_is_no_checkpoint_is_ignored(workdir):
    (workdir / "checkpoints" / "notes").mkdir()
    (workdir / "checkpoints" / "notes.txt").write_text("mine")
    assert steps(workdir) == [10, 20]


def files(workdir):
    folder = workdir / "checkpoints" / "20"
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_torn_checkpoint_is_refused_or_whole(original, tmp_path, damage):
    """Every file in turn: the state is exactly what was saved, or there is an error."""
    refused = 0
    for number, path in enumerate(files(original)):
        copy = Path(shutil.copytree(original, tmp_path / str(number)))
        victim = copy / path.relative_to(original)
        if damage == "removed":
            victim.unlink()
        else:
            size = victim.stat().st_size // 2 if damage == "cut" else 0
            victim.write_bytes(victim.read_bytes()[:size])
        folder = copy / "checkpoints" / "20"
        try:
            assert_same(restored(copy, step=20), state(20))
        except ValueError as error:
            refused += 1
            assert str(error).startswith((f"the checkpoint {folder}", "no checkpoint"))
            assert "\n" not in str(error)
    assert refused >= 2


def test_an_older_checkpoint_serves_when_a_torn_one_is_moved_away(workdir):
    folder = workdir / "checkpoints"
    for path in files(workdir):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"20 cannot be read .* move it away"):
        restored(workdir)
    (folder / "20").rename(workdir / "torn")
    assert_same(restored(workdir), state(10))


def test_another_shape_names_the_array(original):
    with pytest.raises(ValueError) as caught:
        restored(original, like=state(0, width=299))
    assert str(caught.value).endswith(
        "20 does not fit the configuration: for params.encoder.kernel expected "
        "(40, 299), found (40, 300)."
    )


@pytest.mark.parametrize("side", ["missing", "too many"])
def test_another_set_of_arrays_names_the_first(original, side):
    like = state(0)
    if side == "missing":
        like.params["head"]["scale"] = np.zeros(3)
        expected = r"for params\.head\.scale expected \(3,\), found nothing"
    else:
        del like.params["head"]["bias"]
        expected = r"for params\.head\.bias expected nothing, found \(3,\)"
    with pytest.raises(ValueError, match=expected):
        restored(original, like=like)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_refused(workdir, bad):
    broken = state(30)
    broken.params["head"]["bias"][1] = bad
    checkpoints = Checkpoints(workdir)
    with pytest.raises(
        FloatingPointError, match=r"^params\.head\.bias is not finite at step 30"
    ):
        checkpoints.save(30, broken)
    checkpoints.close()
    assert steps(workdir) == [10, 20]
    assert_same(restored(workdir), state(20))


def test_what_comes_after_a_step_is_removed_and_may_be_saved_anew(workdir):
    checkpoints = Checkpoints(workdir)
    checkpoints.remove_after(10)
    assert checkpoints.steps() == [10]
    checkpoints.save(20, state(21))
    checkpoints.close()
    assert_same(restored(workdir), state(21))


def test_the_newest_ones_are_kept(tmp_path):
    saved(tmp_path, [1, 2, 3, 4, 5], keep=2)
    assert steps(tmp_path) == [4, 5]


def test_all_are_kept_unless_asked_otherwise(tmp_path):
    saved(tmp_path, [1, 2, 3])
    assert steps(tmp_path) == [1, 2, 3]


def test_checkpoints_along_the_way_are_kept_for_good(tmp_path):
    saved(tmp_path, [10, 20, 30, 40, 50], keep=1, keep_every_steps=20)
    assert steps(tmp_path) == [20, 40, 50]
