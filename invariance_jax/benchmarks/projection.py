"""What a training step would take on many GPUs: a projection, not a measurement.

The operations of a step are counted (`operations`), and so
is what the devices tell one another, in the program that XLA compiles for eight of
them; how fast a GPU computes and how fast the network is, is assumed (`Cluster`).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from invariance_jax.benchmarks import operations
from invariance_jax.training import parallel
from invariance_jax.training.communication import Collective, collectives
from invariance_jax.training.components import make_stand_ins
from invariance_jax.training.memory import compile_train
from invariance_jax.training.settings import check_devices, resolve
from invariance_jax.training.start import state_shapes

DEVICES = 8
"""Simulated devices for which the step is compiled."""


class Cluster(NamedTuple):
    """What is assumed of the GPUs and of the network between them.

    Nothing overlaps; small batches run at the same rate as large ones; what every
    device does for the whole batch (random draws) takes no time.

    Attributes:
      flops: operations per second that the step reaches on one GPU.
      node: GPUs of a node.
      node_bytes: bytes per second that a GPU sends within its node.
      network_bytes: bytes per second that a GPU sends when several nodes take part.
      latency: seconds that a collective takes within a node, however small.
      hop: seconds that every doubling of the nodes adds to it.
    """

    flops: float = 100e12
    node: int = 8
    node_bytes: float = 300e9
    network_bytes: float = 50e9
    latency: float = 20e-6
    hop: float = 10e-6

    def seconds(self, collective: Collective) -> float:
        """Returns the time of a collective.

        Args:
          collective: of one device or more.
        """
        if collective.devices == 1:
            return 0.0
        doublings = math.log2(max(1, collective.devices / self.node))
        rate = self.network_bytes if doublings else self.node_bytes
        return self.latency + self.hop * doublings + collective.sent / rate


class Step(NamedTuple):
    """What the projection of a run starts from.

    Attributes:
      name: of the run.
      batch_size: examples over all devices.
      group_size: of batch normalization; 0 is the batch.
      operations: of a step over all devices.
      parameters: bytes of all of them, which is what the gradient takes.
      projections: bytes of those of the batch, which all devices gather.
      collectives: among `DEVICES` devices.
    """

    name: str
    batch_size: int
    group_size: int
    operations: operations.Operations
    parameters: int
    projections: int
    collectives: Sequence[Collective]

    def among(self, devices: int, size: int) -> list[Collective]:
        """Returns the collectives among other devices, for another batch.

        Sums stay what they are. Projections are gathered from all examples, statistics
        from all devices; so are, on the way back, their gradients.

        Args:
          devices: how many.
          size: examples over all of them.
        """

        def grown(each: Collective) -> int:
            if each.kind == "all-reduce":
                return each.size
            if each.size == self.projections:
                return each.size * size // self.batch_size
            return each.size * devices // DEVICES

        return [
            Collective(each.kind, grown(each), devices) for each in self.collectives
        ]

    def seconds(self, devices: int, size: int, cluster: Cluster) -> tuple[float, float]:
        """Returns the time that computing and communication take.

        Args:
          devices: how many.
          size: examples over all of them.
          cluster: what is assumed.
        """
        talk = sum(map(cluster.seconds, self.among(devices, size)))
        return self.operations.of_batch(size) / devices / cluster.flops, talk


def compile_step(name: str, config: ConfigDict) -> Step:
    """Compiles the step of a run for `DEVICES` devices and reads what they exchange.

    Args:
      name: what the run is called.
      config: a configuration with the keys of `configs/base.py`.

    Raises:
      ValueError: if the configuration is invalid, or there are fewer devices.
    """
    settings, devices = resolve(config), parallel.all_devices(DEVICES)
    check_devices(settings, len(devices))
    x = make_stand_ins(settings)
    count = settings.data.train_examples
    examples: Any = jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
    compiled = compile_train(settings, examples, devices)
    leaves = jax.tree.leaves(state_shapes(settings).params)
    width = jnp.dtype(jnp.float32).itemsize  # of z, whatever the precision
    return Step(
        name=name,
        batch_size=settings.batch_size,
        group_size=settings.batchnorm.group_size,
        operations=operations.of_step(config),
        parameters=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        projections=2 * settings.batch_size * settings.encoder.projection * width,
        collectives=collectives(compiled.as_text()),
    )


class Row(NamedTuple):
    """A line of the projection.

    Attributes:
      name: of the run.
      devices: how many.
      batch_size: examples over all of them.
      computing: seconds of a step.
      talking: seconds of a step in which devices exchange arrays and do nothing else.
      efficiency: the time that one device would take for its share of the examples,
        with the similarities to all, over the whole.
    """

    name: str
    devices: int
    batch_size: int
    computing: float
    talking: float
    efficiency: float


def project(step: Step, counts: Sequence[int], cluster: Cluster) -> list[Row]:
    """Returns what a step would take, with the batch as it is and growing.

    Args:
      step: the run.
      counts: numbers of devices.
      cluster: what is assumed.

    Returns:
      For each number of devices among which the batch can be divided without dividing a
      group of batch normalization, a row; and for each number a row with as many
      examples per device as each of `DEVICES` has.
    """
    whole, share = step.batch_size, step.batch_size // DEVICES
    fixed = [n for n in counts if whole % (n * max(1, step.group_size)) == 0]
    sizes = [(n, whole) for n in fixed] + [(n, n * share) for n in counts]
    rows = []
    for devices, size in dict.fromkeys(sizes):
        computing, talking = step.seconds(devices, size, cluster)
        efficiency = computing / (computing + talking)
        rows.append(Row(step.name, devices, size, computing, talking, efficiency))
    return rows


def table(steps: Sequence[Step], counts: Sequence[int], cluster: Cluster) -> str:
    """Returns the projection as text.

    Args:
      steps: the runs.
      counts: numbers of devices.
      cluster: what is assumed.

    Returns:
      For each run, a line of what is exchanged and one for each row of `project`, and
      last the assumptions.
    """
    lines = []
    for step in steps:
        flops = step.operations.of_batch(step.batch_size)
        lines.append(f"{step.name}: {flops / 1e12:.3g} TFLOP; {_exchanged(step)}")
        lines += [
            f"  {row.devices:4d} devices, batch {row.batch_size:5d}: "
            f"{1e3 * row.computing:7.2f} ms computing, {1e3 * row.talking:6.2f} ms "
            f"communication, efficiency {row.efficiency:.0%}"
            for row in project(step, counts, cluster)
        ]
    assumed = ", ".join(f"{key} {value:g}" for key, value in cluster._asdict().items())
    return "\n".join([*lines, f"projected, not measured; assumed: {assumed}"])


def _exchanged(step: Step) -> str:
    """Returns what the devices of a step exchange, by kind."""
    parts = []
    for kind in sorted({each.kind for each in step.collectives}):
        sizes = [each.size for each in step.collectives if each.kind == kind]
        parts.append(f"{len(sizes)} {kind} of {sum(sizes) / 1e6:.4g} MB in all")
    gradient = f"of which the gradient {step.parameters / 1e6:.4g} MB"
    return ", ".join([*parts, gradient])
