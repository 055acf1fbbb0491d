"""One replica per device of every process: the only file that maps over devices.

Every replica makes the draws of a step for the global batch and takes its slice.
Gradients, batch statistics and negatives are combined over the mapped axis `AXIS_NAME`.
The rest of the project sees one replica as NumPy arrays, the same in every process.
"""

import functools
import math
import os
import tempfile
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.stages import Wrapped

from invariance_jax.data import Pictures, take
from invariance_jax.data.limits import machine_memory
from invariance_jax.training.batches import Batches
from invariance_jax.training.build import Parts
from invariance_jax.training.step import Metrics, TrainState
from invariance_jax.transforms.base import sizes_of
from invariance_jax.types import Array, Key, PyTree

AXIS_NAME = "replicas"

_SHARE_OF_MEMORY = 0.2
"""Share of the machine's memory: larger results of `make_map` are kept in a file."""


def replicate(tree: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """Returns the tree with every array copied to each device, along a new axis 0."""
    return _copy(tuple(devices))(np.arange(len(local_positions(devices))), tree)


def local_positions(devices: Sequence[jax.Device]) -> list[int]:
    """Returns the positions in devices of those that belong to this process."""
    process = jax.process_index()
    return [n for n, device in enumerate(devices) if device.process_index == process]


@functools.cache
def _copy(devices: tuple[jax.Device, ...]) -> Callable[[np.ndarray, PyTree], PyTree]:
    return jax.pmap(
        lambda _, tree: tree,
        # The axis name is part of the sharding: another one would recompile a step.
        axis_name=AXIS_NAME,
        in_axes=(0, None),
        devices=devices,
    )


def one_replica(tree: PyTree) -> PyTree:
    """Returns the first local replica of a replicated tree, as NumPy arrays."""
    shards = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree)
    return jax.tree.map(lambda shard: np.asarray(shard)[0], shards)


def make_train(
    program: Callable[..., tuple[TrainState, Metrics]],
    batches: Batches,
    devices: Sequence[jax.Device],
) -> Callable[[TrainState, Key, int, int], tuple[TrainState, Metrics]]:
    """Returns `train(state, key, first, num_steps)`, which runs steps from `first` on.

    program: the result of `map_train`, compiled or not. The state is donated, metrics
    are summed over the steps, of which there is at least one.
    """
    # On the CPUs of several processes, queued programs may run in different orders, and
    # then wait for one another forever.
    is_blocking = jax.process_count() > 1 and devices[0].platform == "cpu"

    add = jax.pmap(
        lambda *each: jax.tree.map(jnp.add, *each),
        axis_name=AXIS_NAME,
        devices=list(devices),
    )

    before: Metrics = {}
    last: Metrics = {}

    def train_steps(state: TrainState, key: Key, first: int, num_steps: int) -> PyTree:
        nonlocal before, last
        sums, count = None, 1 if batches.loads_each_step else num_steps
        for begin in range(first, first + num_steps, count):
            loaded = batches.load(begin, devices, last)
            if batches.loads_each_step:
                # At most one batch is copied to the devices while a step runs.
                jax.block_until_ready(before)
            before = last
            state, last = program(state, key, loaded, np.int32(count))
            sums = last if sums is None else add(sums, last)
            if is_blocking:
                jax.block_until_ready((state, sums))
        return state, sums

    return train_steps


def map_train(parts: Parts, batches: Batches, devices: Sequence[jax.Device]) -> Wrapped:
    """Returns the mapped program of `make_train`, which can be compiled ahead.

    Its num_steps is int32 `[]`; all numbers of steps share one compilation. The parts
    must be built with `AXIS_NAME`.
    """
    step, draw, sampler = parts.make_step(), parts.make_draw(), parts.make_sampler()

    def take_share(tree: PyTree) -> PyTree:
        replicas = jax.lax.psum(1, AXIS_NAME)
        replica = jax.lax.axis_index(AXIS_NAME)

        def share(leaf: Array) -> Array:
            size = leaf.shape[0] // replicas
            return jax.lax.dynamic_slice_in_dim(leaf, replica * size, size)

        return jax.tree.map(share, tree)

    @jax.jit  # traced once, for the shapes of the metrics and in the loop
    def one_step(
        state: TrainState, key: Key, loaded: PyTree
    ) -> tuple[TrainState, Metrics]:
        indices = take_share(sampler(key, state.step))
        x = batches.take(loaded, indices)
        sizes = sizes_of(x)
        if sizes is not None:
            sizes = jax.lax.all_gather(sizes, AXIS_NAME, tiled=True)
        return step(state, x, take_share(draw(key, state.step, sizes)))

    def train(
        state: TrainState, key: Key, loaded: PyTree, num_steps: Array
    ) -> tuple[TrainState, Metrics]:
        def body(_: Array, carry: tuple[TrainState, Metrics]) -> PyTree:
            state, sums = carry
            state, metrics = one_step(state, key, loaded)
            return state, jax.tree.map(jnp.add, sums, metrics)

        _, shapes = jax.eval_shape(one_step, state, key, loaded)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.fori_loop(0, num_steps, body, (state, zeros))

    return jax.pmap(
        train,
        axis_name=AXIS_NAME,
        in_axes=(0, None, 0, None),
        donate_argnums=0,
        devices=list(devices),
    )


def make_map(
    function: Callable[..., Array],
    devices: Sequence[jax.Device],
    *,
    axis: int,
    between: Callable[[], None] = lambda: None,
) -> Callable[..., np.ndarray]:
    """Returns a function mapped over the examples of a data set, batch by batch.

    function: `(variables, x [B, ...], indices int32 [B], stream) -> [..., B, ...]`;
    axis: that of the examples in its result. Every process returns the results of all
    examples, once each; repeated examples pad the last batch. `between` is called
    before each batch; its exceptions end the computation.
    """

    def gathered(variables: PyTree, x: Array, indices: Array, stream: Array) -> Array:
        result = function(variables, x, indices, stream)
        return jax.lax.all_gather(result, AXIS_NAME, axis=axis, tiled=True)

    mapped = jax.pmap(
        gathered, axis_name=AXIS_NAME, devices=list(devices), in_axes=(0, 0, 0, None)
    )
    local = local_positions(devices)

    def map_examples(
        variables: PyTree, x: np.ndarray | Pictures, stream: int, *, batch_size: int
    ) -> np.ndarray:
        variables = replicate(variables, devices)
        per_device = min(batch_size, -(-len(x) // len(devices)))
        count = per_device * len(devices)
        launched: Array | None = None
        results: np.ndarray | None = None
        put = functools.partial(_put, count=len(x), axis=axis)
        for start in range(0, len(x), count):
            between()
            indices = np.minimum(np.arange(start, start + count), len(x) - 1)
            indices = indices.astype(np.int32).reshape(len(devices), per_device)[local]
            rows = take(x, indices)  # while the devices compute the previous batch
            previous, launched = launched, mapped(variables, rows, indices, stream)
            if previous is not None:
                results = put(results, one_replica(previous), start - count)
        return put(results, one_replica(launched), start)

    return map_examples


def _put(
    results: np.ndarray | None, batch: np.ndarray, start: int, count: int, axis: int
) -> np.ndarray:
    """Writes a batch into the results of all examples; None: allocates them first.

    If they need more than a share of the memory, they are stored in a temporary file,
    which is deleted along with them.
    """
    if results is None:
        shape = (*batch.shape[:axis], count, *batch.shape[axis + 1 :])
        size = math.prod(shape) * batch.itemsize
        if size <= _SHARE_OF_MEMORY * machine_memory():
            results = np.empty(shape, batch.dtype)
        else:
            with tempfile.TemporaryFile() as file:
                try:  # reserve it now: writing to a full disk would kill the process
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    text = f"no room for features of {size / 1e9:.3g} GB (TMPDIR)"
                    raise OSError(error.errno, text) from error
                results = np.memmap(file, batch.dtype, "r+", shape=shape)
    size = min(batch.shape[axis], count - start)
    leading = (slice(None),) * axis
    results[*leading, start : start + size] = batch[*leading, :size]
    return results
