"""The benchmark of a GPU: which steps, what is told of them; on the devices here."""

import itertools
import os
import time

import jax
import pytest
from tiny import tiny_config

from configs import cifar10
from invariance_jax.benchmarks import gpu, parts
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

    def measure(name, config, *, rematerialize, **_):
        calls.append((name, rematerialize))
        if "large" in name and not (rematerialize and "very" not in name):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        if name == "broken":
            raise jax.errors.JaxRuntimeError("INTERNAL: broken")
        return name

    monkeypatch.setattr(gpu, "_measure", measure)
    return calls


def measure(steps, **changes):
    """Returns what was found, and name -> why not."""
    rows = [*gpu.run(steps, **{"seconds": 9, **ONCE, **changes})]
    missing = {row.name: row.why for row in rows if isinstance(row, gpu.Missing)}
    return [row for row in rows if not isinstance(row, gpu.Missing)], missing


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
    found, missing = measure(steps, seconds=1e9)
    assert [each.name for each in found] == ["drawn", "read"] and not missing
    assert [each.rematerialized for each in found] == [False, True]
    for each in found:
        assert each.seconds.median > 0 and each.share > 0 and each.memory > 0
    assert [each.steps for each in found] == [200 // 16, 50_000 // 16]


def test_a_step_that_does_not_fit_is_rematerialized_or_named(measured):
    large, very = (tiny_config(), False), (tiny_config(), False)
    found, missing = measure({"large": large, "very large": very})
    assert found == ["large"]
    why = "does not fit into the memory: RESOURCE_EXHAUSTED: out of memory"
    assert missing == {"very large": why}
    assert [again for _, again in measured] == [False, True, False, True]


def test_a_step_that_fails_is_told_and_the_others_are_measured(measured):
    found, missing = measure(dict.fromkeys(("broken", "a"), (tiny_config(), False)))
    assert found == ["a"] and missing == {"broken": "failed: INTERNAL: broken"}


def test_no_step_is_begun_when_the_time_is_over(measured):
    clock = itertools.count(step=10).__next__
    steps = dict.fromkeys("abc", (tiny_config(), False))
    found, missing = measure(steps, seconds=15, clock=clock)
    assert found == ["a"] and [*missing] == ["b", "c"]


def test_a_line_says_what_was_measured():
    middle = Quartiles(0.01, 0.02, 0.03)
    row = gpu.line(gpu.Found("step", middle, 0.25, 3 * 10**9, True, 97, 50))
    assert row.split(maxsplit=1)[1].split(", ") == [
        "20.00 ms (10.00 to 30.00)",
        " 25% of a matrix product",
        "  3.00 GB",
        "97 steps of an epoch 1.94 s",
        "50 epochs 97 s",
        "rematerialized",
    ]
    left = gpu.line(gpu.Missing("other", "not run: no time left"))
    assert left.split(maxsplit=1) == ["other", "not run: no time left"]


def program(text, until=60.0):
    return parts.Part(("-c", text), until, {"PART": "x"})


def test_a_part_that_fails_or_takes_too_long_loses_nothing(capfd):
    slow = "import time; print('slow row', flush=True); time.sleep(60)"
    begun = time.monotonic()
    chosen = {
        "good": program("import os; print('a ...'); print(os.environ['PART'])"),
        "bad": program("print('bad row', flush=True); import os; os._exit(3)"),
        "slow": program(slow, until=4.0),
        "late": program("print('never')", until=0.0),
    }
    assert parts.run(chosen, os.environ) == [
        "x",
        "bad row",
        "bad: failed with exit status 3",
        "slow row",
        "slow: ended, no time left",
        "late: not run, no time left",
    ]
    assert time.monotonic() - begun < 30
    assert "a ...\nx\nbad row\nslow row\n" in capfd.readouterr().out
