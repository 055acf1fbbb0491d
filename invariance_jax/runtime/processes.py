"""The processes of a run: which one writes, and what they agree on.

With one process, nothing is communicated. `training.parallel` maps over devices.
"""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

Tree = TypeVar("Tree")

_WAIT = 7 * 86_400_000  # ms


def is_main_process() -> bool:
    """Returns whether this process is the main one, which alone writes."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Returns whether any process has a True flag; all call it and wait for devices."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_main(tree: Tree) -> Tree:
    """Returns the main process's tree in every process; all must call it."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Runs the context in the main process first, then in the other processes.

    They then find what the main process has downloaded, prepared or claimed.
    """
    if not is_main_process():
        _meet()
    yield
    if is_main_process():
        _meet()


def _meet() -> None:
    """Waits for all processes, however long it takes, and connects their devices.

    On CPUs, processes whose first exchange is not within 30 s would fail, such as those
    that take unequal times to compile a step.
    """
    if jax.process_count() == 1:
        return
    multihost.get_barrier_sync_fn()(key="main process first", timeout_ms=_WAIT)
    multihost_utils.sync_global_devices("main process first")
    mesh, local = jax.sharding.Mesh(jax.devices(), ("all",)), jax.local_device_count()
    ones = multihost_utils.host_local_array_to_global_array(
        np.ones(local), mesh, jax.sharding.PartitionSpec("all")
    )
    jnp.sum(ones).block_until_ready()
