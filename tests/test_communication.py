"""What devices exchange: read from programs that are known, and from a real step."""

import jax
import jax.numpy as jnp
import pytest
from tiny import tiny_config

from invariance_jax.training import parallel
from invariance_jax.training.communication import Collective, collectives
from invariance_jax.training.components import make_examples
from invariance_jax.training.memory import compile_train
from invariance_jax.training.settings import resolve
from invariance_jax.training.start import state_shapes

DEVICES = 4

# Lines as XLA writes them for GPUs, where operations start and end, and of devices that
# are named otherwise.
LINES = """HloModule step, replica_count=1, num_partitions=4
  %a = (f32[2,3]{1,0}, f32[8,3]{1,0}) all-gather-start(%x), channel_id=1, \
replica_groups=[1,4]<=[4], dimensions={0}
  %b = f32[8,3]{1,0} all-gather-done(%a)
  %c = (bf16[10]{0}, pred[3]{0}) all-reduce-start(%y, %z), channel_id=2, \
replica_groups={{0,1},{2,3}}, to_apply=%sum
  %d = f32[] all-reduce(%w), replica_groups={{0},{1}}, to_apply=%sum
  %e = u8[5]{0} all-reduce(%w), replica_groups=mesh['a'=2,'b'=3,'c'=5] {'a','b'}
  %f = u8[7]{0} reduce-scatter(%w), replica_groups={}, to_apply=%sum
"""


def found_in(function, *args):
    mapped = jax.pmap(function, axis_name="i", devices=jax.devices()[:DEVICES])
    return collectives(mapped.lower(*args).compile().as_text())


@pytest.mark.parametrize(
    ("function", "kind", "size"),
    [
        (lambda x: jax.lax.psum(x, "i"), "all-reduce", 24 * 4),
        (lambda x: jax.lax.all_gather(x, "i"), "all-gather", 24 * 4 * DEVICES),
        (
            lambda x: jax.lax.psum_scatter(x, "i", tiled=True),
            "reduce-scatter",
            24 * 4,
        ),
    ],
)
def test_the_size_is_that_of_the_whole_array(function, kind, size):
    assert found_in(function, jnp.ones((DEVICES, 8, 3))) == [
        Collective(kind, size, DEVICES)
    ]


def test_programs_of_all_kinds_are_read():
    assert collectives(LINES) == [
        Collective("all-gather", 96, 4),
        Collective("all-reduce", 23, 2),
        Collective("all-reduce", 5, 6),
        Collective("reduce-scatter", 28, 4),
    ]


def test_a_sum_is_sent_around_twice():
    assert Collective("all-reduce", 80, 4).sent == 2 * 60
    assert Collective("all-gather", 80, 4).sent == 60


def test_one_device_has_none():
    settings = resolve(tiny_config())
    x = make_examples(settings, "train").x
    program = compile_train(settings, x, parallel.all_devices(1))
    assert collectives(program.as_text()) == []


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_step_exchanges_gradient_statistics_and_projections(weight):
    settings = resolve(tiny_config({"penalty.weight": weight}))
    x = make_examples(settings, "train").x
    program = compile_train(settings, x, parallel.all_devices(DEVICES))
    found = {}
    for each in collectives(program.as_text()):
        found.setdefault(each.kind, []).append(each.size)
    gradient = sum(leaf.size for leaf in jax.tree.leaves(state_shapes(settings).params))
    metrics = sum(found["all-reduce"]) - 4 * gradient
    assert 0 < metrics <= 4 * 8
    # Mean and variance of every layer, in each view and, with the penalty, in the
    # derivative of the first view: the encoder's only one, and the two of the head.
    encoder, head = 16 * (3 if weight else 2), (16 + 8) * 2
    statistics = DEVICES * 2 * 4 * (encoder + head)
    projections = 2 * 16 * 8 * 4
    assert sum(found["all-gather"]) == projections + statistics
    assert sorted(found["reduce-scatter"]) == sorted(found["all-gather"])
