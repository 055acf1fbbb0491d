"""The check before a run: its numbers, by hand, and what it refuses."""

import pytest
from tiny import tiny_config

from invariance_jax import check
from invariance_jax.settings import resolve
from invariance_jax.training import cost
from invariance_jax.training.build import build

WIDE = {"batch_size": 64, "penalty.weight": 0.0, "encoder.width": 384}


@pytest.fixture(scope="module")
def found():
    return check.run(tiny_config(WIDE))


def test_operations_are_those_of_the_layers(found):
    # Two dense layers and two of the head; forward, backward for inputs and weights.
    encoder = 8 * 8 * 3 * 384 + 384 * 384
    head = 384 * 384 + 384 * 8
    each = 2 * 3 * 2 * (encoder + head)
    assert found.flops == 64 * each + 64**2 * 2 * 3 * 4 * 8


def test_the_count_is_that_of_the_benchmarks(found):
    parts = build(resolve(tiny_config(WIDE)))
    assert found.flops == cost.count_operations(parts).of_batch(64)


def test_the_rest_is_what_the_run_will_be(found):
    assert found.settings.derived.steps == 20
    assert found.parameters["encoder"] > 8 * 8 * 3 * 384
    assert found.memory.data == 200 * 4 * 4
    text = check.table(found)
    assert "FLOPs per step" in text and "memory per device" in text


def test_a_bad_configuration_is_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match="temperature is -1"):
        check.run(tiny_config({"temperature": -1}))
