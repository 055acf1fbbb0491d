"""The processes of a run: which one writes, and what they agree on.

With one process, all of it is free. The mapping over devices is in `parallel`.
"""

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Tree = TypeVar("Tree")


def is_main_process() -> bool:
    """Returns whether this process is the one that writes."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Returns whether the flag is up in one process or more, the same in each.

    Every process calls it, and waits for its devices if there are several processes.
    """
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_main(tree: Tree) -> Tree:
    """Returns the tree of the main process, in every process."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.broadcast_one_to_all(tree)


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Lets the other processes in when the first one has come through.

    What is downloaded, prepared or claimed within is then there for them.
    """
    if not is_main_process():
        multihost_utils.sync_global_devices("main process first")
    yield
    if is_main_process():
        multihost_utils.sync_global_devices("main process first")
