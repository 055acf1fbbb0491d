"""What training takes of the memory of a device, known before it begins."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from invariance_jax.training import parallel
from invariance_jax.training.start import state_shapes, step_and_draw


def limit(device: jax.Device) -> int | None:
    """Returns the memory of a device in bytes, None if it does not tell.

    Args:
      device: a device of this process.
    """
    return (device.memory_stats() or {}).get("bytes_limit")


def check_data(data: np.ndarray, devices: Sequence[jax.Device]) -> None:
    """Checks that a data set fits into the memory of each device.

    Args:
      data: what every device would hold.
      devices: the devices of all processes; those of others, and one that does not
        tell its memory, are passed over.

    Raises:
      ValueError: if the data takes more than half of the memory of a device.
    """
    for device in _local(devices):
        memory = limit(device)
        if memory is not None and data.nbytes > memory // 2:
            raise ValueError(
                f"the training images take {data.nbytes / 1e9:.3g} GB of the "
                f"{memory / 1e9:.3g} GB of {device}, more than half; lower "
                "data.train_examples, prepare smaller images, or use a device with "
                "more memory."
            )


def fits(settings: Any, data: np.ndarray, device: jax.Device, *, seeds: int) -> bool:
    """Returns whether seeds that train as one take at most half of a device's memory.

    If the device tells its memory, their program is compiled for it, and kept where
    compiled programs are, so that training need not do it again.

    Args:
      settings: the result of `training.settings.resolve`.
      data: the training examples `[N, ...]`.
      device: the only one.
      seeds: how many would train as one.
    """
    memory = limit(device)
    if memory is None:
        return True
    compiled = compile_train(settings, data, [device], seeds=seeds)
    found = compiled.memory_analysis()
    size = found.argument_size_in_bytes + found.temp_size_in_bytes
    size += found.output_size_in_bytes - found.alias_size_in_bytes
    return bool(size <= memory // 2)


def compile_train(
    settings: Any, data: np.ndarray, devices: Sequence[jax.Device], *, seeds: int = 1
) -> Any:
    """Returns the program that trains, made without any array on a device.

    Args:
      settings: the result of `training.settings.resolve`.
      data: the training examples `[N, ...]`, or what has their shape.
      devices: the devices of all processes.
      seeds: as in `parallel.make_train`.

    Returns:
      A `jax.stages.Compiled`, of one device.
    """
    train = parallel.map_train(*step_and_draw(settings), devices, seeds=seeds)
    local = (len(_local(devices)),)
    axis = (seeds,) if seeds > 1 else ()  # as `parallel.stack` makes it

    def shapes(tree: Any, axes: tuple[int, ...]) -> Any:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*axes, *leaf.shape), leaf.dtype), tree
        )

    key = shapes(jax.eval_shape(lambda: jax.random.key(0)), axis)
    state, x = shapes(state_shapes(settings), local + axis), shapes(data, local)
    num_steps = jax.ShapeDtypeStruct((), np.int32)
    return train.lower(state, key, x, num_steps).compile()


def _local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    own = jax.process_index()
    return [device for device in devices if device.process_index == own]
