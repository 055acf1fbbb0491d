"""Checkpoints of the training state, through orbax.

A checkpoint is a flat dictionary from dotted names to NumPy arrays. Its metadata holds
a hash of each array and of itself, so that data corrupted on the disk is never used.
Every process calls save and restore. Orbax renames a finished folder, so a resume never
chooses a partly written checkpoint.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from invariance_jax.runs.workdir import Owner
from invariance_jax.runtime.files import AnyPath, is_url, sync, work_folder
from invariance_jax.runtime.processes import any_process, is_main_process
from invariance_jax.types import Json, PyTree

_log = logging.getLogger(__name__)

State = TypeVar("State")


class Checkpoint(NamedTuple, Generic[State]):
    """Number of finished steps, state of one replica as NumPy arrays, and a note."""

    step: int
    state: State
    note: Json


class Damaged(ValueError):
    """A checkpoint that cannot be read or differs from what was saved."""

    def __init__(self, path: epath.Path, what: str):
        """Makes the message from the checkpoint's folder and the damage in words."""
        super().__init__(
            f"the checkpoint {path} is damaged: {what}; --mode=train resumes from an "
            "older one and computes the same numbers."
        )


class Checkpoints:
    """The checkpoints of one work directory, a folder for each step."""

    def __init__(
        self,
        workdir: AnyPath,
        *,
        every_steps: int = 1,
        keep: int | None = None,
        keep_every_steps: int | None = None,
        owner: Owner | None = None,  # None: for reading only
    ):
        """Opens the folder; nothing is written before the first save."""
        self.directory = work_folder(workdir) / "checkpoints"
        self._every_steps, self._owner = every_steps, owner
        self._keep, self._keep_every_steps = keep, keep_every_steps
        self._manager = ocp.CheckpointManager(
            self.directory,
            # Without it, orbax infers it from the newest folder, which may be empty.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self,
                create=False,
                cleanup_tmp_directories=owner is not None and self.directory.exists(),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._sync),
            ),
        )

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: object
    ) -> list[bool]:
        """Orbax's policy: keeps what an uninterrupted run has, and the newest one.

        The checkpoint of a stop between two regular ones goes with the next one. The
        others stay if `every_steps` has changed since.
        """
        steps = [one.step for one in checkpoints]
        stops = [s for s in steps[-2:-1] if s % self._every_steps]
        kept = self._kept([s for s in steps if s not in stops])
        return [step in kept for step in steps]

    def _kept(self, saved: Sequence[int]) -> set[int]:
        """Returns those of the saved steps that are kept; all if `keep` is None."""
        newest, every = {*saved[-(self._keep or 0) :]}, self._keep_every_steps
        return newest | {step for step in saved if every and step % every == 0}

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in increasing order."""
        return sorted(self._manager.all_steps())

    def check_room(
        self, state: PyTree, saved: Sequence[int], *, later_runs: int = 0
    ) -> None:
        """Raises OSError if the disk lacks room for the checkpoints that are kept.

        saved: all steps at which the run saves, in increasing order. As many are kept
        by each later run, and one more exists while a checkpoint is written. Steps
        before the newest checkpoint need no room, even if theirs were removed.
        """
        folder = self.directory
        if is_url(folder):
            return
        while not folder.exists():
            folder = folder.parent
        kept, existing = self._kept(saved), self.steps()
        added = [step for step in kept if step > max(existing, default=0)]
        removed = {*existing} - kept
        count = max(1, len(added) + later_runs * len(kept) + 1 - len(removed))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = shutil.disk_usage(folder).free
        if count * size > free:
            raise OSError(
                f"{folder} has {free / 1e9:.3g} GB left; expected {count} times the "
                f"{size / 1e9:.3g} GB of a checkpoint. Lower checkpoints.keep, raise "
                "checkpoints.keep_every_steps, free space, or give another workdir."
            )

    def save(self, step: int, state: PyTree, *, note: Json | None = None) -> None:
        """Saves a state and a JSON-serializable note in the background."""
        arrays = _flatten(state)
        for name, array in arrays.items():
            is_float = np.issubdtype(array.dtype, np.floating)
            if is_float and not np.isfinite(array).all():
                raise FloatingPointError(
                    f"{name} is not finite at step {step}; the checkpoints until step "
                    f"{max(self.steps(), default=0)} in {self.directory} are kept."
                )
        if is_main_process():
            if self._owner is not None:
                self._owner.check()
            self.directory.mkdir(parents=True, exist_ok=True)
        args = ocp.args.StandardSave(arrays)
        metadata = {"step": step, "note": note or {}, "hashes": _hashes(arrays)}
        sealed = _with_hash(metadata)
        with self._explain_errors():
            # force: the run decides when to save, not orbax.
            self._manager.save(step, args=args, custom_metadata=sealed, force=True)

    def _sync(self) -> None:
        """Flushes a checkpoint to the disk before orbax marks it as complete.

        A second start may be writing the same step, into the same temporary folder: the
        first one must not rename that.
        """
        if not is_main_process():
            return
        if not is_url(self.directory):
            for folder in self.directory.iterdir():
                if "orbax-checkpoint-tmp" in folder.name:
                    for path in filter(Path.is_file, Path(folder).rglob("*")):
                        with path.open("rb") as file:
                            sync(file)
        if self._owner is not None:
            self._owner.check()

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, the newest one first."""
        for saved in reversed(self.steps()):
            if saved > step:
                self._manager.delete(saved)

    def check(self) -> None:
        """Raises OSError if the last checkpoint could not be written."""
        with self._explain_errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is saved; raises OSError if saving has failed."""
        with self._explain_errors():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            reason = os.strerror(int(code.group(1))) if code else str(error)
            raise OSError(
                f"the checkpoint in {self.directory} could not be written: "
                f"{reason.splitlines()[0]}; the older ones are kept."
            ) from error

    def newest(self, like: State) -> Checkpoint[State] | None:
        """Returns the newest undamaged checkpoint; ValueError if all are damaged."""
        steps = self.steps()
        newest = next(self.undamaged(like, steps[::-1]), None)
        if newest is None and steps:
            raise ValueError(
                f"every checkpoint in {self.directory} is damaged; move the folder "
                "away to start from step 0."
            )
        return newest

    def undamaged(
        self, like: State, steps: Sequence[int]
    ) -> Iterator[Checkpoint[State]]:
        """Yields the checkpoints of these steps; skips damaged ones with a warning."""
        for step in steps:
            damage = None
            try:
                checkpoint = self._read(like, step)
            except Damaged as error:
                damage = error
            # All processes skip a checkpoint that one of them cannot read.
            if not any_process(damage is not None):
                yield checkpoint
            else:
                known = damage or f"another process found step {step} damaged"
                _log.warning("%s", known)

    def restore(self, like: State, *, step: int | None = None) -> Checkpoint[State]:
        """Returns the checkpoint of a step, or the newest, exactly as it was saved."""
        steps = self.steps()
        step = max(steps, default=None) if step is None else step
        if step not in steps:
            of_step = "" if step is None else f" of step {step}"
            raise ValueError(
                f"no checkpoint{of_step} in {self.directory}; found steps {steps}."
            )
        return self._read(like, step)

    def _read(self, like: State, step: int) -> Checkpoint[State]:
        path = self.directory / str(step)
        try:
            arrays = self._manager.restore(step, args=ocp.args.StandardRestore())
            saved = self._manager.metadata(step).custom_metadata
        except Exception as error:  # orbax has no exception type of its own
            raise Damaged(path, f"cannot be read: {type(error).__name__}") from error
        metadata = dict(saved or {})
        if metadata != _with_hash(metadata):
            raise Damaged(path, "its _CHECKPOINT_METADATA differs from what was saved")
        if metadata["step"] != step:
            raise Damaged(path, f"it holds step {metadata['step']}")
        expected = _flatten(like)
        _check_shapes(expected, arrays, path)
        for name, digest in _hashes(arrays).items():
            if metadata["hashes"].get(name) != digest:
                raise Damaged(path, f"{name} differs from what was saved")
        leaves = [np.asarray(arrays[name]) for name in expected]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Checkpoint(step, state, metadata["note"])

    def close(self) -> None:
        """Waits until everything is saved, then releases the manager of orbax."""
        self._manager.close()


def _flatten(tree: PyTree) -> dict[str, PyTree]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in paths
    }


def _hashes(arrays: dict[str, PyTree]) -> dict[str, str]:
    hashes = {}
    for name, leaf in arrays.items():
        array = np.ascontiguousarray(leaf)
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
        hashes[name] = digest.hexdigest()[:16]
    return hashes


def _with_hash(metadata: Json) -> Json:
    """Returns metadata with a hash of its content, as read back from JSON."""
    content = {name: value for name, value in metadata.items() if name != "hash"}
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {**json.loads(text), "hash": digest[:16]}


def _check_shapes(expected: Json, found: Json, path: epath.Path) -> None:
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
