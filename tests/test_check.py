"""The check before a run: its numbers, by hand, and what it refuses."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import launch
from tiny import tiny_config

from invariance_jax import check
from invariance_jax.runtime.cards import CARDS, absent
from invariance_jax.settings import resolve
from invariance_jax.training import cost

WIDE = {"batch_size": 64, "penalty.weight": 0.0, "encoder.width": 384}


@pytest.fixture(scope="module")
def found():
    return check.run(tiny_config(WIDE))


def test_the_rest_is_what_the_run_will_be(found):
    assert found.settings.derived.steps == 20
    encoder, head = 8 * 8 * 3 * 384 + 384 * 384, 384 * 384 + 384 * 8
    assert found.parameters == {"encoder": encoder + 3 * 384, "heads": head + 2 * 384}
    # Forward, and backward for inputs and weights, of two views; and similarities.
    assert found.flops == 64 * 12 * (encoder + head) + 64**2 * 6 * 4 * 8
    assert found.memory.data == 200 * 4 * 4
    text = check.table(found)
    assert "FLOPs per step" in text and "memory per device" in text
    assert "with the penalty" not in text


def test_a_step_is_one_with_the_penalty_if_not_every_step_has_it(found):
    settings = resolve(tiny_config({"penalty.every_steps": 4}))
    text = check.table(found._replace(settings=settings, traffic=(5, 700, 0.002)))
    assert "G, products and convolutions, with the penalty\n" in text
    assert re.search("estimated step +2 ms, with the penalty$", text)


def test_a_bad_configuration_is_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match="temperature is -1"):
        check.run(tiny_config({"temperature": -1}))


class Instruction:
    """Stands for an instruction of XLA."""

    def __init__(self, text, *operands):
        self.name, self._text, self._operands = text.split(" ")[0], text, operands

    def to_string(self):
        return self._text

    def operands(self):
        return self._operands


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("%a = bf16[512,32]{1,0} parameter(0)", 512 * 32 * 2),
        ("%b = (f32[4]{0}, pred[3]{0}, /*index=2*/u8[0]{0}) fusion(%a, %b)", 16 + 3),
        ("%c = f32[] fusion(%a), kind=kLoop, calls=%f32[9]", 4),
    ],
)
def test_bytes_of_what_an_instruction_returns(text, size):
    assert cost._bytes_of_result(Instruction(text)) == size


def traffic(step, before=lambda x: x):
    """Of a loop of any number of steps, and what is before it."""

    def steps(number, x):
        return jax.lax.fori_loop(0, number, step, before(x))

    program = jax.jit(steps).lower(3, jax.ShapeDtypeStruct((8, 8), "float32"))
    return np.array(cost.traffic_of(program.compile()))


def looped(inner, more=0):
    """A step with a loop of known length."""

    def step(_, x):
        x = jax.lax.fori_loop(0, inner, lambda _, y: y[::-1] @ y, x)
        return x @ x + more

    return step


def test_traffic_is_that_of_the_loop_over_steps():
    two, four, eight = (traffic(looped(inner)) for inner in (2, 4, 8))
    np.testing.assert_array_equal(2 * (four - two), eight - four)
    kernels, moved = (four - two) / 2
    # A product of two matrices to a third, and at most the reversal and a copy of it.
    assert 2 <= kernels <= 6
    assert 2 * 256 + 3 * 256 <= moved <= 10 * 256

    def large_fusion(x):
        return sum(jnp.sin(n * x) for n in range(50))

    assert np.all(traffic(looped(2, 1), large_fusion) <= two + [2, 1024])


@pytest.mark.parametrize("branches", [2, 3])
def test_traffic_is_that_of_the_larger_branch(branches):
    def large(x):
        return x @ x[::-1] @ x.T @ jnp.linalg.matrix_power(x, 5)

    choice = [jnp.sin] * (branches - 1) + [large]
    found, _ = traffic(lambda n, x: jax.lax.switch(n % branches, choice, x))
    alone, _ = traffic(lambda n, x: large(x))
    assert alone <= found <= alone + 8


def test_a_slower_card_takes_longer():
    h100, h200 = (
        CARDS[name].seconds(5e12, 34e9, 700, "bfloat16") for name in ("h100", "h200")
    )
    assert 0.020 < h200 < h100 < 0.030
    assert CARDS["h200"].seconds(5e12, 34e9, 700, "float32") > h200


@pytest.mark.parametrize(
    ("target", "count", "plugin", "extra", "kind"),
    [
        ("h200", 3, "jax_plugins", "[cuda12]", "NVIDIA H200"),
        ("v5e", 2, "libtpu", "[tpu]", "TPU v5 lite"),
    ],
)
def test_a_device_that_is_not_there(target, count, plugin, extra, kind):
    asked = f"--check_devices={count}", f"--check_target={target}", "--mode=check"
    small = "--config=configs/spirograph.py:smoke", "--config.batch_size=6"
    done = launch(*small, *asked)
    if importlib.util.find_spec(plugin) is None:
        assert extra in done.stderr
    else:
        assert f"{count} ({kind}, absent)" in done.stdout
        has_estimate = "kernels per step" in done.stdout, "estimated" in done.stdout
        assert has_estimate == ((True, True) if target == "h200" else (False, False))


@pytest.mark.parametrize(
    ("target", "count", "expected"),
    [
        ("h200", 0, "1 to 8, the GPUs"),
        ("h200", 9, "1 to 8"),
        ("v5p", 3, "1, 2, 4 or 8"),
    ],
)
def test_a_number_of_absent_devices_that_no_machine_has(target, count, expected):
    with pytest.raises(ValueError, match=f"is {count}; expected {expected}"):
        absent(target, count)


def test_a_step_that_the_compiler_finds_too_large_is_refused(monkeypatch):
    class Program:
        def lower(self, *_):
            return self

        def compile(self):
            text = "RESOURCE_EXHAUSTED: Ran out of memory on HBM"
            raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(cost, "make_program", lambda *_: Program())
    with pytest.raises(ValueError, match=r"Ran out of memory on HBM\); lower batch_"):
        check.run(tiny_config({}))


def test_devices_that_are_used_already_are_no_card():
    jax.devices()
    with pytest.raises(ValueError, match="used its devices already"):
        check.run(tiny_config({}), 1, "h200")
