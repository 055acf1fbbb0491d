"""The check before a run: its numbers, by hand, and what it refuses."""

from types import SimpleNamespace

import jax
import pytest
from tiny import image_arrays, image_config, tiny_config

from invariance_jax import check, data
from invariance_jax.training import memory
from invariance_jax.training.components import make_examples
from invariance_jax.training.settings import resolve
from invariance_jax.training.start import initial_state

# Large layers and small images, so that the networks do nearly all of the work.
WIDE = {
    "batch_size": 64,
    "penalty.weight": 0.0,
    "encoder.width": 384,
    "encoder.depth": 3,
    "encoder.projection": 64,
}


@pytest.fixture(scope="module")
def found():
    return check.run(tiny_config(WIDE))


@pytest.fixture(scope="module")
def state():
    return initial_state(resolve(tiny_config(WIDE)))


def hand_count(batch_size):
    """Returns the operations of the matrix products of a step without penalty."""
    inputs, width, hidden, projection = 8 * 8 * 3, 384, 384, 64
    first, others = inputs * width, 2 * width**2
    head = width * hidden + hidden * projection
    # Two views; forward, for the weights and, but for the first layer, for the inputs.
    return 2 * 2 * batch_size * (2 * first + 3 * (others + head))


def test_operations_are_those_of_one_step_on_one_device(found):
    assert len(found.devices) == 4
    assert 1.0 < found.flops / hand_count(64 // 4) < 1.15


def test_parameters_are_counted(found, state):
    for part in ("encoder", "head"):
        leaves = jax.tree.leaves(state.params[part])
        assert found.parameters[part] == sum(leaf.size for leaf in leaves) > 1000


def test_the_state_counts_once_and_the_data_set_once(found, state):
    memory = found.memory
    assert memory.state == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.data == 200 * 4 * 4
    # Key, number of steps, metrics: were the state not donated, it would be here.
    assert 0 < memory.results < 2000
    assert memory.temporary > 64 // 4 * 384 * 4
    assert memory.total == sum(memory)


def test_the_length_is_that_of_the_run(found):
    assert (found.steps, found.steps_per_epoch) == (20, 200 // 64)


def test_the_text_has_a_line_per_fact(found):
    text = check.table(found._replace(seeds=3, memory=check.Memory(1, 2_500, 3, 4, 5)))
    rows = dict(line.strip().split("  ", 1) for line in text.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["devices"] == "4 (cpu)"
    assert rows["batch"] == "64 examples, 16 per device"
    assert rows["steps"] == "20, for each of 3 seeds, 3 per epoch"
    assert rows["state"] == "2.5 kB"
    assert rows["other"] == "8 bytes"
    assert rows["memory per device"].startswith("2.513 kB")
    assert f"{4 * found.flops / 1e9:.4g} G over all" in rows["FLOPs per step"]
    count = len(found.collectives)
    assert rows["sent per device"].endswith(f" per step, in {count} collectives")


def test_operations_that_are_not_told_are_not_made_up(found):
    none = check._flops(SimpleNamespace(cost_analysis=dict))
    assert none is None
    assert "not told by XLA" in check.table(found._replace(flops=none))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_data_set_is_known_without_being_read(tmp_path, channels, monkeypatch):
    arrays = {
        split: image_arrays(seed, num_examples=count, channels=channels)
        for seed, (split, count) in enumerate({"train": 150, "test": 45}.items())
    }
    data.prepare_arrays("bars", tmp_path, **arrays)
    settings = resolve(image_config(tmp_path))
    expected = make_examples(settings, "train").x
    monkeypatch.setattr(data, "load_arrays", None)
    stand_in = check._examples(settings)
    assert (stand_in.shape, stand_in.dtype) == (expected.shape, expected.dtype)
    assert stand_in.base.nbytes == 1


def test_spirograph_targets_are_not_drawn(monkeypatch):
    settings = resolve(tiny_config())
    expected = make_examples(settings, "train").x
    monkeypatch.setattr(data, "make_targets", None)
    stand_in = check._examples(settings)
    assert (stand_in.shape, stand_in.dtype) == (expected.shape, expected.dtype)


def test_a_set_that_is_not_prepared_is_not_downloaded(tmp_path):
    config = tiny_config({"data.name": "cifar10", "data.data_dir": str(tmp_path)})
    with pytest.raises(ValueError, match="data.name is 'cifar10', which is not prep"):
        check.run(config)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 18}, "batch_size is 18; expected a multiple of the 4 devices"),
        ({"penalty.weight": -1.0}, "penalty.weight is -1.0; expected 0 or"),
        ({"encoder.weights": "/none.npz"}, "/none.npz"),
    ],
)
def test_what_would_stop_the_run_is_said(changes, message, monkeypatch):
    monkeypatch.setattr(memory, "compile_train", None)  # before it is called
    with pytest.raises(ValueError, match=message):
        check.run(tiny_config(changes))


def test_devices_cannot_be_simulated_after_others_were_used():
    jax.devices()
    with pytest.raises(ValueError, match="has used 4 cpu devices already; expected no"):
        check.run(tiny_config(), num_devices=3)
    assert jax.config.jax_num_cpu_devices == 4


def test_a_step_that_does_not_fit_is_refused():
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 3 * 10**9})
    with pytest.raises(ValueError, match="takes 4 GB of the 3 GB of .*lower batch_si"):
        check._check_fits(4 * 10**9, (device,))
    check._check_fits(2 * 10**9, (device,))


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check.run(tiny_config({"encoder.depth": 1}))
    assert not [*tmp_path.iterdir()]
