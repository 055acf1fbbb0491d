"""The embedding program: representations of a data set, for use elsewhere."""

import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from invariance_jax.evaluate import prepare, restore
from invariance_jax.runtime import processes
from invariance_jax.runtime.compilation import compilation_kept
from invariance_jax.runtime.files import plain_path
from invariance_jax.runtime.preemption import Watch
from invariance_jax.training import parallel
from invariance_jax.training.components import make_examples
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables

_log = logging.getLogger(__name__)

# The streams of views of the evaluation, and one more.
_STREAMS = ("train", "test", "validation")


def run(
    config: ConfigDict | None, workdir: str | os.PathLike[str]
) -> list[Path | epath.Path]:
    """Writes the representations of the splits that the configuration names.

    One file per seed and split, `embeddings_SPLIT_VIEWS.npz`: `features` float32
    `[N, D]`, averaged over M views or of plain images, in the order of the set;
    `labels` int32 `[N]`, or `targets` float32 `[N, T]`; and `settings`, a JSON text
    with all that made them.

    Args:
      config: the configuration of the run; its embedding and evaluation keys may
        differ. None: that of the work directory.
      workdir: the work directory of the run.

    Returns:
      The files.

    Raises:
      ValueError: if the configuration is invalid, the work directory holds no such run,
        a checkpoint is missing, or one of the files exists and was made in another way.
      Preempted: if a signal asks for a stop; the same call makes the files that lack.
    """
    with processes.main_process_first():
        runs = prepare(config, workdir)
    tasks = [task for settings, path in runs for task in _tasks(settings, path)]
    left = [task for task in tasks if not _is_written(task)]
    with Watch() as watch, compilation_kept(runs[0][0], workdir):
        for task in left:
            _embed(task, watch)
    return [plain_path(task.file) for task in tasks]


class _Task(NamedTuple):
    """One file, and all that makes it."""

    file: epath.Path
    split: str
    settings: Any
    variables: Any
    made_by: str


def _tasks(settings: Any, workdir: epath.Path) -> list[_Task]:
    views = settings.embedding.num_views
    name = f"{views}_views" if views else "plain"
    state = restore(settings, workdir)
    variables = encoder_variables(state)
    made_by = {"step": int(state.step), "config": settings.to_dict()}
    return [
        _Task(
            workdir / f"embeddings_{split}_{name}.npz",
            split,
            settings,
            variables,
            json.dumps(made_by | {"split": split}, default=list),
        )
        for split in settings.embedding.splits
    ]


def _is_written(task: _Task) -> bool:
    """Returns whether an earlier start has written a file; refuses any other one."""
    if not task.file.exists():
        return False
    with task.file.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        if str(archive.get("settings")) != task.made_by:
            raise ValueError(f"{task.file} exists; move it, nothing is overwritten.")
    _log.info("%s: written, skipped", task.file)
    return True


def _embed(task: _Task, watch: Watch) -> None:
    settings, views = task.settings, task.settings.embedding.num_views
    encoder = FrozenEncoder(
        settings, parallel.all_devices(), between=watch.stop_if_asked
    )
    x, y = make_examples(settings, task.split, in_order=True)
    if views:
        stream = _STREAMS.index(task.split)
        (features,) = encoder.features(
            task.variables, x, num_views=(views,), stream=stream
        )
    else:
        features = encoder.plain(task.variables, x)
    content = {"labels" if y.ndim == 1 else "targets": y, "settings": task.made_by}
    if processes.is_main_process():
        temporary = task.file.with_suffix(".tmp.npz")
        with temporary.open("wb") as file:
            np.savez(file, features=features.astype(np.float32), **content)
        temporary.replace(task.file)
    _log.info("%s: %d examples", task.file, len(x))
