"""The check program: what can be known of a run before it waits in a queue.

The training step is compiled for the devices, but no data set is read, nothing is
trained and nothing is written.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from invariance_jax import data
from invariance_jax.runs.tracking import check_package
from invariance_jax.runtime.devices import make_deterministic, simulate
from invariance_jax.training import images, memory
from invariance_jax.training.communication import Collective, collectives
from invariance_jax.training.components import is_regression
from invariance_jax.training.settings import check_devices, resolve
from invariance_jax.training.start import read_weights, state_shapes


class Memory(NamedTuple):
    """What the training step takes of the memory of one device, in bytes.

    Attributes:
      data: the data set, of which each device holds a copy.
      state: parameters, statistics and optimizer; the new ones take their place.
      results: what else comes in and goes out.
      temporary: what lives within a step only, at most at any one time.
      program: the compiled step itself (0 where XLA does not tell).
    """

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
    """What is known of a run before it starts.

    Attributes:
      devices: one name per device.
      simulated: whether they stand for devices that are not there.
      parameters: {"encoder", "head"}: number of entries of all arrays.
      batch_size: examples per step over all devices.
      steps: of the whole run.
      steps_per_epoch: batches that the training examples fill.
      seeds: number of such runs, one after the other.
      flops: floating-point operations of one step on one device, as XLA counts them:
        a multiplication and an addition are two, one pass through each inner loop; None
        where it does not tell.
      memory: of one device.
      collectives: what the devices exchange in a step.
      compile_seconds: tracing and compiling of the step, wall clock.
    """

    devices: tuple[str, ...]
    simulated: bool
    parameters: dict[str, int]
    batch_size: int
    steps: int
    steps_per_epoch: int
    seeds: int
    flops: float | None
    memory: Memory
    collectives: tuple[Collective, ...]
    compile_seconds: float


def run(config: ConfigDict, *, num_devices: int | None = None) -> Check:
    """Checks a configuration and compiles its training step.

    Args:
      config: a configuration with the keys of `configs/base.py`.
      num_devices: CPU devices that stand for those of the run, and that the process
        then keeps; None: the devices that are there.

    Returns:
      What was found.

    Raises:
      ValueError: if the configuration is invalid, does not fit the devices or their
        memory, or its data set or a package is missing; or if devices are to be
        simulated after others have been used.
    """
    make_deterministic(config)
    if num_devices is not None:
        simulate(num_devices)
    images.check_prepared(config)
    settings = resolve(config)
    devices = tuple(jax.devices())
    check_devices(settings, len(devices))
    read_weights(settings)
    check_package(settings)
    examples = _examples(settings)
    memory.check_data(examples, devices)
    state = state_shapes(settings)
    started = time.monotonic()
    compiled = memory.compile_train(settings, examples, devices)
    compile_seconds = time.monotonic() - started
    taken = _memory(compiled, state, examples)
    _check_fits(taken.total, devices)
    return Check(
        devices=tuple(device.device_kind for device in devices),
        simulated=num_devices is not None,
        parameters={part: _size(state.params[part]) for part in ("encoder", "head")},
        batch_size=settings.batch_size,
        steps=settings.derived.steps,
        steps_per_epoch=settings.derived.steps_per_epoch,
        seeds=settings.seeds,
        flops=_flops(compiled),
        memory=taken,
        collectives=tuple(collectives(compiled.as_text())),
        compile_seconds=compile_seconds,
    )


def table(found: Check) -> str:
    """Returns the result of `run` as lines of text.

    Args:
      found: the result.

    Returns:
      A line per fact, with its unit.
    """
    count = len(found.devices)
    kinds = ", ".join(sorted({*found.devices}))
    taken = found.memory
    flops = "not told by XLA"
    if found.flops is not None:
        each, together = (f"{n / 1e9:.4g}" for n in (found.flops, count * found.flops))
        flops = f"{each} G per device, {together} G over all, as XLA counts them"
    seeds = f", for each of {found.seeds} seeds" if found.seeds > 1 else ""
    rows = {
        "devices": f"{count} ({kinds}{', simulated' if found.simulated else ''})",
        "batch": f"{found.batch_size} examples, {found.batch_size // count} per device",
        "steps": f"{found.steps}{seeds}, {found.steps_per_epoch} per epoch",
        "parameters": ", ".join(
            f"{number:,} ({part})" for part, number in found.parameters.items()
        ),
        "FLOPs per step": flops,
        "sent per device": _bytes(round(sum(each.sent for each in found.collectives)))
        + f" per step, in {len(found.collectives)} collectives",
        "memory per device": _bytes(taken.total) + ", of the training step",
        "  data set": _bytes(taken.data),
        "  state": _bytes(taken.state),
        "  within a step": _bytes(taken.temporary),
        "  other": _bytes(taken.results + taken.program),
        "compiled in": f"{found.compile_seconds:.1f} s",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items())


def _examples(settings: Any) -> np.ndarray:
    """Returns an array like that of the training examples, which takes no memory."""
    count = settings.data.train_examples
    if is_regression(settings):
        shape, dtype = (len(settings.data.targets),), np.float32
    else:
        found = data.describe(settings.data.name, data_dir=settings.data.data_dir)
        shape, dtype = found.image_shape, np.uint8
    return np.broadcast_to(np.zeros((), dtype), (count, *shape))


def _memory(compiled: Any, state: Any, examples: np.ndarray) -> Memory:
    """Returns the memory of a program; what is donated counts once."""
    found = compiled.memory_analysis()
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    leaves = jax.tree.leaves(state)
    size = sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    both = arguments + outputs - found.alias_size_in_bytes
    return Memory(
        data=examples.nbytes,
        state=size,
        results=both - size - examples.nbytes,
        temporary=found.temp_size_in_bytes,
        program=found.generated_code_size_in_bytes,
    )


def _check_fits(size: int, devices: tuple[jax.Device, ...]) -> None:
    for device in devices:
        limit = memory.limit(device)
        if limit is not None and size > limit:
            raise ValueError(
                f"the training step takes {_bytes(size)} of the {_bytes(limit)} of "
                f"{device}; lower batch_size or data.train_examples, or use more "
                "devices or ones with more memory."
            )


def _flops(compiled: Any) -> float | None:
    """Returns the operations of one step.

    The program is a loop over steps; as their number is an argument, XLA counts the
    body once.
    """
    count = (compiled.cost_analysis() or {}).get("flops", 0.0)
    return float(count) if count > 0 else None


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _bytes(number: int) -> str:
    """Returns a number of bytes with a unit of powers of ten."""
    for exponent, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if abs(number) >= 10**exponent:
            return f"{number / 10**exponent:.4g} {unit}"
    return f"{number} bytes"
