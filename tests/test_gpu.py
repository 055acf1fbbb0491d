"""The benchmark of a GPU: which steps, what is told of them; on the devices here."""

import itertools

import jax
import pytest
from tiny import tiny_config

from configs import cifar10
from invariance_jax.benchmarks import gpu
from invariance_jax.benchmarks.runs import configuration
from invariance_jax.benchmarks.timing import Quartiles

ONCE = {"repeats": 1, "min_seconds": 0.0, "size": 16}


@pytest.fixture(scope="module")
def images():
    config = configuration("cifar10", "smoke")
    config.encoder.name = "mlp"
    config.encoder.width = 8
    return config


@pytest.fixture
def measured(monkeypatch):
    """What is measured, without measuring: (name, rematerialize)."""
    calls = []

    def measure(name, config, rematerialize, *_):
        calls.append((name, rematerialize))
        if "large" in name and not (rematerialize and "very" not in name):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        if name == "broken":
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")
        return name

    monkeypatch.setattr(gpu, "_measure", measure)
    return calls


def test_images_are_described_without_being_read(images):
    data = images.data
    assert data.name == "cifar10" and data.source_size == (32, 32)
    assert cifar10.get_config().data.source_size is None


def test_the_steps_are_those_of_the_papers_runs(images):
    found = gpu.cases(configuration("spirograph"), configuration("cifar10", "resnet18"))
    name, (config, again) = next(iter(found.items()))
    assert name == "spirograph, resnet18, 512, bfloat16, penalized" and not again
    assert config.precision == "bfloat16" and config.penalty.weight > 0
    for encoder, size, precision, kind in itertools.product(
        ("resnet18", "resnet50"),
        (512, 4096),
        ("float32", "bfloat16"),
        ("plain", "penalized"),
    ):
        config, again = found[f"cifar10, {encoder}, {size}, {precision}, {kind}"]
        assert (config.encoder.name, config.batch_size) == (encoder, size)
        assert (config.penalty.weight > 0) == (kind == "penalized") and not again
    _, again = found["cifar10, resnet50, 512, bfloat16, penalized, rematerialized"]
    assert again


def test_a_step_of_drawn_and_of_read_images_is_measured(images):
    steps = {"drawn": (tiny_config(), False), "read": (images, True)}
    found, missing = gpu.run(steps, seconds=1e9, **ONCE)
    assert [each.name for each in found] == ["drawn", "read"] and not missing
    assert [each.rematerialized for each in found] == [False, True]
    for each in found:
        assert each.seconds.median > 0 and each.share > 0 and each.memory > 0
    assert [each.steps for each in found] == [200 // 16, 50_000 // 16]


def test_a_step_that_does_not_fit_is_rematerialized_or_named(measured):
    large, very = (tiny_config(), False), (tiny_config(), False)
    found, missing = gpu.run({"large": large, "very large": very}, seconds=9, **ONCE)
    assert found == ["large"]
    assert missing == {"very large": "does not fit into the memory"}
    assert [again for _, again in measured] == [False, True, False, True]


def test_another_error_is_not_hidden(measured):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        gpu.run({"broken": (tiny_config(), False)}, seconds=9, **ONCE)


def test_no_step_is_begun_when_the_time_is_over(measured):
    clock = itertools.count(step=10).__next__
    steps = dict.fromkeys("abc", (tiny_config(), False))
    found, missing = gpu.run(steps, seconds=15, clock=clock, **ONCE)
    assert found == ["a"] and [*missing] == ["b", "c"]


def test_the_table_has_a_line_per_step():
    found = gpu.Found("step", Quartiles(0.01, 0.02, 0.03), 0.25, 3 * 10**9, True, 97)
    row, left = gpu.table([found], {"other": "not run: no time left"}).splitlines()
    assert row.split(", ") == [
        "step      20.00 ms (10.00 to 30.00)",
        " 25% of a matrix product",
        "  3.00 GB",
        "97 steps of an epoch 1.94 s",
        "rematerialized",
    ]
    assert left == "other  not run: no time left"
