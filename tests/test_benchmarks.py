"""The benchmarks: they run on tiny inputs, and their numbers mean what they say."""

import copy
import importlib
import itertools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from processes import ROOT
from tiny import tiny_config

from invariance_jax import benchmarks
from invariance_jax.benchmarks import gpu, peers, probe, restart, steps, timing
from invariance_jax.benchmarks.timing import Options, Timer
from invariance_jax.settings import change, resolve
from invariance_jax.transforms import spirograph

ONCE = Options(Timer(1, 0.0), tiny_config({"encoder.width": 4}))
SHAPE = dict.fromkeys(("encoder.width", "encoder.depth", "encoder.projection"))
OF_TORCH = tiny_config(
    {**SHAPE, "encoder.final": "norm_relu", "data.num_points": peers.NUM_POINTS}
)

CASES = {
    "render": (2, 2, {"batch_size": 2, "image_size": 8, "num_points": 5}),
    "augment": (1, 0, {"batch_size": 128, "image_size": 16, "workers": 2}),
    "decode": (2, 2, {"count": 3}),
    "steps": (0, 4, {"resnet_batch": 4}),
    "penalty": (1, 0, {}),
    "loss": (2, 2, {"sizes": (12, 8), "features": 3, "block_size": 4}),
    "probe": (0, 3, {"examples": 60, "features": 4, "steps": 9, "averaged": 2}),
    "scaling": (2, 0, {"counts": (2,), "num_steps": 2}),
    "restart": (2, 0, {}),
}
"""Rows of each benchmark, those that PyTorch adds, and tiny inputs."""

needs_torch = pytest.mark.skipif(not timing.has_torch(), reason="needs PyTorch")


class Clock:
    """A clock that only the calls move on, and the calls made so far."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def call(self, name, *seconds):
        each = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def called():
            self.calls.append(name)
            self.now += next(each)

        return called


@pytest.mark.parametrize(
    ("min_seconds", "calls"), [(1.0, "aabb" + "aab" + "baa"), (0.0, "ab" + "ab" + "ba")]
)
def test_a_timer_fills_the_least_time_and_takes_turns(min_seconds, calls):
    clock = Clock()
    both = clock.call("a", 9.0, 0.5), clock.call("b", 2.0)
    times = Timer(2, min_seconds, clock)(*both)
    assert "".join(clock.calls) == calls
    np.testing.assert_allclose(times, [[0.5] * 2, [2.0] * 2])  # of a call but the first


def test_a_timer_waits_for_the_result():
    result = mock.Mock()
    Timer(1, 0.0)(lambda: result)
    assert result.block_until_ready.call_count == 2


def test_a_ratio_is_the_median_of_neighbours_with_the_extremes():
    first, second = np.array([2.0, 4.0, 8.0]), np.array([1.0, 2.0, 2.0])
    row = timing.compare("case", ("peer", first), ("ours", second), "note")
    assert (row["first, ms"], row["second, ms"]) == (4000, 2000)
    assert [row[c] for c in ("first / second", "min", "max", "n")] == [2, 2, 4, 3]
    assert json.loads(json.dumps(row)) == row
    expected = "| case | peer / ours    | 4000 / 2000 | 2 (2 to 4) | 3 | note |"
    assert timing.table([row]).splitlines()[-1] == expected


def test_a_table_has_a_column_for_each_key_and_three_digits():
    lines = timing.table([{"case": "a", "ms": 1.2345}, {"case": "b", "n": 1234}])
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines.splitlines()]
    assert cells[0] == ["case", "ms", "n"]
    assert cells[2:] == [["a", "1.23", ""], ["b", "", "1234"]]
    assert len({*map(len, lines.splitlines())}) == 1


@pytest.mark.parametrize("found", [[1.0, 2.3], [1.0, np.nan], [1.0, 2.0, 3.0]])
def test_a_peer_that_computes_something_else_is_refused(found):
    timing.check_same("x", [1.0, 2.1], [1.0, 2.0], 0.1)
    with pytest.raises(AssertionError, match="x of the peer"):
        timing.check_same("x", found, [1.0, 2.0], 0.1)
    with pytest.raises(AssertionError, match="x of the peer"):
        timing.check_same("x", 2.0, [2.0, 2.0], 0.1)  # NumPy takes one for all
    with pytest.raises(AssertionError, match="x of ours"):
        timing.check_same("x", [1.0, np.nan], [1.0, np.nan], 0.1)


def test_rates_are_operations_and_bytes_a_second(monkeypatch):
    monkeypatch.setattr(Timer, "__call__", lambda *_: np.array([[0.5, 1.0]]))
    assert timing.product_rate.__wrapped__("float32") == 2 * 2048**3 / 0.5
    assert timing.copy_rate.__wrapped__() == 2 * 4 * 2**25 / 0.5


def benchmark(name):
    module = f"invariance_jax.benchmarks.{benchmarks.MODULES.get(name, name)}"
    return getattr(importlib.import_module(module), f"time_{name}")


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_runs(name, monkeypatch):
    if name in benchmarks.NEED_TORCH and not timing.has_torch():
        pytest.skip("needs PyTorch")
    monkeypatch.chdir(ROOT)
    two = {form: steps.FORMS[form] for form in ("plain", "penalized")}
    monkeypatch.setattr(steps, "FORMS", two)
    options = ONCE._replace(config=OF_TORCH) if name == "steps" else ONCE
    count, of_torch, tiny = CASES[name]
    rows = [*benchmark(name)(options, **tiny)]
    assert all(row["first / second"] > 0 and row["n"] == 1 for row in rows)
    assert len(rows) == count + of_torch * timing.has_torch()


@pytest.mark.parametrize(("image_size", "num_points"), [(32, 40), (9, 7)])
def test_the_broadcasting_renderer_draws_our_images(image_size, num_points):
    parameters = peers.draw_parameters(16)
    found = peers.broadcast(np, parameters, image_size, num_points)
    size = {"image_size": image_size, "num_points": num_points}
    expected = spirograph.render(jnp.asarray(parameters), **size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_the_objective_of_our_probe_is_the_least(kind):
    h, targets, labels = probe.make_features(300, 8)
    y = targets if kind == "ridge" else labels
    kernel, bias = map(np.asarray, probe.fit(kind, h, y))
    least = probe.objective(kind, (kernel, bias), h, y)
    generator = np.random.default_rng(0)
    for _ in range(5):
        other = kernel + 1e-2 * generator.normal(size=kernel.shape)
        assert probe.objective(kind, (other, bias), h, y) > least


def test_a_probe_that_is_worse_than_the_peers_is_refused(monkeypatch):
    best = np.zeros((4, 4)), np.zeros(4)
    monkeypatch.setattr(peers, "make_probe", lambda *_, **__: lambda: best)
    monkeypatch.setattr(probe, "fit", lambda *_: (best[0] + 1, 9.0))
    with pytest.raises(ValueError, match="the objective of our ridge probe is"):
        next(probe.time_probe(ONCE, **CASES["probe"][2]))


class FakeTraining:
    """A training whose steps take as many seconds as the forms of the penalty say."""

    clock, memory = Clock(), 2e6

    def __init__(self, config):
        chosen, self.parts = resolve(config).penalty, 2 * config.average_views
        if chosen.kind == "consistency":
            self.parts += 1
        elif chosen.weight:
            self.parts += 1 / chosen.every_steps

    def __call__(self, num_steps):
        self.clock.now += num_steps * self.parts

    def check_finite(self):
        pass


def test_the_forms_of_the_penalty_are_timed_per_step(monkeypatch):
    monkeypatch.setattr(steps, "Training", FakeTraining)
    options = ONCE._replace(timer=Timer(2, 0.0, FakeTraining.clock))
    found = [*steps.time_penalty(options)]
    assert [row["first / second"] for row in found] == [1.5, 1.25, 1.125, 1.5, 2.0]
    assert found[0]["first"] == "penalized, 2 MB"
    assert (found[0]["first, ms"], found[0]["second, ms"]) == (3000, 2000)
    sweep = {"four": {"average_views": 4}, "two": {"average_views": 2}}
    (row,) = steps.time_penalty(options._replace(sweep=sweep))
    assert (row["first"], row["second"]) == ("two, 2 MB", "four, 2 MB")
    assert row["first / second"] == pytest.approx(5 / 9)
    plain = options._replace(config=tiny_config({"penalty.weight": 0.0}))
    with pytest.raises(ValueError, match="penalty.weight is 0.0; expected a positive"):
        steps.check(["penalty"], plain)


@pytest.fixture(scope="module")
def training():
    return steps.Training(tiny_config())


def test_a_training_trains_on(training):
    first, second = (training(2)["loss"] for _ in range(2))
    assert (first[1] == 2).all() and (first[0] != second[0]).all()
    training.check_finite()
    assert training.memory > 200 * 4 * 4


def test_a_loss_that_is_not_finite_is_refused(training):
    training._sums = {"loss": (jnp.full((1,), jnp.nan), jnp.ones((1,)))}
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        training.check_finite()


def test_a_configuration_is_that_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert timing.configuration("spirograph", "smoke").steps == 40
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no configs/spirograph.py; expected"):
        timing.configuration("spirograph")


def test_a_run_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(restart, "_TRAIN", "raise KeyError('why')")
    with pytest.raises(RuntimeError, match="the run failed: .*KeyError: 'why'"):
        restart.Stopped(tiny_config(), tmp_path)


def test_the_steps_on_a_gpu_are_those_of_the_papers_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = gpu.CASES
    assert names[0] == "spirograph resnet18 512 bfloat16 penalized"
    assert len(names) == len({*names}) == 20
    for name in names:
        config = gpu.make_config(name)
        found = config.encoder.name, str(config.batch_size), config.precision
        assert found == tuple(name.split()[1:4])
        assert (config.penalty.weight > 0) == ("penalized" in name)
        assert config.encoder.rematerialize == ("rematerialized" in name)
        assert resolve(config).data.name == name.split()[0]
    assert len(gpu.chosen(names, ("4096", "spirograph"))) == 10
    with pytest.raises(ValueError, match=r"--cases is \('tpu',\); expected parts of"):
        gpu.chosen(names, ("tpu",))


def test_a_step_that_fails_or_has_no_time_is_told(monkeypatch):
    clock = Clock()
    options = ONCE._replace(seconds=25.0, timer=Timer(1, 0.0, clock))
    text = "RESOURCE_EXHAUSTED: out of memory"
    errors = {  # of a step that runs, and of one that is compiled
        "large": jax.errors.JaxRuntimeError(text),
        "larger": ValueError(f"the training step does not fit into memory ({text})"),
    }

    def measure(name, config, options):
        clock.now += 10
        if name in errors:
            raise errors[name]
        return {"case": name, "ms": 1.0}

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(gpu, "make_config", lambda name: None)
    rows = gpu.measure_all(["a", *errors, "c"], options)
    first, failed, not_compiled, left_out = rows
    assert first == {"case": "a", "ms": 1.0}
    assert failed["note"] == f"failed: {text}"
    assert not_compiled["note"] == f"failed: {errors['larger']}"
    assert left_out["note"] == "not run: no time left"


@pytest.mark.parametrize("name", ["spirograph", "cifar10"])
def test_a_step_is_measured_on_one_device(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(gpu, "product_rate", lambda precision: 1e9)
    config = tiny_config(
        {"data.name": name, "data.train_examples": 160, "evaluation.neighbors": (5,)}
    )
    row = gpu.measure(name, config, ONCE)
    assert row["min"] <= row["ms"] <= row["max"]
    seconds = row["ms"] / 1e3
    assert row["% of a product's rate"] == pytest.approx(1e5 * row["TFLOP"] / seconds)
    assert row["epoch, s"] == pytest.approx(160 // 16 * seconds)
    assert row["run, s"] == pytest.approx(20 * seconds)


@needs_torch
def test_the_penalty_of_torch_is_a_squared_change_along_the_direction():
    """For n(h) in a plane a sign projection changes by +-(n1 +- n2) along alpha."""
    torch = peers.torch
    alpha = torch.tensor([[0.3], [1.1]], requires_grad=True)
    h = torch.cat([torch.cos(alpha), torch.sin(alpha)], dim=1)
    found = peers.penalty(h, alpha, alpha.detach()[None] + 2.0)
    slopes = [[np.cos(a) + s * np.sin(a) for s in (1, -1)] for a in (0.3, 1.1)]
    changes = (2 * np.array(slopes)) ** 2
    distance = np.abs(found.detach().numpy()[0][:, None] - changes)
    assert distance.min(axis=1) == pytest.approx(0, abs=1e-4)


@needs_torch
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_step_of_torch_trains(weight):
    config = tiny_config({"penalty.weight": weight})
    train = peers.make_step(config, 8)
    losses = [train() for _ in range(2)]
    assert np.isfinite(losses).all() and losses[0] != losses[1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("method.name", "byol"),
        ("penalty.kind", "consistency"),
        ("penalty.at", "z"),
        *((f"penalty.{key}", 4) for key in ("every_steps", "directions")),
        *((key, 2) for key in ("average_views", "more_views", "microbatches")),
        ("encoder.name", "vit_tiny"),
        ("encoder.final", "linear"),
        ("encoder.width", 64),
        ("data.name", "cifar10"),
        ("precision", "bfloat16"),
    ],
)
def test_a_step_that_torch_does_not_have_is_refused(key, value):
    config = copy.deepcopy(OF_TORCH)
    steps.check(["steps"], ONCE._replace(config=config))
    change(config, key, value)
    with pytest.raises(ValueError, match=rf"needs {{'{key}': .*}}; found {{'{key}'"):
        steps.check(["steps"], ONCE._replace(config=config))


def test_a_step_has_one_device_as_that_of_torch_has(monkeypatch):
    training = mock.Mock(return_value=mock.Mock(flops=1.0))
    monkeypatch.setattr(steps, "Training", training)
    monkeypatch.setattr(peers, "make_step", lambda *_, **__: lambda: None)
    monkeypatch.setattr(timing, "product_rate", lambda precision: 1.0)
    assert len([*steps.against_torch(ONCE, OF_TORCH)]) == 2
    assert [call.args[1] for call in training.call_args_list] == [jax.devices()[:1]] * 2


def test_a_peer_on_the_cpu_is_not_compared_with_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    steps.check(["augment", "scaling", *benchmarks.ON_GPU], ONCE)
    with pytest.raises(ValueError, match="peers of render, loss run on the CPU, and J"):
        steps.check(["loss", "render"], ONCE)


def test_a_batch_that_the_devices_cannot_share_is_refused():
    config = tiny_config({"batch_size": 12})
    with pytest.raises(ValueError, match="batch_size is 12; expected .* the 8 devices"):
        steps.check(["scaling"], ONCE._replace(config=config))


def test_every_name_is_a_module():
    assert {*benchmarks.NAMES} == {*CASES, *benchmarks.ON_GPU}
    assert all(map(callable, map(benchmark, benchmarks.NAMES)))


def test_a_bad_name_is_told_and_all_leaves_out_what_needs_torch():
    assert benchmarks.check_names(["all"], has_torch=True) == [*CASES]
    assert {*CASES} - {*benchmarks.check_names(["all"], has_torch=False)} == {
        "steps",
        "probe",
    }
    with pytest.raises(ValueError, match="'rendre'; expected one of render, augment"):
        benchmarks.check_names(["rendre"], has_torch=True)
    with pytest.raises(ValueError, match="probe compares with PyTorch, which is not"):
        benchmarks.check_names(["probe"], has_torch=False)


QUICK = "--config=configs/spirograph.py:quick"


def program(*arguments):
    return processes.python("-m", "invariance_jax.benchmarks", *arguments, PATH="")


def test_the_program_prints_a_table_and_writes_json(tmp_path):
    out = tmp_path / "out.json"
    result = program("render", f"--json={out}", "--repeats=1", "--min_seconds=0")
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    assert timing.table(found["rows"]) in result.stdout
    assert found["machine"]["versions"]["jax"] == jax.__version__
    assert found["machine"]["cores"] >= 1 and "git_commit" in found["machine"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["all", QUICK, "--config.penalty.weight=0.0"], "penalty.weight is 0.0; expec"),
        (["render", "--sweep=configs/sweeps/methods.py"], "--sweep goes with penalty,"),
        (["render", "--json=."], "[Errno 21] Is a directory"),
        (["gpu", "--cases=bfloat16"], "this benchmark needs a GPU; found [Cpu"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_the_first_row(arguments, error):
    result = program(*arguments)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(f"error: {error}")
