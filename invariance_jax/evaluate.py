"""The evaluation program: from a frozen encoder to `results.json`.

Foster, Pukdee, Rainforth (ICLR 2021), sections 4 and 5: features averaged over M views,
linear probes, and the variance of the representation over views; what is measured is in
`training.protocols`.
"""

import io
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from invariance_jax.cluster.devices import make_deterministic
from invariance_jax.training import parallel, processes
from invariance_jax.training.checkpoints import Checkpoints
from invariance_jax.training.compilation import compilation_kept
from invariance_jax.training.components import (
    Examples,
    is_regression,
    make_examples,
    make_networks,
    make_transformation,
)
from invariance_jax.training.files import write_bytes, write_json
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.metrics import final_metrics
from invariance_jax.training.preemption import Watch
from invariance_jax.training.protocols import Measured, measure, probe_examples
from invariance_jax.training.settings import resolve
from invariance_jax.training.start import first_state, initial_state, read_weights
from invariance_jax.training.steps import TrainState
from invariance_jax.training.workdir import (
    check_same_run,
    claim,
    one_per_seed,
    provenance,
    read_config,
)
from invariance_jax.types import Array

_log = logging.getLogger(__name__)

FORMAT = 1
_SAMPLE_ROWS, _SAMPLE_VIEWS, _SAMPLE_PREDICTIONS = 4, 10, 2000


def run(config: ConfigDict | None, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Evaluates the newest checkpoint of every seed of a run.

    Every process of a run over several calls it; the main one writes.

    A new work directory is evaluated too if the configuration gives `encoder.weights`.
    Writes `results.json` and `samples.npz` per seed, and with several seeds the
    aggregated `results.json` into the parent.

    Args:
      config: the configuration of the run; its evaluation keys may differ. None: that
        of the work directory.
      workdir: the work directory of the run.

    Returns:
      The content of `results.json`.

    Raises:
      ValueError: if the configuration is invalid, the work directory holds no such run,
        or a checkpoint is missing or cannot be read.
      Preempted: if a signal asks for a stop; the same call starts the evaluation again.
    """
    with Watch() as watch:
        with processes.main_process_first():
            runs = prepare(config, workdir)
        with compilation_kept(runs[0][0], workdir):
            each = [_evaluate(one, path, watch) for one, path in runs]
    results = aggregate(each)
    if processes.is_main_process():
        write_json(epath.Path(workdir) / "results.json", results)
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
    """Returns the results of one seed, and writes them and samples."""
    started = time.monotonic()
    state = restore(settings, workdir)
    variables = encoder_variables(state)
    chosen = settings.evaluation
    train = probe_examples(settings, make_examples(settings, "train"))
    test = make_examples(settings, chosen.split)
    encoder = FrozenEncoder(
        settings, parallel.all_devices(), between=watch.stop_if_asked
    )
    untrained = None
    if "untrained" in chosen.baselines:
        untrained = encoder_variables(initial_state(settings))
    measured = measure(settings, encoder, variables, untrained, train, test)
    values = measured.values | final_metrics(workdir, step=int(state.step))
    results = {
        "format": FORMAT,
        "n": 1,
        "seeds": [settings.seed],
        "settings": _settings_of(settings, int(state.step), len(train.x), len(test.x)),
        "seconds": time.monotonic() - started,
        "summary": {name: _summary([value]) for name, value in values.items()},
        **provenance(),
    }
    if processes.is_main_process():
        _write_samples(settings, workdir, test, measured)
        write_json(workdir / "results.json", results)
    _log.info("%s: evaluated in %.0f s", workdir, results["seconds"])
    return results


def _settings_of(settings: Any, step: int, train: int, test: int) -> dict[str, Any]:
    chosen = settings.evaluation.to_dict()
    if is_regression(settings):
        chosen["targets"] = settings.data.targets
    chosen["step"] = step
    return chosen | {"train_examples": train, "test_examples": test}


def _write_samples(
    settings: Any, workdir: epath.Path, test: Examples, measured: Measured
) -> None:
    """Writes views of a few examples, and predictions, for the report."""
    transformation = make_transformation(settings)
    rows = np.repeat(test.x[:_SAMPLE_ROWS], _SAMPLE_VIEWS, axis=0)
    view = transformation.sample(jax.random.key(settings.evaluation.seed), len(rows))
    images = np.asarray(transformation.apply(rows, view))
    if not is_regression(settings):
        images = images * np.array(settings.data.std) + np.array(settings.data.mean)
    images = np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
    arrays = {"views": images.reshape(-1, _SAMPLE_VIEWS, *images.shape[1:])}
    predictions = measured.averaged, measured.single
    if is_regression(settings):
        for name, values in zip(
            ("true", "predicted", "predicted_single"),
            (test.y, *predictions),
            strict=True,
        ):
            arrays[name] = values[:_SAMPLE_PREDICTIONS]
    else:
        classes = settings.data.num_classes
        pairs = test.y * classes + predictions[0].argmax(axis=1)
        counts = np.bincount(pairs, minlength=classes**2)
        arrays["confusion"] = counts.reshape(classes, classes)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(workdir / "samples.npz", content.getvalue())


def aggregate(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the results over seeds: mean, and standard error with ddof 1.

    Args:
      each: the content of `results.json` of every seed.
    """
    names = each[0]["summary"]
    return each[0] | {
        "n": len(each),
        "seeds": [seed for one in each for seed in one["seeds"]],
        "seconds": sum(one["seconds"] for one in each),
        "summary": {
            name: _summary([one["summary"][name]["mean"] for one in each])
            for name in names
        },
    }


def _summary(values: list[float]) -> dict[str, Any]:
    error = None
    if len(values) > 1:
        error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": float(np.mean(values)), "standard_error": error, "n": len(values)}
