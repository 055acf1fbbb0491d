"""The check program: what can be known of a run before it waits in a queue.

The training step is compiled for the devices, but no data set is read, nothing is
trained and nothing is written.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from invariance_jax.runs.tracking import check_tracking
from invariance_jax.runtime.devices import make_deterministic, simulate
from invariance_jax.settings import Config, check_devices, resolve
from invariance_jax.training import cost
from invariance_jax.training.batches import InMemory
from invariance_jax.training.build import (
    build,
    check_own_parts,
    read_weights,
    state_shapes,
)


class Memory(NamedTuple):
    """What the training step takes of the memory of one device, in bytes."""

    data: int
    state: int
    results: int
    temporary: int
    program: int

    @property
    def total(self) -> int:
        """Returns the sum."""
        return sum(self)


class Check(NamedTuple):
    """What is known of a run before it starts."""

    devices: tuple[str, ...]
    simulated: bool
    parameters: dict[str, int]
    batch_size: int
    steps: int
    steps_per_epoch: int
    seeds: int
    flops: float
    memory: Memory
    compile_seconds: float


def run(config: Config, *, num_devices: int | None = None) -> Check:
    """Checks a configuration and compiles its training step.

    Args:
      config: a configuration.
      num_devices: CPU devices that stand for those of the run, and that the process
        then keeps; None: the devices that are there.

    Returns:
      What was found.

    Raises:
      ValueError: if the configuration is invalid, does not fit the devices or their
        memory, or a package is missing; or if devices are to be simulated after others
        have been used.
    """
    make_deterministic(config.deterministic)
    if num_devices is not None:
        simulate(num_devices)
    settings = resolve(config)
    devices = tuple(jax.devices())
    check_devices(settings, len(devices))
    read_weights(settings)
    check_tracking(settings)
    parts = build(settings)
    check_own_parts(parts)
    one = parts.task.stand_ins(1)
    count = settings.data.train_examples
    assert count is not None
    # An array like that of the training examples, which takes no memory.
    examples = np.broadcast_to(one[0], (count, *one.shape[1:]))
    cost.check_data(examples.nbytes, devices)
    state = state_shapes(parts)
    batches = InMemory(examples, lambda *_: None)
    started = time.monotonic()
    compiled = cost.compile_train(parts, batches, devices)
    compile_seconds = time.monotonic() - started
    taken = _memory(compiled, state, examples.nbytes)
    _check_fits(taken.total, devices)
    return Check(
        devices=tuple(device.device_kind for device in devices),
        simulated=num_devices is not None,
        parameters={part: _size(state.params[part]) for part in ("encoder", "heads")},
        batch_size=settings.batch_size,
        steps=settings.derived.steps,
        steps_per_epoch=settings.derived.steps_per_epoch,
        seeds=settings.seeds,
        flops=cost.count_operations(parts).of_batch(settings.batch_size),
        memory=taken,
        compile_seconds=compile_seconds,
    )


def table(found: Check) -> str:
    """Returns the result of `run` as lines of text."""
    count = len(found.devices)
    kinds = ", ".join(sorted({*found.devices}))
    taken = found.memory
    seeds = f", for each of {found.seeds} seeds" if found.seeds > 1 else ""
    rows = {
        "devices": f"{count} ({kinds}{', simulated' if found.simulated else ''})",
        "batch": f"{found.batch_size} examples, {found.batch_size // count} per device",
        "steps": f"{found.steps}{seeds}, {found.steps_per_epoch} per epoch",
        "parameters": ", ".join(
            f"{number:,} ({part})" for part, number in found.parameters.items()
        ),
        "FLOPs per step": f"{found.flops / 1e9:.4g} G, products and convolutions",
        "memory per device": _bytes(taken.total) + ", of the training step",
        "  data set": _bytes(taken.data),
        "  state": _bytes(taken.state),
        "  within a step": _bytes(taken.temporary),
        "  other": _bytes(taken.results + taken.program),
        "compiled in": f"{found.compile_seconds:.1f} s",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items())


def _memory(compiled: Any, state: Any, data: int) -> Memory:
    """Returns the memory of a program; what is donated counts once."""
    found = compiled.memory_analysis()
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    leaves = jax.tree.leaves(state)
    size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    both = arguments + outputs - found.alias_size_in_bytes
    return Memory(
        data=data,
        state=size,
        results=both - size - data,
        temporary=found.temp_size_in_bytes,
        program=found.generated_code_size_in_bytes,
    )


def _check_fits(size: int, devices: tuple[jax.Device, ...]) -> None:
    for device in devices:
        limit = cost.limit(device)
        if limit is not None and size > limit:
            raise ValueError(
                f"the training step takes {_bytes(size)} of the {_bytes(limit)} of "
                f"{device}; lower batch_size or data.train_examples, or use more "
                "devices or ones with more memory."
            )


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _bytes(number: int) -> str:
    """Returns a number of bytes with a unit of powers of ten."""
    for exponent, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if abs(number) >= 10**exponent:
            return f"{number / 10**exponent:.4g} {unit}"
    return f"{number} bytes"
