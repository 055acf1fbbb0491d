"""Cost of a training step before it runs: memory and floating-point operations."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.stages import Compiled, Wrapped

from invariance_jax.data import limits
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
"""XLA instructions that start no kernel."""

_LESS = (
    "lower batch_size, encoder.width, penalty.directions, average_views or more_views, "
    "raise microbatches"
)
"""Advice where the training step does not fit."""


def count_operations(parts: Parts) -> float:
    """Returns the floating-point operations of a step, a multiply-add counted as two.

    Counts convolutions and matrix products, from the shapes of layers, and similarities
    where the loss has any. The backward pass costs twice the forward pass. Each
    derivative and each view that the penalty needs costs as much as a view; the step is
    one with the penalty. A target network has no backward pass.
    """
    settings, objective = parts.settings, parts.objective
    images = view_shapes(parts.task, parts.transformation)
    h, encoder = products(parts.encoder, images)
    z, heads = products(objective.method.heads, h)
    further = 0
    if objective.more:
        _, further = products(parts.encoder, view_shapes(parts.task, objective.more))
    # "mixed" needs a derivative and a view per direction, the others one of the two.
    extra = settings.penalty.directions * (1.0 + (settings.penalty.kind == "mixed"))
    extra *= has_penalty(settings.penalty)
    passes = 2 * settings.average_views + extra
    passes_of_heads = 2 + settings.more_views + extra * (settings.penalty.at == "z")
    trained = passes * encoder + passes_of_heads * heads
    trained += settings.more_views * further
    has_target = objective.method.momentum is not None
    target = has_target * 2 * (settings.average_views * encoder + heads)
    # Both views meet all 2 B views, or the target's B keys, which have no gradient.
    pairs = settings.batch_size * (settings.method.name in WITH_SIMILARITIES)
    similarities = pairs * (4 if has_target else 12) * jax.tree.leaves(z)[0].shape[-1]
    # Two operations each, three times: forward, backward for inputs and for weights.
    return settings.batch_size * (6.0 * trained + 2.0 * (target + similarities))


def products(module: nn.Module, x: PyTree) -> tuple[PyTree, int]:
    """Returns the shape of a module's outputs, and its multiplications per example."""
    result, variables = applied(module, x, seen=True)
    outputs = flatten_dict(variables["intermediates"])
    params, count = flatten_dict(variables.get("params", {})), 0
    for (*layer, name), kernel in params.items():
        if name == "kernel":
            bias = params.get((*layer, "bias"))  # [heads, d] in attention
            features = kernel.shape[-1:] if bias is None else bias.shape
            per_entry = math.prod(kernel.shape) // math.prod(features)
            for output in outputs.get((*layer, "__call__"), ()):
                count += math.prod(output.shape[1:]) * per_entry
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
    """Raises ValueError if num_bytes is more than a share of a local device's memory.

    memory: bytes of a device. None: as the device reports it; CPU devices share the
    memory of the machine. what and advice are parts of the error message.
    """
    local = [devices[n] for n in parallel.local_positions(devices)]
    for device in local:
        limit = memory
        if limit is None and device.platform == "cpu":
            limit = limits.machine_memory() / len(local)
        elif limit is None:
            limit = (device.memory_stats() or {}).get("bytes_limit")
        if limit is not None and num_bytes > share * limit:
            raise ValueError(
                f"{what} {num_bytes / 1e9:.3g} GB of the {limit / 1e9:.3g} GB of "
                f"{device}{', more than half' if share < 1 else ''}; {advice}, or use "
                "devices with more memory."
            )


def bytes_of(tree: PyTree) -> int:
    """Returns the number of bytes of arrays, or of arrays with given shapes."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def memory_of(program: Compiled) -> tuple[int, int, int]:
    """Returns the bytes that a compiled program needs on each device, in three parts.

    Arguments and results, where a donated buffer counts once; temporary buffers; the
    code of the program. All are 0 where a platform does not report them.
    """
    sizes = program.memory_analysis()
    if sizes is None:
        return 0, 0, 0
    buffers = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    buffers -= sizes.alias_size_in_bytes
    return buffers, sizes.temp_size_in_bytes, sizes.generated_code_size_in_bytes


def traffic_of(program: Compiled) -> tuple[int, int]:
    """Returns the number of kernels that a step starts on a GPU, and the bytes moved.

    A kernel moves the bytes of its operands and its result; a slice twice those of its
    result. The step is the body of the program's loop over steps. A loop within it
    counts as often as it runs, or once where XLA does not know that. Of the branches of
    a condition, such as a step with the penalty, that with the most kernels counts.
    """
    executable = program.runtime_executable()
    assert executable is not None
    (module,) = executable.hlo_modules()
    parts = {part.name: part.instructions() for part in module.computations()}

    def kernels(part: list[Any]) -> Iterator[Any]:
        for instruction in part:
            kind, text = instruction.opcode.name, instruction.to_string()
            called = re.search(r"(?:to_apply|body)=%([\w.-]+)", text)
            if kind in ("kWhile", "kCall") and called:
                times = re.search(r'"known_trip_count":{"n":"(\d+)"', text)
                for _ in range(int(times[1]) if times else 1):
                    yield from kernels(parts[called[1]])
            elif kind == "kConditional":
                # ..., branch_computations={%a, %b}, or true_computation=%a, ...
                names = re.findall(r"%([\w.-]+)", text.split("_computation", 1)[1])
                branches = (list(kernels(parts[n])) for n in names if n in parts)
                yield from max(branches, key=len)
            elif kind not in _NO_KERNELS:
                yield instruction

    # The loop over steps starts the most kernels, as the loops within it count too.
    bodies = re.findall(r" while\(.*body=%?([\w.-]+)", module.to_string())
    started = max((list(kernels(parts[name])) for name in bodies), key=len)
    moved = 0
    for kernel in started:
        is_slice = "slice_fusion" in kernel.name and "update" not in kernel.name
        read = [kernel] if is_slice else {a.name: a for a in kernel.operands()}.values()
        moved += sum(map(_bytes_of_result, [kernel, *read]))
    return len(started), moved


def _bytes_of_result(instruction: Any) -> int:
    """Returns the bytes of the result of an XLA instruction, parsed from its text."""
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
    size, what = sum(memory_of(program)), "the training step takes"
    check_memory(size, devices, what=what, advice=_LESS, memory=memory)


def check_data(
    num_bytes: int, devices: Sequence[jax.Device], *, memory: float | None = None
) -> None:
    """Checks that a data set takes at most half of the memory of each device."""
    what, advice = "the training images take", "lower data.train_examples, prepare "
    advice += "smaller images, stream them (data.source)"
    check_memory(num_bytes, devices, what=what, advice=advice, share=0.5, memory=memory)


def check_state(parts: Parts) -> None:
    """Checks that the training state fits into the memory of this machine."""
    encoder, size = parts.settings.encoder, bytes_of(state_shapes(parts))
    keys = f"encoder.width, encoder.depth are {encoder.width}, {encoder.depth}"
    what = f"{keys}: parameters and optimizer"
    limits.memory(what, size, advice="expected fewer", copies=1)


def make_program(
    parts: Parts, batches: Batches, devices: Sequence[jax.Device]
) -> Wrapped:
    """Returns the training program, which its first call compiles."""
    mapped = build(parts.settings, axis_name=parallel.AXIS_NAME)
    return parallel.map_train(mapped, batches, devices)


def compile_train(
    parts: Parts, batches: Batches, devices: Sequence[jax.Device]
) -> Compiled:
    """Returns the training program, compiled without any array on a device.

    All devices must be those of one process: a program that pmap compiles ahead of time
    accepts no others.
    """
    train, local = make_program(parts, batches, devices), (len(devices),)

    def shapes(tree: PyTree, axes: tuple[int, ...]) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), tree
        )

    key = shapes(jax.eval_shape(lambda: jax.random.key(0)), ())
    state, loaded = shapes(state_shapes(parts), local), shapes(batches.shape, local)
    num_steps = jax.ShapeDtypeStruct((), np.int32)
    try:
        return train.lower(state, key, loaded, num_steps).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # a TPU's compiler knows its memory
            raise
        message = f"the training step does not fit into memory ({error}); {_LESS}."
        raise ValueError(message) from error
