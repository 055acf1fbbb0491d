"""Checkpoints of the training state, through orbax.

A checkpoint is a flat dictionary from dotted names to NumPy arrays, so that it can be
compared with what a run expects by name and shape, and a note with a hash of each, so
that what the disk has changed is never believed. Every process calls save and restore;
orbax writes into a temporary folder and renames it, so a checkpoint that was cut off is
never chosen by a resume.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

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
    """Finished steps, the state of one replica as NumPy arrays, and a note."""

    step: int
    state: State
    note: Json


class Damaged(ValueError):
    """A checkpoint that is not what was saved."""

    def __init__(self, path: epath.Path, what: str):
        """Takes its folder, and what is damaged in words."""
        super().__init__(
            f"the checkpoint {path} is damaged: {what}; training goes on from an older "
            "one (--mode=train), with the same numbers."
        )


def has_step(workdir: AnyPath, step: int) -> bool:
    """Returns whether a work directory has a checkpoint of a step, damaged or not."""
    return bool((work_folder(workdir) / "checkpoints" / str(step)).exists())


class Checkpoints:
    """The checkpoints of one work directory, a folder for each step."""

    def __init__(
        self,
        workdir: AnyPath,
        *,
        keep: int | None = None,
        keep_every_steps: int | None = None,
        owner: Owner | None = None,  # None: they are only read
    ):
        """Opens the folder; nothing is written before the first save."""
        self.directory = work_folder(workdir) / "checkpoints"
        self._keep, self._owner = keep, owner
        self._manager = ocp.CheckpointManager(
            self.directory,
            # Else orbax guesses from the newest folder, which may be empty.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                keep_period=keep_every_steps,
                create=False,
                cleanup_tmp_directories=owner is not None and self.directory.exists(),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._sync),
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, increasing."""
        return sorted(self._manager.all_steps())

    def check_room(self, state: PyTree) -> None:
        """Raises OSError if the disk lacks the room for one checkpoint more."""
        folder = self.directory
        if is_url(folder):
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

    def save(self, step: int, state: PyTree, *, note: Json | None = None) -> None:
        """Saves a state and a note, which `json` takes, in the background."""
        arrays = _flatten(state)
        for name, array in arrays.items():
            floating = np.issubdtype(array.dtype, np.floating)
            if floating and not np.isfinite(array).all():
                raise FloatingPointError(
                    f"{name} is not finite at step {step}; the checkpoints until step "
                    f"{max(self.steps(), default=0)} in {self.directory} are kept."
                )
        if is_main_process():
            if self._owner is not None:
                self._owner.check()
            self.directory.mkdir(parents=True, exist_ok=True)
        args = ocp.args.StandardSave(arrays)
        whole = _seal({"step": step, "note": note or {}, "hashes": _hashes(arrays)})
        with self._telling():
            # When to save is the run's decision, not orbax's: hence force.
            self._manager.save(step, args=args, custom_metadata=whole, force=True)

    def _sync(self) -> None:
        """Waits for the disk before orbax says that a checkpoint is done."""
        if not is_main_process() or is_url(self.directory):
            return
        for folder in self.directory.iterdir():
            if "orbax-checkpoint-tmp" in folder.name:
                for path in filter(Path.is_file, Path(folder).rglob("*")):
                    with path.open("rb") as file:
                        sync(file)

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints that come after a step, the newest one first."""
        for later in [one for one in reversed(self.steps()) if one > step]:
            self._manager.delete(later)

    def check(self) -> None:
        """Raises OSError if the last checkpoint could not be written."""
        with self._telling():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Waits until everything is saved; raises OSError if it could not be."""
        with self._telling():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
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
        """Returns the newest checkpoint that is whole, None if there is none at all.

        A damaged one is said, and the one before it is taken.
        """
        steps = self.steps()
        for step in reversed(steps):
            damage = None
            try:
                found = self._read(like, step)
            except Damaged as error:
                damage = error
            # One process may have read what another could not.
            if not any_process(damage is not None):
                return found
            _log.warning("%s", damage or f"another process: step {step} is damaged")
        if steps:
            raise ValueError(
                f"every checkpoint in {self.directory} is damaged; move the folder "
                "away to start anew."
            )
        return None

    def restore(self, like: State, *, step: int | None = None) -> Checkpoint[State]:
        """Returns the checkpoint of a step, or the newest, exactly as it was saved."""
        steps = self.steps()
        step = max(steps, default=None) if step is None else step
        if step not in steps:
            which = "" if step is None else f" of step {step}"
            raise ValueError(
                f"no checkpoint{which} in {self.directory}; found steps {steps}."
            )
        return self._read(like, step)

    def _read(self, like: State, step: int) -> Checkpoint[State]:
        path = self.directory / str(step)
        try:
            arrays = self._manager.restore(step, args=ocp.args.StandardRestore())
            metadata = self._manager.metadata(step).custom_metadata
        except Exception as error:  # orbax has none of its own
            raise Damaged(path, f"cannot be read: {type(error).__name__}") from error
        whole = dict(metadata or {})
        if whole != _seal(whole):
            raise Damaged(path, "its note in _CHECKPOINT_METADATA is damaged")
        if whole["step"] != step:
            raise Damaged(path, f"it holds step {whole['step']}")
        expected = _flatten(like)
        _check_same(expected, arrays, path)
        for name, digest in _hashes(arrays).items():
            if whole["hashes"].get(name) != digest:
                raise Damaged(path, f"{name} is not what was saved")
        leaves = [np.asarray(arrays[name]) for name in expected]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Checkpoint(step, state, whole["note"])

    def close(self) -> None:
        """Waits for the background and closes."""
        self._manager.close()


def _flatten(tree: PyTree) -> dict[str, PyTree]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in paths
    }


def _hashes(arrays: dict[str, PyTree]) -> dict[str, str]:
    found = {}
    for name, leaf in arrays.items():
        array = np.ascontiguousarray(leaf)
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
        found[name] = digest.hexdigest()[:16]
    return found


def _seal(whole: Json) -> Json:
    """Returns a note with a hash of itself, as JSON gives it back."""
    content = {name: value for name, value in whole.items() if name != "hash"}
    text = json.dumps(content, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {**json.loads(text), "hash": digest[:16]}


def _check_same(expected: Json, found: Json, path: epath.Path) -> None:
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
