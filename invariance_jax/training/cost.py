"""What a training step costs, known before it runs: memory and operations."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.stages import Compiled, Wrapped

from invariance_jax.data.limits import machine_memory
from invariance_jax.settings.schema import WITH_SIMILARITIES
from invariance_jax.training import parallel
from invariance_jax.training.batches import Batches
from invariance_jax.training.build import (
    Parts,
    applied,
    build,
    state_shapes,
    view_shapes,
)
from invariance_jax.training.draws import has_penalty
from invariance_jax.types import PyTree

_NO_KERNELS = {"kParameter", "kConstant", "kTuple", "kGetTupleElement", "kBitcast"}
"""Instructions of XLA for which nothing is started."""


def count_operations(parts: Parts) -> float:
    """Returns the floating-point operations of a step, a multiply-add as two.

    Counted from the shapes of layers are those of convolutions, matrix products and
    similarities: forward, twice that backward, and the same again for each derivative
    and each view of the penalty; forward alone of a target network.
    """
    settings, objective = parts.settings, parts.objective
    images = view_shapes(parts.task, parts.transformation)
    h, encoder = products(parts.encoder, images)
    z, heads = products(objective.method.heads, h)
    more = 0
    if objective.more:
        _, more = products(parts.encoder, view_shapes(parts.task, objective.more))
    # "mixed" takes a derivative and a view.
    each = settings.penalty.directions * (1 + (settings.penalty.kind == "mixed"))
    tangents = has_penalty(settings.penalty) * each
    passes = 2 * settings.average_views + tangents
    number = settings.more_views
    passes_of_heads = 2 + number + tangents * (settings.penalty.at == "z")
    # Forward, and backward for inputs and weights; a target network is not trained.
    trained = passes * encoder + number * more + passes_of_heads * heads
    target = 2 * (settings.average_views * encoder + heads)
    target *= objective.method.momentum is not None
    # Of two examples, four views meet.
    pairs = 4 * settings.batch_size * (settings.method.name in WITH_SIMILARITIES)
    similarities = pairs * jax.tree.leaves(z)[0].shape[-1]
    return settings.batch_size * (6.0 * (trained + similarities) + 2.0 * target)


def products(module: nn.Module, x: PyTree) -> tuple[PyTree, int]:
    """Returns what a module makes of examples, as a shape, and its multiplications."""
    result, variables = applied(module, x, seen=True)
    outputs = flatten_dict(variables["intermediates"])
    params, count = flatten_dict(variables["params"]), 0
    for (*layer, name), kernel in params.items():
        if name == "kernel":
            bias = params.get((*layer, "bias"))  # heads of attention make [H, d]
            made = kernel.shape[-1:] if bias is None else bias.shape
            each = math.prod(kernel.shape) // math.prod(made)
            for output in outputs.get((*layer, "__call__"), ()):
                count += math.prod(output.shape[1:]) * each
    return result, count


def check_memory(
    num_bytes: int,
    devices: Sequence[jax.Device],
    *,
    what: str,
    advice: str,
    share: float = 1.0,
    memory: float | None = None,
) -> None:
    """Raises ValueError if something takes more than a share of a device's memory.

    The memory is that of the devices where it is not given; CPU devices share that of
    the machine.
    """
    local = [devices[n] for n in parallel.local_positions(devices)]
    for device in local:
        most = memory
        if most is None and device.platform == "cpu":
            most = machine_memory() / len(local)
        elif most is None:
            most = (device.memory_stats() or {}).get("bytes_limit")
        if most is not None and num_bytes > share * most:
            raise ValueError(
                f"{what} {num_bytes / 1e9:.3g} GB of the {most / 1e9:.3g} GB of "
                f"{device}{', more than half' if share < 1 else ''}; {advice}, or use "
                "devices with more memory."
            )


def bytes_of(tree: PyTree) -> int:
    """Returns the bytes of arrays, or of arrays of such shapes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def memory_of(program: Compiled) -> tuple[int, int, int]:
    """Returns the bytes that a compiled program takes of each device.

    Those of arguments and results, of which what is donated counts once; those that it
    needs within; and its own. All are 0 where a platform does not tell.
    """
    found = program.memory_analysis()
    if found is None:
        return 0, 0, 0
    both = found.argument_size_in_bytes + found.output_size_in_bytes
    both -= found.alias_size_in_bytes
    return both, found.temp_size_in_bytes, found.generated_code_size_in_bytes


def traffic_of(program: Compiled) -> tuple[int, int]:
    """Returns the kernels that a step of a program of a GPU starts, and their bytes.

    Those of what each takes and returns; of a slice, twice what it returns. The step is
    the body of the loop over steps; loops within it count as often as they run, where
    XLA knows that.
    """
    executable = program.runtime_executable()
    assert executable is not None
    (module,) = executable.hlo_modules()
    parts = {part.name: part.instructions() for part in module.computations()}

    def kernels(part: list[Any]) -> Iterator[Any]:
        for one in part:
            kind, text = one.opcode.name, one.to_string()
            called = re.search(r"(?:to_apply|body)=%([\w.-]+)", text)
            if kind in ("kWhile", "kCall") and called:
                times = re.search(r'"known_trip_count":{"n":"(\d+)"', text)
                for _ in range(int(times[1]) if times else 1):
                    yield from kernels(parts[called[1]])
            elif kind not in _NO_KERNELS:
                yield one

    # The loop over steps starts the most, as what is within it counts too.
    bodies = re.findall(r" while\(.*body=%?([\w.-]+)", module.to_string())
    started = max((list(kernels(parts[name])) for name in bodies), key=len)
    moved = 0
    for one in started:
        is_slice = "slice_fusion" in one.name and "update" not in one.name
        takes = [one] if is_slice else {a.name: a for a in one.operands()}.values()
        moved += sum(map(_bytes_of_result, [one, *takes]))
    return len(started), moved


def _bytes_of_result(instruction: Any) -> int:
    """Returns the bytes of what an instruction of XLA returns, from its text."""
    # %name = (bf16[8,3]{1,0}, f32[]) fusion(%a, %b), ...
    text = instruction.to_string().split("(%", 1)[0]
    return sum(
        math.prod(map(int, filter(None, sizes.split(",")))) * -(-int(bits or 8) // 8)
        for bits, sizes in re.findall(r"\b[a-z]+(\d*)\w*\[([\d,]*)\]", text)
    )


def check_program(
    program: Compiled, devices: Sequence[jax.Device], *, memory: float | None = None
) -> None:
    """Checks that the compiled training step fits into the memory of each device."""
    advice = "lower batch_size, encoder.width, penalty.directions, average_views or "
    advice += "more_views, raise microbatches"
    taken, what = sum(memory_of(program)), "the training step takes"
    check_memory(taken, devices, what=what, advice=advice, memory=memory)


def check_data(
    num_bytes: int, devices: Sequence[jax.Device], *, memory: float | None = None
) -> None:
    """Checks that a data set fits into the memory of each device."""
    what, advice = "the training images take", "lower data.train_examples, prepare "
    advice += "smaller images, stream them (data.source)"
    check_memory(num_bytes, devices, what=what, advice=advice, share=0.5, memory=memory)


def check_state(parts: Parts) -> None:
    """Checks that parameters and optimizer fit into the memory of this machine."""
    size, there = bytes_of(state_shapes(parts)), machine_memory()
    if size > there:
        encoder = parts.settings.encoder
        raise ValueError(
            f"encoder.width, encoder.depth are {encoder.width}, {encoder.depth}: "
            f"parameters and optimizer take {size / 1e9:.3g} GB of the "
            f"{there / 1e9:.3g} GB of memory of this machine; expected fewer."
        )


def make_program(
    parts: Parts, batches: Batches, devices: Sequence[jax.Device]
) -> Wrapped:
    """Returns the program that trains, which its first call compiles."""
    mapped = build(parts.settings, axis_name=parallel.AXIS_NAME)
    return parallel.map_train(mapped, batches, devices)


def compile_train(
    parts: Parts, batches: Batches, devices: Sequence[jax.Device]
) -> Compiled:
    """Returns the program that trains, compiled without any array on a device.

    Its devices are those of one process: what pmap compiles ahead takes no others.
    """
    train, local = make_program(parts, batches, devices), (len(devices),)

    def shapes(tree: PyTree, axes: tuple[int, ...]) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), tree
        )

    key = shapes(jax.eval_shape(lambda: jax.random.key(0)), ())
    state, loaded = shapes(state_shapes(parts), local), shapes(batches.shape, local)
    num_steps = jax.ShapeDtypeStruct((), np.int32)
    return train.lower(state, key, loaded, num_steps).compile()
