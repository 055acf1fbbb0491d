"""The check program: memory, operations and rates of a run before it waits in a queue.

It reads no data set, trains nothing and writes nothing. Streamed images are the
exception: it prepares their set if necessary, decodes some of them, and runs a few
steps from a new state if this machine has the devices, to compare both rates.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from jax.stages import Compiled

from invariance_jax.data import Pictures
from invariance_jax.runtime import cards
from invariance_jax.runtime.devices import all_devices, make_deterministic, simulate
from invariance_jax.settings import Config, Settings, resolve
from invariance_jax.train import checked_parts
from invariance_jax.training import cost, parallel
from invariance_jax.training.batches import Batches, InMemory, Streamed
from invariance_jax.training.build import Parts, first_state, state_shapes

_DEVICES = flags.DEFINE_integer(
    "check_devices",
    None,
    "Number of CPU devices that --mode=check simulates, or of those of --check_target.",
)
_TARGET = flags.DEFINE_enum(
    "check_target",
    None,
    list(cards.CARDS),
    "GPU or TPU for which --mode=check compiles; this machine need not have one.",
)

_TIMED_STEPS = 4  # batches to decode, and steps to run, for measuring both rates


class Memory(NamedTuple):
    """Memory of one device that the training step needs, in bytes."""

    data: int  # the data set, of which each device holds a copy
    state: int  # parameters, batch statistics and optimizer state, updated in place
    temporary: int  # peak of the arrays that exist within a step only
    other: int  # other arguments and results, and the compiled step itself


class Check(NamedTuple):
    """Properties of a run that are known before it starts."""

    settings: Settings
    devices: tuple[str, ...]  # the kind of each
    parameters: dict[str, int]  # number of parameters of "encoder" and "heads"
    flops: float  # of a step with its penalty, over all devices
    memory: Memory
    compile_seconds: float  # wall-clock time of tracing and compiling the step
    # For an absent GPU and such a step: number of kernels, their bytes, and estimated
    # seconds.
    traffic: tuple[int, int, float] | None
    ahead: int | None  # bytes of the batches of a stream that this host decodes ahead
    decoded: float | None  # images per second that this host decodes from a stream
    stepped: float | None  # images per second that the training step processes


def read_flags() -> tuple[int | None, str | None]:
    """Returns the number of devices and the target of the command line."""
    return _DEVICES.value, _TARGET.value


def run(
    config: Config, num_devices: int | None = None, target: str | None = None
) -> Check:
    """Checks a configuration, and compiles its training step for some devices.

    These are `num_devices` simulated CPUs (None: the devices of this machine), or with
    a target, a key of `runtime.cards.CARDS`, as many absent GPUs or TPUs (None: one).
    """
    make_deterministic(config.deterministic)
    settings, card = resolve(config), cards.CARDS[target] if target else None
    devices = _devices(num_devices, target)
    parts = checked_parts(settings, len(devices))
    state, batches = state_shapes(parts), _batches(parts, devices)
    data, memory = cost.bytes_of(batches.shape), card.usable if card else None
    simulated = card is None and num_devices is not None
    if isinstance(batches, InMemory) and not simulated:
        cost.check_data(data, devices, memory=memory)
    started = time.monotonic()
    compiled = cost.compile_train(parts, batches, devices)
    compile_seconds = time.monotonic() - started
    if not simulated:
        cost.check_program(compiled, devices, memory=memory)
    flops = cost.count_operations(parts)
    suffix, traffic = ", simulated" if simulated else "", None
    if card:
        suffix = ", absent"
    if isinstance(card, cards.Gpu):
        kernels, moved = cost.traffic_of(compiled)
        share = flops / len(devices)
        seconds = card.seconds(share, moved, kernels, settings.precision)
        traffic = kernels, moved, seconds
    present = jax.devices() if card else devices  # images are decoded for these
    decoded, stepped = _rates(parts, batches, compiled, present, bool(suffix))
    leaves = {part: jax.tree.leaves(tree) for part, tree in state.params.items()}
    buffers, temporary, program = cost.memory_of(compiled)
    size = cost.bytes_of(state)
    # All three are 0 if the platform does not report its use of memory.
    other = max(buffers - size - data, 0) + program
    return Check(
        settings,
        tuple(f"{device.device_kind}{suffix}" for device in devices),
        {part: sum(leaf.size for leaf in arrays) for part, arrays in leaves.items()},
        flops,
        Memory(data, size, temporary, other),
        compile_seconds,
        traffic,
        batches.ahead if isinstance(batches, Streamed) else None,
        decoded,
        settings.batch_size / traffic[-1] if traffic else stepped,
    )


def _devices(num_devices: int | None, target: str | None) -> tuple[jax.Device, ...]:
    if target is not None:
        return cards.absent(target, 1 if num_devices is None else num_devices)
    if num_devices is not None:
        simulate(num_devices)
    return all_devices()


def _batches(parts: Parts, devices: Sequence[jax.Device]) -> Batches:
    """Returns the batches of the training set; reads no image."""
    settings = parts.settings
    if settings.data.source == "stream":
        pictures = parts.task.examples("train").x
        assert isinstance(pictures, Pictures)
        return parts.make_stream(pictures, len(devices))
    count = settings.data.train_examples
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype),
        parts.task.stand_ins(1),
    )
    return InMemory(shapes, lambda *_: None)


def _rates(
    parts: Parts,
    batches: Batches,
    compiled: Compiled,
    devices: Sequence[jax.Device],
    simulated: bool,
) -> tuple[float | None, float | None]:
    """Returns images per second that the host decodes and that the step processes."""
    if isinstance(batches, InMemory):
        return None, None
    batches.load(0, devices)  # not timed: compiles, and opens files
    size, started = parts.settings.batch_size, time.monotonic()
    for step in range(1, _TIMED_STEPS + 1):
        loaded = batches.load(step, devices)
    decoded = _TIMED_STEPS * size / (time.monotonic() - started)
    if simulated:
        return decoded, None
    state, key = parallel.replicate(first_state(parts), devices), jax.random.key(0)
    for step in range(_TIMED_STEPS):  # the first one is not timed
        started = time.monotonic() if step == 1 else started
        state, sums = compiled(state, key, loaded, np.int32(1))
        jax.block_until_ready(sums)
    return decoded, (_TIMED_STEPS - 1) * size / (time.monotonic() - started)


def table(found: Check) -> str:
    """Returns the result of `run` as lines of text."""
    settings, memory = found.settings, found.memory
    derived, parameters = settings.derived, found.parameters
    batch, count = settings.batch_size, len(found.devices)
    seeds = f", for each of {settings.seeds} seeds" if settings.seeds > 1 else ""
    with_it = ", with the penalty" if settings.penalty.every_steps > 1 else ""
    operations = f"products and convolutions{with_it}"
    rows = {
        "devices": f"{count} ({', '.join(sorted({*found.devices}))})",
        "batch": f"{batch} examples, {batch // count} per device",
        "steps": f"{derived.steps}{seeds}, {derived.steps_per_epoch} per epoch",
        "parameters": ", ".join(f"{n:,} ({part})" for part, n in parameters.items()),
        "FLOPs per step": f"{found.flops / 1e9:.4g} G, {operations}",
        "memory per device": _bytes(sum(memory)) + ", of the training step",
        "  data set": _bytes(memory.data),
        "  state": _bytes(memory.state),
        "  temporary": _bytes(memory.temporary),
        "  other": _bytes(memory.other),
        "compiled in": f"{found.compile_seconds:.1f} s",
    }
    if found.traffic is not None:
        kernels, moved, seconds = found.traffic
        rows["kernels per step"] = f"{kernels}, moving {_bytes(moved)}"
        rows["estimated step"] = f"{seconds * 1e3:.3g} ms{with_it}"
    if found.ahead is not None:
        needed = "unknown" if found.stepped is None else f"{found.stepped:.0f}"
        rows["host memory"] = _bytes(found.ahead) + ", of batches decoded ahead"
        rows["decoded here"] = f"{found.decoded:.0f} images a second"
        rows["  needed by step"] = f"{needed} images a second"
    width = max(map(len, rows))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items())


def _bytes(number: int) -> str:
    for exponent, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if abs(number) >= 10**exponent:
            return f"{number / 10**exponent:.4g} {unit}"
    return f"{number} bytes"
