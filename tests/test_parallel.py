"""Replicas: n devices give the numbers of one device on the joined batch."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import penalty, tiny_config

from invariance_jax.runtime.devices import all_devices
from invariance_jax.settings import resolve
from invariance_jax.training import parallel
from invariance_jax.training.batches import InMemory
from invariance_jax.training.build import build

KEY = jax.random.key(5)
STEPS = 3

SMALL = {
    "encoder.width": 7,
    "encoder.projection": 5,
    "data.image_size": 6,
    "data.num_points": 6,
    "optimizer.learning_rate": 0.3,
}


def widest(leaf):
    """A floating leaf in the widest precision that is enabled."""
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf.astype(float) if floating else leaf


class Case:
    """The parts of a run, in the precision that is enabled."""

    def __init__(self, changes, steps=STEPS):
        self.steps, settings = steps, resolve(tiny_config(SMALL | changes))
        self.alone = build(settings)
        # A float array in the widest precision that is enabled.
        x = self.alone.task.examples("train").x
        self.x = np.asarray(jnp.asarray(x).astype(float))
        self.batches = InMemory(self.x, parallel.replicate)

    def start(self):
        state = jax.jit(self.alone.init)(jax.random.key(1))
        return jax.tree.map(lambda leaf: np.asarray(widest(leaf)), state)

    def on_the_joined_batch(self):
        """Yields state and metrics after each step, without an axis."""
        step, state = self.alone.make_step(), self.start()
        draw, sampler = self.alone.make_draw(), self.alone.make_sampler()

        @jax.jit
        def advance(state):
            indices, draws = sampler(KEY, state.step), draw(KEY, state.step)
            return step(state, jnp.asarray(self.x)[indices], draws)

        for _ in range(self.steps):
            state, metrics = advance(state)
            yield jax.tree.map(np.asarray, (state, metrics))

    def train(self, devices):
        mapped = build(self.alone.settings, axis_name=parallel.AXIS_NAME)
        program = parallel.map_train(mapped, self.batches, devices)
        return parallel.make_train(program, self.batches, devices)

    def on_devices(self, count):
        """Yields state and metrics of one replica after each step."""
        devices = all_devices(count)
        train, state = self.train(devices), parallel.replicate(self.start(), devices)
        for step in range(self.steps):
            state, metrics = train(state, KEY, step, 1)
            yield parallel.one_replica((state, metrics))


def assert_close(found, expected, tolerance):
    def check(a, b):
        size = max(1e-4, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)

    jax.tree.map(check, found, expected)


# Groups within the share of a device, of which there are two.
MICROBATCHES = {"microbatches": 2, "batchnorm.group_size": 4}

# With LARS; where the gradient of a bias is 0, adamw would scale its rounding error up.
CASES = {
    "paper": {"optimizer.name": "adamw"},
    "ratio, two directions, groups within devices": {
        "batchnorm.group_size": 4,
        **penalty(normalization="batch", directions=2),
    },
    "held statistics, two directions, groups that span devices": {
        "optimizer.name": "adamw",
        "batchnorm.group_size": 8,
        **penalty(batch_statistics="example", directions=2),
    },
    # Between the means of devices and of microbatches: they must decide together.
    "limit of the batch, microbatches": {
        **MICROBATCHES,
        **penalty(batch_limit=200.0, example_limit=None, weight=0.5),
    },
    "signs on z, held, one parameter, log": penalty(
        estimator="sign",
        at="z",
        batch_statistics="example",
        parameters=("rback",),
        limit_shape="log",
    ),
    "every second step, microbatches": {
        **MICROBATCHES,
        "similarity_block": 3,
        **penalty(every_steps=2, weight=0.5),
    },
    "two directions, signs, microbatches": {
        **MICROBATCHES,
        **penalty(directions=2, estimator="sign", batch_statistics="example"),
    },
    "total effect, microbatches": {**MICROBATCHES, **penalty(kind="total_effect")},
    "mixed, ratio measured in every second step, microbatches": {
        **MICROBATCHES,
        **penalty(kind="mixed", ratio_every_steps=2),
    },
    "consistency of z, averaged views": {
        "average_views": 2,
        **penalty(kind="consistency", at="z", normalization="batch"),
    },
    "consistency of a block, averaged views, microbatches": {
        **MICROBATCHES,
        "average_views": 2,
        **penalty(kind="consistency", at="bn1"),
    },
    "neither penalty nor normalization, microbatches": {
        "microbatches": 2,
        "encoder.depth": 1,
        **penalty(weight=0.0),
    },
}

PARITY = [("paper", 1), *((name, 2 if "micro" in name else 4) for name in CASES)]


def of_case(name, **changes):
    return Case({"optimizer.name": "lars", **CASES[name], **changes})


@functools.cache
def expected(name):
    return list(of_case(name, microbatches=1).on_the_joined_batch())


@pytest.mark.parametrize(("name", "count"), PARITY)
def test_devices_and_microbatches_give_the_numbers_of_one_batch(x64, name, count):
    found = of_case(name).on_devices(count)
    for (state, metrics), (wanted, terms) in zip(found, expected(name), strict=True):
        assert_close(metrics, terms, 1e-9)
        assert_close(state, wanted, 1e-8)


def test_the_limit_of_the_batch_is_reached(x64):
    penalties = []
    for _, metrics in expected("limit of the batch, microbatches"):
        loss, contrastive, penalty = (
            metrics[name][0] for name in ("loss", "contrastive", "penalty")
        )
        assert loss == pytest.approx(contrastive + 0.5 * min(penalty, 200.0))
        penalties.append(penalty)
    assert max(penalties) > 200


def test_devices_give_the_numbers_of_one_for_a_resnet(x64):
    """Which keeps less for the backward pass, where there are several."""
    changes = {"batch_size": 8, "data.image_size": 8, "optimizer.name": "lars"}
    changes |= {"encoder.name": "own_parts:resnet"}
    found = Case(changes | {"encoder.kwargs": {"rematerialize": True}}).on_devices(4)
    wanted = Case(changes).on_the_joined_batch()
    for (state, metrics), (joined, terms) in zip(found, wanted, strict=True):
        assert_close(metrics, terms, 1e-8)
        assert_close(state, joined, 1e-7)


@pytest.fixture(scope="module")
def float32():
    """A case in the precision of a run, its mapped steps and its devices."""
    case, devices = Case({}), all_devices(2)
    train = case.train(devices)

    def advance(state, num_steps):
        return train(state, KEY, 0, num_steps)

    return case, advance, devices


def run(float32, calls):
    """The state after calls of so many steps, and the sums of metrics of each call."""
    case, advance, devices = float32
    state, sums = parallel.replicate(case.start(), devices), []
    for num_steps in calls:
        state, metrics = advance(state, num_steps)
        sums.append(parallel.one_replica(metrics))
    return parallel.one_replica(state), sums


@pytest.mark.parametrize("calls", [[1, 1, 1, 1, 1, 1], [2, 4]])
def test_steps_per_call_change_neither_the_state_nor_the_sums(float32, calls):
    (state, sums), (expected, (whole,)) = run(float32, calls), run(float32, [6])
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    for name, (total, count) in whole.items():
        assert count == 6 == sum(one[name][1] for one in sums)
        assert total == pytest.approx(sum(one[name][0] for one in sums), rel=1e-6)


def test_one_batch_is_on_its_way_while_a_step_runs_and_no_more():
    events = []

    class Metric:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            events.append(f"{self.step} is done")

    class Batches:
        loads_each_step = True

        def load(self, step, devices, before=()):
            events.append(f"{step} is loaded")

    def program(state, key, loaded, count):
        return state + 1, {"loss": Metric(state)}

    steps = parallel.make_train(program, Batches(), jax.local_devices()[:1])
    for step in range(4):
        steps(step, None, step, 1)
    loaded = [f"{step} is loaded" for step in range(4)]
    assert events == [*loaded[:3], "0 is done", loaded[3], "1 is done"]


def test_nothing_is_compiled_after_the_first_call(float32, caplog):
    case, advance, devices = float32
    state, _ = advance(parallel.replicate(case.start(), devices), 1)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for num_steps in (1, 3):
            state, _ = advance(state, num_steps)
        assert "XLA compilation" not in caplog.text
        jax.jit(lambda x: 2 * x + 1)(np.float32(1))
        assert "XLA compilation" in caplog.text


def test_every_replica_ends_with_the_same_state(float32):
    case, advance, devices = float32
    state, metrics = advance(parallel.replicate(case.start(), devices), 2)
    for leaf in jax.tree.leaves((state, metrics)):
        first, second = np.asarray(leaf)
        np.testing.assert_array_equal(first, second)


def test_what_was_handed_over_stays_when_the_state_is_donated(float32):
    case, advance, devices = float32
    state, _ = advance(parallel.replicate(case.start(), devices), 1)
    host = parallel.one_replica(state)
    before = jax.tree.map(np.copy, host)
    for _ in range(3):
        state, _ = advance(state, 2)
    jax.block_until_ready(state)
    jax.tree.map(np.testing.assert_array_equal, host, before)


def test_the_state_is_donated(float32):
    case, advance, devices = float32
    state = parallel.replicate(case.start(), devices)
    advance(state, 1)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_replica_comes_back_as_numpy(count):
    tree = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.float32(2)}
    replicated = parallel.replicate(tree, all_devices(count))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(replicated)} == {count}
    found = parallel.one_replica(replicated)
    assert all(
        isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(found)
    )
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    assert found["a"].dtype == np.int32


def remember(variables, x, indices, stream):
    """Two rows per batch: the examples times a variable, and index plus stream."""
    scaled = variables["factor"] * x[:, 0]
    return jnp.stack([scaled, (indices + stream).astype(x.dtype)])


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_a_map_covers_every_example_once_and_in_order(devices, count):
    mapped = parallel.make_map(remember, all_devices(devices), axis=1)
    x = np.arange(100, 100 + count, dtype=np.float32)[:, None]
    found = mapped({"factor": np.float32(2)}, x, 7, batch_size=2)
    np.testing.assert_array_equal(found[0], 2 * x[:, 0])
    np.testing.assert_array_equal(found[1], np.arange(count) + 7)


def test_a_map_keeps_within_its_batch_size():
    sizes = []

    def note(variables, x, indices, stream):
        sizes.append(len(x))
        return x

    mapped = parallel.make_map(note, all_devices(4), axis=0)
    x = np.arange(30, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(mapped({}, x, 0, batch_size=3), x)
    np.testing.assert_array_equal(mapped({}, x[:5], 0, batch_size=3), x[:5])
    assert {*sizes} == {2, 3}


@pytest.mark.parametrize("count", [0, 5])
def test_devices_that_are_not_there_are_refused(count):
    with pytest.raises(ValueError, match=f"asked for {count} devices; expected 1 to 4"):
        all_devices(count)
