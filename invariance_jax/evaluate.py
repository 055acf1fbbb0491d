"""The evaluation program: from a frozen encoder to `results.json`.

Foster, Pukdee, Rainforth (ICLR 2021), sections 4 and 5: features averaged over M views,
linear probes, and the variance of the representation over views; what is measured is in
`experiments`.
"""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from invariance_jax.experiments import EXPERIMENTS, Subject, samples
from invariance_jax.runs import records
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.metrics import final_metrics
from invariance_jax.runs.workdir import (
    check_same_run,
    claim,
    one_per_seed,
    read_config,
)
from invariance_jax.runtime import processes
from invariance_jax.runtime.compilation import compilation_kept
from invariance_jax.runtime.devices import make_deterministic
from invariance_jax.runtime.preemption import Watch
from invariance_jax.training import keys, parallel
from invariance_jax.training.components import (
    is_regression,
    make_networks,
    make_transformation,
)
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.settings import resolve
from invariance_jax.training.start import first_state, initial_state, read_weights
from invariance_jax.training.steps import TrainState
from invariance_jax.types import Array

_log = logging.getLogger(__name__)


def run(config: ConfigDict | None, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Evaluates the newest checkpoint of every seed of a run.

    Every process of a run over several calls it; the main one writes.

    A new work directory is evaluated too if the configuration gives `encoder.weights`.
    Writes `experiments/`, `results.json` and `samples.npz` per seed, and with several
    seeds the aggregated `results.json` into the parent. Experiments that were measured
    with the same settings before are not repeated.

    Args:
      config: the configuration of the run; its evaluation keys may differ. None: that
        of the work directory.
      workdir: the work directory of the run.

    Returns:
      The content of `results.json`.

    Raises:
      ValueError: if the configuration is invalid, the work directory holds no such run,
        or a checkpoint is missing or cannot be read.
      Preempted: if a signal asks for a stop; the same call continues.
    """
    with Watch() as watch:
        with processes.main_process_first():
            runs = prepare(config, workdir)
        with compilation_kept(runs[0][0], workdir):
            each = [_evaluate(one, path, watch) for one, path in runs]
    results = records.aggregate(each)
    if processes.is_main_process():
        records.write_results(workdir, results)
    return results


def prepare(
    config: ConfigDict | None, workdir: str | os.PathLike[str]
) -> list[tuple[FrozenConfigDict, epath.Path]]:
    """Returns the settings and work directory of every seed of a trained run.

    Args:
      config: the configuration of the run; its evaluation keys may differ. None: that
        of the work directory.
      workdir: the work directory of the run; it may be new if the configuration gives
        `encoder.weights`.

    Returns:
      A pair per seed.

    Raises:
      ValueError: if the configuration is invalid, or the work directory holds no such
        run.
    """
    config = read_config(workdir) if config is None else config
    make_deterministic(config)
    settings = resolve(config)
    runs = [(resolve(one), path) for one, path in one_per_seed(config, workdir)]
    parent = (settings, epath.Path(workdir))
    for one, path in [parent, *runs]:
        if (path / "config.json").exists() or read_weights(one) is None:
            check_same_run(one, path)
    for one, path in [parent, *runs]:
        if not (path / "config.json").exists():
            claim(one, path)
    return runs


def load(
    workdir: str | os.PathLike[str], *, step: int | None = None
) -> tuple[Callable[[Array], Array], ConfigDict]:
    """Returns the encoder of a trained run, and its configuration.

    Args:
      workdir: the work directory of one seed.
      step: finished steps of the checkpoint; None is the newest.

    Returns:
      `(encode, config)`: encode maps raw images `[B, H, W, 3]`, float32 in [0, 1] (of
      an image set of its size, also uint8 and of one channel), to representations
      `[B, D]` on running statistics, and works under jax's transformations.

    Raises:
      ValueError: if there is no run, several seeds, or no such checkpoint.
    """
    variables, config = load_variables(workdir, step=step)
    settings = resolve(config)
    encoder = make_networks(settings).encoder
    plain = make_transformation(settings).plain

    def encode(images: Array) -> Array:
        images = images if plain is None else plain(images)
        return encoder.apply(variables, images, train=False)

    return encode, config


def load_variables(
    workdir: str | os.PathLike[str], *, step: int | None = None
) -> tuple[dict[str, Any], ConfigDict]:
    """Returns the variables of the encoder of a trained run, and its configuration.

    Args:
      workdir: the work directory of one seed.
      step: finished steps of the checkpoint; None is the newest.

    Returns:
      `({"params", "batch_stats"}, config)`, NumPy arrays; what
      `models.weights.to_torch_state_dict` takes if the encoder is a ResNet.

    Raises:
      ValueError: if there is no run, several seeds, or no such checkpoint.
    """
    config = read_config(workdir)
    settings = resolve(config)
    if settings.seeds > 1:
        raise ValueError(
            f"{workdir} holds {settings.seeds} seeds; load one of them, such as "
            f"{epath.Path(workdir) / f'seed_{settings.seed}'}."
        )
    return encoder_variables(restore(settings, epath.Path(workdir), step)), config


def restore(settings: Any, workdir: epath.Path, step: int | None = None) -> TrainState:
    """Returns a checkpoint of a run; without any, the given weights at step 0.

    Args:
      settings: the result of `training.settings.resolve`.
      workdir: the work directory of one seed.
      step: finished steps of the checkpoint; None is the newest.

    Returns:
      The state.

    Raises:
      ValueError: if there is no such checkpoint, or it cannot be read.
    """
    checkpoints = Checkpoints(workdir)
    untouched = step is None and not (workdir / "metrics.jsonl").exists()
    try:
        if untouched and settings.encoder.weights and not checkpoints.steps():
            return first_state(settings)
        return checkpoints.restore(initial_state(settings), step=step)
    finally:
        checkpoints.close()


def _evaluate(settings: Any, workdir: epath.Path, watch: Watch) -> dict[str, Any]:
    """Returns the results of one seed; each experiment is written when it is done."""
    state = restore(settings, workdir)
    step, wanted = int(state.step), records.chosen(settings, keys.EXPERIMENTS)
    evaluated = _settings_of(settings, step)
    found = records.read(workdir, evaluated)
    # A process that comes late could see what another one has written since.
    kept = processes.from_main(np.array([name in found for name in wanted]))
    missing = [name for name, is_kept in zip(wanted, kept, strict=True) if not is_kept]
    for name in [name for name in wanted if name not in missing]:
        _log.info("%s: %s is measured already", workdir, name)
    if missing:
        subject = _subject(settings, workdir, state, missing, watch)
        for name in missing:
            found[name] = _measure(name, subject, evaluated)
        _write_samples(subject, missing)
    ordered = {name: found[name] for name in keys.EXPERIMENTS if name in found}
    final = final_metrics(workdir, step=step)
    results = records.results(settings, evaluated, ordered, final)
    if processes.is_main_process():
        records.write_results(workdir, results)
    return results


def _subject(
    settings: Any,
    workdir: epath.Path,
    state: TrainState,
    missing: list[str],
    watch: Watch,
) -> Subject:
    views = settings.evaluation.num_views
    sweeps = {"averaging", "shift", "label_fraction"} & {*missing}
    return Subject(
        settings,
        workdir,
        FrozenEncoder(settings, parallel.all_devices(), between=watch.stop_if_asked),
        encoder_variables(state),
        num_views=views if sweeps else views[:1],
    )


def _measure(name: str, subject: Subject, evaluated: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    measured = EXPERIMENTS[name](subject)
    seconds = time.monotonic() - started
    record = records.make(name, measured, evaluated, seconds)
    if processes.is_main_process():
        records.write(subject.workdir, record)
    _log.info("%s: %s measured in %.0f s", subject.workdir, name, seconds)
    return record


def _write_samples(subject: Subject, missing: list[str]) -> None:
    if not processes.is_main_process():
        return
    if "averaging" in missing:
        samples.write(subject, predictions=True)
    elif not (subject.workdir / "samples.npz").exists():
        samples.write(subject, predictions=False)


def _settings_of(settings: Any, step: int) -> dict[str, Any]:
    evaluated = settings.evaluation.to_dict()
    if is_regression(settings):
        evaluated["targets"] = settings.data.targets
    evaluated["step"] = step
    return evaluated | records.sizes(settings)
