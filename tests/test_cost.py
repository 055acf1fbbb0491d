"""The operations of a step, counted by hand; the memory that it takes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from tiny import SEEDS, tiny_config

from invariance_jax import train
from invariance_jax.data import limits
from invariance_jax.models import create_encoder
from invariance_jax.settings import resolve
from invariance_jax.training import cost
from invariance_jax.training.build import build, state_shapes


@pytest.mark.parametrize(
    ("name", "features", "count"),
    [("resnet18", 512, 555_417_600), ("resnet50", 2048, 1_297_809_408)],
)
def test_products_are_those_of_the_papers_networks(name, features, count):
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    h, found = cost.products(create_encoder(name), images)
    assert (h.shape, found) == ((2, features), count)


def test_products_of_a_strided_convolution_are_those_of_its_outputs():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Conv(5, (3, 3), strides=2)(x)

    assert cost.products(Small(), jnp.ones((2, 8, 8, 3)))[1] == 4 * 4 * 9 * 3 * 5


def test_products_of_attention_and_of_a_layer_that_is_used_twice():
    """Twelve D^2 for each block and token; the products of tokens are left out."""
    vit = create_encoder("vit_tiny", width=128, depth=2)
    tokens, patches = 65, 64 * 4 * 4 * 3 * 128
    found = cost.products(vit, jnp.ones((2, 32, 32, 3)))[1]
    assert found == patches + 2 * tokens * 12 * 128**2

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            layer = nn.Dense(5)
            return layer(layer(x))

    assert cost.products(Twice(), jnp.ones((2, 5)))[1] == 2 * 25


# Images of 8 x 8, layers of 16, 16 and of the head 16 and 8.
ENCODER, HEAD = 8 * 8 * 3 * 16 + 16 * 16, 16 * 16 + 16 * 8


@pytest.mark.parametrize(
    ("changes", "encoders", "heads"),
    [
        ({"penalty.weight": 0.0}, 2, 2),
        ({}, 3, 2),
        ({"penalty.directions": 4}, 6, 2),
        ({"penalty.every_steps": 4}, 3, 2),
        ({"penalty.at": "z"}, 3, 3),
        ({"penalty.kind": "total_effect", "penalty.directions": 2}, 4, 2),
        ({"penalty.kind": "mixed"}, 4, 2),
        ({"penalty.weight": 0.0, "average_views": 2}, 4, 2),
    ],
)
def test_operations_of_a_step(changes, encoders, heads):
    found = cost.count_operations(build(resolve(tiny_config(changes))))
    # Anchors meet all anchors.
    similarities = 6 * 32**2 * 8
    assert found == 16 * 6 * (encoders * ENCODER + heads * HEAD) + similarities


def test_operations_of_a_step_with_a_target_network():
    changes = {"method.name": "moco_v3", "penalty.weight": 0.0}
    changes["method.kwargs"] = {"hidden": 16, "layers": 2}
    found = cost.count_operations(build(resolve(tiny_config(changes))))
    heads = HEAD + 2 * 8 * 16  # projector and predictor
    # Queries of both views meet the keys of the other, forward and in their gradient.
    similarities = 2 * 2 * 2 * 16**2 * 8
    assert found == 16 * (6 + 2) * 2 * (ENCODER + heads) + similarities


def test_a_network_that_the_machine_does_not_hold_is_refused(tmp_path):
    changes = {"encoder.width": 65_536, "encoder.depth": 40}
    with pytest.raises(ValueError, match=r"encoder\.width, .* of memory of this mach"):
        train.run(tiny_config(changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_step_that_no_device_holds_is_refused_before_anything_is_written(
    tmp_path, monkeypatch
):
    devices, config = jax.local_device_count(), tiny_config()
    size = cost.bytes_of(state_shapes(build(resolve(config))))
    # The state and the images fit, what a step makes of them does not.
    monkeypatch.setattr(limits, "machine_memory", lambda: devices * (size + 20_000))
    with pytest.raises(ValueError, match=r"the training step takes .* of cpu:0"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_seeds_share_a_program_and_a_finished_run_needs_none(tmp_path, monkeypatch):
    compiled = []
    make = cost.compile_train

    def compile_train(*arguments):
        compiled.append(arguments)
        return make(*arguments)

    monkeypatch.setattr(cost, "compile_train", compile_train)
    for count in (1, 1):
        train.run(tiny_config(SEEDS), tmp_path / "run")
        assert len(compiled) == count
