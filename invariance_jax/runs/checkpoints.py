"""Checkpoints of the training state, through orbax.

A checkpoint is a flat dictionary from dotted names to NumPy arrays, so that it can be
compared with what a run expects by name and shape. Every process calls save and
restore; orbax writes into a temporary folder and renames it, so a checkpoint that was
cut off is never chosen by a resume.
"""

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from invariance_jax.runtime.files import absolute
from invariance_jax.runtime.processes import is_main_process


class Checkpoints:
    """The checkpoints of one work directory.

    Attributes:
      directory: the folder that holds a folder per step.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int | None = None,
        keep_every_steps: int | None = None,
        owns: bool = False,
    ):
        """Opens the folder of checkpoints; nothing is written before the first save.

        Args:
          workdir: the work directory of the run.
          keep: newest checkpoints that are kept; None keeps all.
          keep_every_steps: checkpoints at multiples of it are kept for good.
          owns: whether this is the run that writes them: then what an earlier start,
            cut off while it was writing, has left behind is removed.
        """
        self.directory = absolute(workdir) / "checkpoints"
        self._keep = keep
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every_steps,
                create=False,
                cleanup_tmp_directories=owns and self.directory.exists(),
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, increasing."""
        return sorted(self._manager.all_steps())

    def check_room(self, state: Any) -> None:
        """Checks that the disk has room for one checkpoint more than there are.

        Args:
          state: pytree of arrays or shapes, what will be saved.

        Raises:
          OSError: if it has not; an object store is not asked.
        """
        folder = self.directory
        if "://" in os.fspath(folder):
            return
        while not folder.exists():
            folder = folder.parent
        missing = max(1, (self._keep or 1) + 1 - len(self.steps()))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(folder).free
        if missing * size > free:
            raise OSError(
                f"{folder} has {free / 1e9:.3g} GB left; expected {missing} times the "
                f"{size / 1e9:.3g} GB of a checkpoint. Lower checkpoints.keep, free "
                "space, or give another workdir."
            )

    def save(
        self, step: int, state: Any, *, note: dict[str, Any] | None = None
    ) -> None:
        """Saves a state, in the background.

        Args:
          step: finished steps.
          state: pytree of NumPy arrays of one replica.
          note: what `json` takes, saved in the same move; see `note`.

        Raises:
          FloatingPointError: if an array is not finite; then nothing is written and the
            older checkpoints stay.
        """
        arrays = _flatten(state)
        for name, array in arrays.items():
            floating = np.issubdtype(array.dtype, np.floating)
            if floating and not np.isfinite(array).all():
                raise FloatingPointError(
                    f"{name} is not finite at step {step}; the checkpoints until step "
                    f"{max(self.steps(), default=0)} in {self.directory} are kept."
                )
        if is_main_process():
            self.directory.mkdir(parents=True, exist_ok=True)
        args = ocp.args.StandardSave(arrays)
        # When to save is the run's decision, not orbax's: hence force.
        save = functools.partial(self._manager.save, step, args=args, force=True)
        self._told(lambda: save(custom_metadata=note))

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints that come after a step, the newest one first.

        Args:
          step: finished steps.
        """
        for later in reversed(self.steps()):
            if later > step:
                self._manager.delete(later)

    def check(self) -> None:
        """Tells what has gone wrong in the background since the last save.

        Raises:
          OSError: if the checkpoint could not be written.
        """
        self._told(self._manager.check_for_errors)

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
          OSError: if the checkpoint could not be written.
        """
        self._told(self._manager.wait_until_finished)

    def _told(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            raise OSError(
                f"the checkpoint in {self.directory} could not be written: {error}"
            ) from error

    def note(self, step: int) -> dict[str, Any]:
        """Returns what was noted with a checkpoint, {} if nothing was.

        Args:
          step: finished steps, one of `steps`.
        """
        return dict(self._manager.metadata(step).custom_metadata or {})

    def restore(self, like: Any, *, step: int | None = None) -> Any:
        """Returns a saved state.

        Args:
          like: pytree of arrays or shapes, the state that is expected.
          step: finished steps; None is the newest checkpoint.

        Returns:
          The pytree of like, with NumPy arrays.

        Raises:
          ValueError: if there is no such checkpoint, it cannot be read, or its arrays
            have other names or shapes than expected.
        """
        steps = self.steps()
        step = max(steps, default=None) if step is None else step
        if step not in steps:
            which = "" if step is None else f" of step {step}"
            raise ValueError(
                f"no checkpoint{which} in {self.directory}; found steps {steps}."
            )
        try:
            arrays = self._manager.restore(step, args=ocp.args.StandardRestore())
        except Exception as error:
            raise ValueError(
                f"the checkpoint {self.directory / str(step)} cannot be read "
                f"({type(error).__name__}); move it away to continue from an older one."
            ) from error
        expected = _flatten(like)
        _check_same(expected, arrays, self.directory / str(step))
        leaves = [np.asarray(arrays[name]) for name in expected]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)

    def close(self) -> None:
        """Waits for the background and closes."""
        self._manager.close()


def _flatten(tree: Any) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in paths
    }


def _check_same(
    expected: dict[str, Any], found: dict[str, Any], path: epath.Path
) -> None:
    for name in sorted({*expected, *found}):
        shapes = [
            tuple(tree[name].shape) if name in tree else "nothing"
            for tree in (expected, found)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the checkpoint {path} does not fit the configuration: for {name} "
                f"expected {shapes[0]}, found {shapes[1]}."
            )
