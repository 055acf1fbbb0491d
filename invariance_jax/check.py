"""The check program: what can be known of a run before it waits in a queue.

The training step is compiled for the devices that are there, for simulated CPUs, or for
GPUs that are not there, but no data set is read, nothing is trained and nothing is
written. Of a stream, whose set is prepared if it is not, some images are decoded and,
where the devices are there, a few steps of a copy of the state are made: it compares
rates.
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
from invariance_jax.runtime.devices import make_deterministic, simulate
from invariance_jax.settings import Config, Settings, resolve
from invariance_jax.train import checked_parts
from invariance_jax.training import cost, parallel
from invariance_jax.training.batches import Batches, InMemory
from invariance_jax.training.build import Parts, first_state, state_shapes

_DEVICES = flags.DEFINE_integer(
    "check_devices",
    None,
    "CPU devices that --mode=check simulates, or GPUs of --check_target.",
)
_TARGET = flags.DEFINE_enum(
    "check_target",
    None,
    list(cards.CARDS),
    "A GPU that need not be there, for which --mode=check compiles.",
)

_TIMED_STEPS = 4
"""Batches that are decoded, and steps that are made, to measure the rates of both."""


class Memory(NamedTuple):
    """What the training step takes of the memory of one device, in bytes."""

    data: int  # the data set, of which each device holds a copy
    state: int  # parameters, statistics and optimizer; the new ones take their place
    temporary: int  # what lives within a step only, at most at any one time
    other: int  # what else comes in and goes out, and the compiled step itself


class Check(NamedTuple):
    """What is known of a run before it starts."""

    settings: Settings
    devices: tuple[str, ...]  # the kind of each
    parameters: dict[str, int]  # {"encoder", "heads"}: entries of all arrays
    flops: float  # of a step over all devices, see `training.cost`
    memory: Memory
    compile_seconds: float  # tracing and compiling of the step, wall clock
    # Of a GPU that is not there: kernels that a step starts, bytes that they take and
    # return, and the seconds of a step, estimated.
    traffic: tuple[int, int, float] | None
    decoded: float | None  # images a second that this host decodes, of a stream
    stepped: float | None  # images a second that the training step takes


def read_flags() -> tuple[int | None, str | None]:
    """Returns the devices that the command line asks for: how many, and which."""
    return _DEVICES.value, _TARGET.value


def run(
    config: Config, num_devices: int | None = None, target: str | None = None
) -> Check:
    """Checks a configuration and compiles its step.

    For so many CPUs that are simulated, or GPUs of a target of `runtime.cards.CARDS`
    that are not there; None: those that are there, or one GPU.
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
    kind, traffic = ", simulated" if simulated else "", None
    if card:
        kind, (kernels, moved) = ", not there", cost.traffic_of(compiled)
        share, precision = flops / len(devices), settings.precision
        estimated = card.seconds(share, moved, kernels, precision)
        traffic = kernels, moved, estimated
    there = jax.devices() if card else devices  # what images are decoded for
    decoded, stepped = _rates(parts, batches, compiled, there, bool(kind))
    leaves = {part: jax.tree.leaves(tree) for part, tree in state.params.items()}
    both, temporary, program = cost.memory_of(compiled)
    size = cost.bytes_of(state)
    # Where a platform does not tell, these are 0.
    other = max(both - size - data, 0) + program
    return Check(
        settings,
        tuple(f"{device.device_kind}{kind}" for device in devices),
        {part: sum(leaf.size for leaf in each) for part, each in leaves.items()},
        flops,
        Memory(data, size, temporary, other),
        compile_seconds,
        traffic,
        decoded,
        settings.batch_size / traffic[-1] if traffic else stepped,
    )


def _devices(num_devices: int | None, target: str | None) -> tuple[jax.Device, ...]:
    if target is not None:
        return cards.absent(target, num_devices or 1)
    if num_devices is not None:
        simulate(num_devices)
    return tuple(jax.devices())


def _batches(parts: Parts, devices: Sequence[jax.Device]) -> Batches:
    """Returns where the training rows come from; no image is read."""
    settings = parts.settings
    if settings.data.source == "stream":
        pictures = parts.task.examples("train").x
        assert isinstance(pictures, Pictures)
        return parts.make_stream(pictures, len(devices))
    count = settings.data.train_examples
    assert count is not None

    def repeated(leaf: np.ndarray) -> np.ndarray:
        """Returns an array like that of all examples, which takes no memory."""
        return np.broadcast_to(leaf[0], (count, *leaf.shape[1:]))

    examples = jax.tree.map(repeated, parts.task.stand_ins(1))
    return InMemory(examples, lambda *_: None)


def _rates(
    parts: Parts,
    batches: Batches,
    compiled: Compiled,
    devices: Sequence[jax.Device],
    simulated: bool,
) -> tuple[float | None, float | None]:
    """Returns images a second that the host decodes and that the step takes.

    None where nothing is decoded, or the devices are not there.
    """
    if isinstance(batches, InMemory):
        return None, None
    batches.load(0, devices)  # compiles, and opens files
    size, started = parts.settings.batch_size, time.monotonic()
    for step in range(1, _TIMED_STEPS + 1):
        loaded = batches.load(step, devices)
    decoded = _TIMED_STEPS * size / (time.monotonic() - started)
    if simulated:
        return decoded, None
    state, key = parallel.replicate(first_state(parts), devices), jax.random.key(0)
    for step in range(_TIMED_STEPS):  # the first of them is left out
        started = time.monotonic() if step == 1 else started
        state, sums = compiled(state, key, loaded, np.int32(1))
        jax.block_until_ready(sums)
    return decoded, (_TIMED_STEPS - 1) * size / (time.monotonic() - started)


def table(found: Check) -> str:
    """Returns the result of `run` as lines of text."""
    settings, taken = found.settings, found.memory
    derived, parameters = settings.derived, found.parameters
    batch, count = settings.batch_size, len(found.devices)
    seeds = f", for each of {settings.seeds} seeds" if settings.seeds > 1 else ""
    rows = {
        "devices": f"{count} ({', '.join(sorted({*found.devices}))})",
        "batch": f"{batch} examples, {batch // count} per device",
        "steps": f"{derived.steps}{seeds}, {derived.steps_per_epoch} per epoch",
        "parameters": ", ".join(f"{n:,} ({part})" for part, n in parameters.items()),
        "FLOPs per step": f"{found.flops / 1e9:.4g} G, products and convolutions",
        "memory per device": _bytes(sum(taken)) + ", of the training step",
        "  data set": _bytes(taken.data),
        "  state": _bytes(taken.state),
        "  within a step": _bytes(taken.temporary),
        "  other": _bytes(taken.other),
        "compiled in": f"{found.compile_seconds:.1f} s",
    }
    if found.traffic is not None:
        kernels, moved, seconds = found.traffic
        rows["kernels per step"] = f"{kernels}, moving {_bytes(moved)}"
        rows["estimated step"] = f"{seconds * 1e3:.3g} ms"
    if found.decoded is not None:
        needed = "unknown" if found.stepped is None else f"{found.stepped:.0f}"
        rows["decoded here"] = f"{found.decoded:.0f} images a second"
        rows["  the step takes"] = f"{needed} images a second"
    width = max(map(len, rows))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items())


def _bytes(number: int) -> str:
    """Returns a number of bytes with a unit of powers of ten."""
    for exponent, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if abs(number) >= 10**exponent:
            return f"{number / 10**exponent:.4g} {unit}"
    return f"{number} bytes"
