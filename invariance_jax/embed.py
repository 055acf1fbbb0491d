"""The embedding program: writes the representations of a data set to files."""

import contextlib
import json
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from invariance_jax.evaluate import prepare, restore
from invariance_jax.runtime import processes
from invariance_jax.runtime.compilation import compilation_kept
from invariance_jax.runtime.devices import all_devices
from invariance_jax.runtime.files import AnyPath, plain_path, replacing
from invariance_jax.runtime.preemption import stop_if_asked, watch_signals
from invariance_jax.settings import KEYS, Config, Settings, flatten, from_dict, to_dict
from invariance_jax.tasks import Task
from invariance_jax.training.build import Parts, build
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.objective import Variables
from invariance_jax.types import Json

_log = logging.getLogger(__name__)

_STREAMS = ("train", "test", "validation")
"""Splits in the order of their streams of views; the first two are the evaluation's."""

_FREE_KEYS = ("evaluation.network", "evaluation.seed", "data.test_examples")
"""Keys that may change between two starts, and that features depend on."""


def run(config: Config | None, workdir: AnyPath) -> list[Path | epath.Path]:
    """Writes the representations of the splits `embedding.splits`; returns the paths.

    Writes one file per seed and split: `embeddings_SPLIT_plain.npz` for plain images,
    `embeddings_SPLIT_M_views.npz` for averages over M views. It holds `features`
    float32 `[N, D]` in the order of the set; `labels` int32 `[N]` or `targets` float32
    `[N, T]`, if there are any; and `settings`, a JSON text of step, configuration and
    split. The arguments are those of `evaluate.run`. Raises ValueError if a file exists
    that was made with other settings.
    """
    with processes.main_process_first():
        runs = prepare(config, workdir)
    settings = runs[0][0]
    with watch_signals(), compilation_kept(settings.compilation_cache, workdir):
        parts = build(settings)
        encoder = FrozenEncoder(parts, all_devices(), between=stop_if_asked)
        views, plain = settings.embedding.num_views, parts.transformation.plain
        if views == 0 and plain is None:
            raise ValueError(
                "embedding.num_views is 0; expected 1 or more: no plain images exist."
            )
        if views is None:
            views = 1 if plain is None else 0  # 0: the plain image
        jobs = [job for run in runs for job in _jobs(parts, *run, views)]
        for job in [job for job in jobs if not _is_written(job)]:
            _embed(job, encoder, parts.task, views)
    return [plain_path(job.file) for job in jobs]


class _Job(NamedTuple):
    """One file to write, and what its content depends on."""

    file: epath.Path
    split: str
    variables: Variables  # of the encoder
    settings: str  # JSON text


def _jobs(
    parts: Parts, settings: Settings, workdir: epath.Path, views: int
) -> list[_Job]:
    step, state, _ = restore(parts, workdir)
    name = f"{views}_views" if views else "plain"
    origin = {"step": step, "config": to_dict(settings)}
    return [
        _Job(
            workdir / f"embeddings_{split}_{name}.npz",
            split,
            encoder_variables(state, settings.evaluation.network),
            json.dumps(origin | {"split": split}, default=list),
        )
        for split in settings.embedding.splits
    ]


def _is_written(job: _Job) -> bool:
    """Returns whether an earlier start has written the file; refuses any other file."""
    if not job.file.exists():
        return False
    origin = ""
    with contextlib.suppress(Exception):  # zipfile, zlib and NumPy raise different ones
        with job.file.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            origin = str(archive.get("settings"))
    if _dependencies(origin) != _dependencies(job.settings):
        raise ValueError(f"{job.file} exists; move it, nothing is overwritten.")
    _log.info("%s: written, skipped", job.file)
    return True


def _dependencies(text: str) -> Json | None:
    """Returns the settings in a file that features depend on, None if it has none."""
    try:
        origin = json.loads(text)
        values = flatten(from_dict(origin.pop("config")))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    used = (name for name in values if not KEYS[name].free or name in _FREE_KEYS)
    return origin | {name: values[name] for name in used}


def _embed(job: _Job, encoder: FrozenEncoder, task: Task, views: int) -> None:
    x, y = task.examples(job.split, in_order=True)
    if views:
        stream = _STREAMS.index(job.split)
        (h,) = encoder.features(job.variables, x, num_views=(views,), stream=stream)
    else:
        h = encoder.plain(job.variables, x)
    content = {"features": h.astype(np.float32), "settings": job.settings}
    if y is not None:
        content["targets" if task.targets else "labels"] = y
    if processes.is_main_process():
        with replacing(job.file) as file:
            np.savez(file, **content)
    _log.info("%s: %d examples", job.file, len(x))
