"""Seeds that train as one: the numbers, the files and the stops of one by one."""

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from test_compilation import missed
from test_preemption import signal_after
from test_train import Bar, Stop, Writer, checkpoint_steps, rows, without_timing
from tiny import tiny_config

from invariance_jax import train
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.rows import Rows
from invariance_jax.runtime.preemption import Preempted
from invariance_jax.training import memory, parallel, seeds, start
from invariance_jax.training.components import make_examples
from invariance_jax.training.settings import resolve

pytestmark = pytest.mark.usefixtures("compiled_once")

CHANGES = {
    "seeds": 3,
    "steps": 30,
    "logging.every_steps": 1,
    "logging.probe_every_steps": 15,
    # With a bias that has no gradient, adamw would scale its rounding error up.
    "encoder.final": "norm_relu",
}
NAMES = ("seed_0", "seed_1", "seed_2")


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Leaves one of the four devices, as most machines have."""
    devices = parallel.all_devices(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "all_devices", lambda: devices)
        yield


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The work directory of three seeds that trained as one, never stopped."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    train.run(tiny_config(CHANGES), workdir)
    return workdir


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """The same seeds one after the other."""
    workdir = tmp_path_factory.mktemp("apart") / "run"
    train.run(tiny_config(CHANGES | {"seeds_together": False}), workdir)
    return workdir


@pytest.fixture
def calls(monkeypatch):
    """How many seeds train as one, for each time that training begins."""
    make, counts = parallel.make_train, []

    def note(*arguments, seeds):
        counts.append(seeds)
        return make(*arguments, seeds=seeds)

    monkeypatch.setattr(parallel, "make_train", note)
    return counts


def final_state(workdir):
    checkpoints = Checkpoints(workdir)
    state = checkpoints.restore(start.state_shapes(resolve(tiny_config(CHANGES))))
    checkpoints.close()
    return state


def assert_same_bits(workdir, other):
    for name in NAMES:
        found, expected = final_state(workdir / name), final_state(other / name)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert without_timing(workdir / name) == without_timing(other / name)


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_those_of_one_by_one(together, apart, name):
    for key in ("loss", "penalty", "contrastive"):
        found, expected = (
            [row[key] for row in rows(run / name) if key in row][:10]
            for run in (together, apart)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_ends_close_to_that_of_one_by_one(together, apart, name):
    found, expected = (final_state(run / name) for run in (together, apart))
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())


def test_seeds_differ(together):
    losses = [rows(together / name)[0]["loss"] for name in NAMES]
    assert len({*losses}) == 3


@pytest.mark.parametrize("name", NAMES)
def test_each_seed_leaves_what_it_leaves_one_by_one(together, apart, name):
    found, expected = (
        sorted(path.name for path in (run / name).iterdir())
        for run in (together, apart)
    )
    assert found == expected
    assert checkpoint_steps(together / name) == checkpoint_steps(apart / name)
    columns = [
        [(row["step"], *row) for row in rows(run / name)] for run in (together, apart)
    ]
    assert columns[0] == columns[1]


def test_seconds_are_shared_and_the_speed_is_that_of_one_seed(together):
    found = [[row for row in rows(together / name) if "loss" in row] for name in NAMES]
    for same in zip(*found, strict=True):
        assert len({row["examples_per_second"] for row in same}) == 1
        assert np.ptp([row["seconds"] for row in same]) < 1e-6
    last, before = found[0][-1], found[0][-2]
    passed = last["seconds"] - before["seconds"]
    assert last["examples_per_second"] == pytest.approx(16 / passed, rel=1e-6)


def test_a_stopped_run_continues_to_the_same_bits(
    together, tmp_path, monkeypatch, calls
):
    with monkeypatch.context() as patch:
        signal_after(patch, 13)
        with pytest.raises(Preempted, match="seed_2: SIGTERM; saved at step 13, the"):
            train.run(tiny_config(CHANGES), tmp_path)
    assert {checkpoint_steps(tmp_path / name)[-1] for name in NAMES} == {13}
    train.run(tiny_config(CHANGES), tmp_path)
    assert calls == [3, 3]
    assert_same_bits(tmp_path, together)


def test_a_kill_between_the_checkpoints_of_two_seeds_changes_nothing(
    together, tmp_path, monkeypatch, calls
):
    save = Checkpoints.save

    def stopped(checkpoints, step, state, **note):
        save(checkpoints, step, state, **note)
        if step == 20 and checkpoints.directory.parent.name == "seed_1":
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stopped)
        with pytest.raises(Stop):
            train.run(tiny_config(CHANGES), tmp_path)
    found = [checkpoint_steps(tmp_path / name) for name in NAMES]
    assert found == [[10, 20], [10, 20], [10]]
    train.run(tiny_config(CHANGES), tmp_path)
    assert calls == [3, 3]
    assert_same_bits(tmp_path, together)


def test_finished_seeds_are_left_alone(together, calls):
    def files():
        written = [path for path in together.glob("seed_*/*/**/*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in written}

    before = files()
    train.run(tiny_config(CHANGES), together)
    assert not calls
    assert files() == before


def test_a_further_seed_trains_alone_with_the_bits_of_one_run(
    together, apart, tmp_path, calls
):
    workdir = Path(shutil.copytree(together, tmp_path / "run"))
    shutil.rmtree(workdir / "seed_2")
    train.run(tiny_config(CHANGES), workdir)
    assert calls == [1]
    found, expected = (final_state(run / "seed_2") for run in (workdir, apart))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # New; equally far; finished.
        ([[], [], []], [[0, 1, 2]]),
        ([[10, 20], [10, 20], [20]], [[0, 1, 2]]),
        ([[100], [90, 100], [100]], [[0], [1], [2]]),
        # A kill between the checkpoints of two seeds: of a step, of a stop, the last.
        ([[10, 20], [10, 20], [10]], [[0, 1, 2]]),
        ([[10, 13], [10], [10]], [[0, 1, 2]]),
        ([[90, 100], [90], [90]], [[0], [1, 2]]),
        # Nothing that all have: no work is thrown away.
        ([[10], [], []], [[0], [1, 2]]),
        ([[20], [20], [10]], [[0, 1], [2]]),
        # What all have is long past.
        ([[10, 80, 90], [10], [10, 80, 90]], [[0, 2], [1]]),
        ([[100], [], [50, 60], [60]], [[0], [1], [2, 3]]),
    ],
)
def test_seeds_are_grouped_without_losing_work(steps, expected):
    assert seeds.group(steps, total=100, most=10) == expected


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([[]], 0), ([[10, 20]], 20), ([[10, 20], [10], [10, 20]], 10), ([[10], [20]], 0)],
)
def test_training_goes_on_from_the_newest_common_step(steps, expected):
    assert seeds.newest_common(steps) == expected


def grouped(tmp_path, changes, *, devices=1):
    """Returns how many seeds of a new run train as one, part by part."""
    each = []
    for seed in range(3):
        settings = resolve(tiny_config(changes | {"seed": seed}))
        each.append(SimpleNamespace(settings=settings, workdir=tmp_path / str(seed)))
    found = seeds.parts(each, np.zeros((200, 4)), jax.devices()[:devices])
    assert [seed for part in found for seed in part] == each
    return [len(part) for part in found]


def test_seeds_train_as_one_only_where_it_pays(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert grouped(tmp_path, {}) == [3]
    assert "seeds 0, 1, 2 train as one" in caplog.text
    assert grouped(tmp_path, {"seeds_together": False}) == [1, 1, 1]
    assert grouped(tmp_path, {"encoder.name": "resnet18"}) == [1, 1, 1]
    assert grouped(tmp_path, {"penalty.every_steps": 2}) == [1, 1, 1]
    assert grouped(tmp_path, {}, devices=2) == [1, 1, 1]
    monkeypatch.setattr(memory, "fits", lambda *_, seeds: seeds < 3)
    assert grouped(tmp_path, {}) == [1, 1, 1]


def test_a_loss_that_is_not_finite_names_its_seed_and_no_seed_has_the_row():
    settings = [resolve(tiny_config({"seed": seed})) for seed in (4, 5)]
    writers = [Writer(), Writer()]
    log = Rows(settings, writers, Bar(), first_step=6, pending=[{}, {}])
    for losses in ([1.0, 2.0], [3.0, np.nan]):
        count = np.full(2, 2, np.float32)
        sums = {
            name: (np.array(losses, np.float32) * 2, count)
            for name in ("loss", "penalty")
        }
        log.add(parallel.replicate(sums, parallel.all_devices()))
        if losses[1] == 2:
            log.write(8)
    with pytest.raises(FloatingPointError, match="^loss of seed 5 is not finite betw"):
        log.write(10)
    assert [[step for step, _ in writer.rows] for writer in writers] == [[8], [8]]
    assert [writer.rows[0][1]["loss"] for writer in writers] == [1.0, 2.0]


def test_seeds_fit_if_all_that_they_take_is_half_of_the_memory(monkeypatch):
    found = SimpleNamespace(
        argument_size_in_bytes=7,
        output_size_in_bytes=5,
        alias_size_in_bytes=4,
        temp_size_in_bytes=10,
    )
    compiled = SimpleNamespace(memory_analysis=lambda: found)
    monkeypatch.setattr(memory, "compile_train", lambda *_, seeds: compiled)
    for limit, expected in ((None, True), (36, True), (35, False)):
        monkeypatch.setattr(memory, "limit", lambda _, limit=limit: limit)
        assert memory.fits(None, None, None, seeds=3) == expected


def test_the_program_that_must_fit_is_that_of_training(together, caplog):
    settings = resolve(tiny_config(CHANGES))
    x, devices = make_examples(settings, "train").x, parallel.all_devices()

    def compile_train():
        compiled.append(memory.compile_train(settings, x, devices, seeds=3))

    compiled = []
    assert missed(caplog, compile_train) == 0
    state = start.state_shapes(settings)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    found = compiled[0].memory_analysis()
    assert 3 * size < found.argument_size_in_bytes < 3 * size + 10_000
    assert 3 * size <= found.alias_size_in_bytes <= found.output_size_in_bytes
