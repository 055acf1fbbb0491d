"""Scaling: operations by hand, the projection by hand, and the simulated devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from invariance_jax.benchmarks import operations, projection, scaling
from invariance_jax.benchmarks.operations import Operations
from invariance_jax.benchmarks.projection import Cluster, Step
from invariance_jax.models import create_encoder
from invariance_jax.training.communication import Collective

CLUSTER = Cluster(
    flops=1e3, node=8, node_bytes=100.0, network_bytes=10.0, latency=1.0, hop=0.5
)
SUM = Collective("all-reduce", 800, 8)
GATHER = Collective("all-gather", 800, 8)
PROJECTIONS = Collective("all-gather", 640, 8)


@pytest.fixture
def step():
    return Step("run", 64, 0, Operations(100.0, 1.0), 800, 640, [SUM, GATHER])


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 555_417_600), ("resnet50", 1_297_809_408)]
)
def test_products_are_those_of_the_papers_networks(name, count):
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    h, found = operations.products(create_encoder(name), images)
    assert found == count
    assert h.shape == (2, 512 if name == "resnet18" else 2048)


def test_products_of_a_strided_convolution_are_those_of_its_outputs():
    class Small(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Conv(5, (3, 3), strides=2)(x)

    assert operations.products(Small(), jnp.ones((2, 8, 8, 3)))[1] == 4 * 4 * 9 * 3 * 5


# Images of 8 x 8, layers of 16, 16 and of the head 16 and 8.
ENCODER, HEAD = 8 * 8 * 3 * 16 + 16 * 16, 16 * 16 + 16 * 8


@pytest.mark.parametrize(
    ("changes", "encoders", "heads"),
    [
        ({"penalty.weight": 0.0}, 2, 2),
        ({}, 3, 2),
        ({"penalty.directions": 4}, 6, 2),
        ({"penalty.views": 2}, 4, 2),
        ({"penalty.at": "z"}, 3, 3),
        ({"penalty.weight": 0.0, "average_views": 2}, 4, 2),
    ],
)
def test_operations_of_a_step(changes, encoders, heads):
    found = operations.of_step(tiny_config(changes))
    assert found.example == 6 * (encoders * ENCODER + heads * HEAD)
    # Anchors meet all anchors.
    assert found.of_batch(10) - 10 * found.example == 6 * 20**2 * 8


def test_a_collective_takes_latency_and_what_is_sent_around():
    assert CLUSTER.seconds(SUM._replace(devices=1)) == 0
    assert CLUSTER.seconds(SUM._replace(devices=4)) == pytest.approx(1 + 2 * 600 / 100)
    assert CLUSTER.seconds(GATHER) == pytest.approx(1 + 700 / 100)
    # Of two nodes: one doubling, and the slower network.
    two_nodes = GATHER._replace(devices=16)
    assert CLUSTER.seconds(two_nodes) == pytest.approx(1.5 + 750 / 10)


def test_projections_grow_with_the_batch_and_statistics_with_the_devices(step):
    step = step._replace(collectives=[SUM, GATHER, PROJECTIONS])
    assert step.among(32, 128) == [
        SUM._replace(devices=32),
        Collective("all-gather", 3200, 32),
        Collective("all-gather", 1280, 32),
    ]


def test_efficiency_is_the_share_of_computing(step):
    (row, *_) = projection.project(step, [8], CLUSTER)
    assert row.computing == pytest.approx((6400 + 64**2) / 8 / 1e3)
    assert row.talking == pytest.approx((1 + 1400 / 100) + (1 + 700 / 100))
    assert row.efficiency == pytest.approx(
        row.computing / (row.computing + row.talking)
    )


@pytest.mark.parametrize(
    ("group_size", "expected"),
    [
        (0, [(8, 64), (16, 64), (128, 1024), (16, 128)]),
        (8, [(8, 64), (128, 1024), (16, 128)]),
    ],
)
def test_no_device_has_a_part_of_an_example_or_of_a_group(step, group_size, expected):
    rows = projection.project(
        step._replace(group_size=group_size), [8, 16, 128], CLUSTER
    )
    found = [(row.devices, row.batch_size) for row in rows]
    assert sorted(found) == sorted(expected)


def test_the_table_says_what_is_exchanged_and_assumed(step):
    first, second, third, fourth, last = projection.table(
        [step], [8, 16], CLUSTER
    ).splitlines()
    assert first == (
        "run: 1.05e-08 TFLOP; 1 all-gather of 0.0008 MB in all, 1 all-reduce of "
        "0.0008 MB in all, of which the gradient 0.0008 MB"
    )
    assert "8 devices" in second and "efficiency 5%" in second
    assert "batch    64" in third and "batch   128" in fourth
    assert last.startswith("projected, not measured; assumed: flops 1000")


def test_devices_are_simulated_in_another_process():
    config = tiny_config({"encoder.width": 4})
    (step,) = scaling.steps({"tiny": config})
    assert {each.devices for each in step.collectives} == {projection.DEVICES}
    gathered = [each.size for each in step.collectives if each.kind == "all-gather"]
    assert gathered.count(step.projections) == 1
    found = scaling.run(config, counts=(2,), num_steps=2, repeats=2, min_seconds=0.0)
    assert [(each.ours, each.peer) for each in found] == [
        ("2 devices", "1 device"),
        ("2 steps in one call", "a call for each"),
    ]
    assert all((each.ours_seconds > 0).all() for each in found)
    np.testing.assert_array_equal(found[0].peer_seconds, found[1].ours_seconds)
    assert jax.device_count() == 4
