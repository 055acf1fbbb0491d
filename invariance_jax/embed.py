"""The embedding program: representations of a data set, for use elsewhere."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from invariance_jax.evaluate import prepare, restore
from invariance_jax.training import parallel, processes
from invariance_jax.training.compilation import compilation_kept
from invariance_jax.training.components import make_examples
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.preemption import Watch
from invariance_jax.training.workdir import plain_path

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
        a checkpoint is missing, or one of the files exists.
      Preempted: if a signal asks for a stop; the files that are there are whole.
    """
    with processes.main_process_first():
        runs = prepare(config, workdir)
    files = [_files(settings, path) for settings, path in runs]
    for file in (file for each in files for file in each.values()):
        if file.exists():
            raise ValueError(f"{file} exists; move it, nothing is overwritten.")
    with Watch() as watch, compilation_kept(runs[0][0], workdir):
        for (settings, path), each in zip(runs, files, strict=True):
            _embed(settings, path, each, watch)
    return [plain_path(file) for each in files for file in each.values()]


def _files(settings: Any, workdir: epath.Path) -> dict[str, epath.Path]:
    views = settings.embedding.num_views
    name = f"{views}_views" if views else "plain"
    return {
        split: workdir / f"embeddings_{split}_{name}.npz"
        for split in settings.embedding.splits
    }


def _embed(
    settings: Any, workdir: epath.Path, files: dict[str, epath.Path], watch: Watch
) -> None:
    state = restore(settings, workdir)
    variables = encoder_variables(state)
    encoder = FrozenEncoder(
        settings, parallel.all_devices(), between=watch.stop_if_asked
    )
    views = settings.embedding.num_views
    made_by = {"step": int(state.step), "config": settings.to_dict()}
    for split, file in files.items():
        x, y = make_examples(settings, split, in_order=True)
        stream = _STREAMS.index(split)
        if views:
            sweep = encoder.features(variables, x, num_views=(views,), stream=stream)
            features = sweep[0]
        else:
            features = encoder.plain(variables, x)
        text = json.dumps(made_by | {"split": split}, default=list)
        content = {"labels" if y.ndim == 1 else "targets": y, "settings": text}
        if processes.is_main_process():
            temporary = file.with_suffix(".tmp.npz")
            with temporary.open("wb") as whole:
                np.savez(whole, features=features.astype(np.float32), **content)
            temporary.replace(file)
        _log.info("%s: %d examples", file, len(x))
