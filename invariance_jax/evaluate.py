"""The evaluation program: from a frozen encoder to `results.json`.

Foster, Pukdee, Rainforth (ICLR 2021), sections 4 and 5: features averaged over M views,
linear regression of every target, and the variance of the representation over views.
"""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from invariance_jax.train import initial_state
from invariance_jax.training import parallel
from invariance_jax.training.checkpoints import Checkpoints
from invariance_jax.training.components import (
    make_examples,
    make_networks,
    make_transformation,
)
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.settings import resolve
from invariance_jax.training.steps import TrainState
from invariance_jax.training.workdir import claim, one_per_seed, read_config, write_json
from invariance_jax.types import Array

_log = logging.getLogger(__name__)

FORMAT = 1
_SAMPLE_ROWS, _SAMPLE_VIEWS, _SAMPLE_PREDICTIONS = 4, 10, 2000


def run(config: ConfigDict | None, workdir: str | Path) -> dict[str, Any]:
    """Evaluates the newest checkpoint of every seed of a run.

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
    """
    found = read_config(workdir)
    config = found if config is None else config
    settings = resolve(config)
    workdir = claim(settings, workdir)
    runs = [(resolve(one), path) for one, path in one_per_seed(config, workdir)]
    for one, path in runs:
        read_config(path)
        claim(one, path)
    each = [_evaluate(one, path) for one, path in runs]
    results = _aggregate(each)
    write_json(workdir / "results.json", results)
    return results


def load(
    workdir: str | Path, *, step: int | None = None
) -> tuple[Callable[[Array], Array], ConfigDict]:
    """Returns the encoder of a trained run, and its configuration.

    Args:
      workdir: the work directory of one seed.
      step: finished steps of the checkpoint; None is the newest.

    Returns:
      `(encode, config)`: encode maps raw images float32 `[B, H, W, 3]` in [0, 1] to
      representations `[B, D]` on running statistics, and works under jax's
      transformations.

    Raises:
      ValueError: if there is no run, several seeds, or no such checkpoint.
    """
    config = read_config(workdir)
    settings = resolve(config)
    if settings.seeds > 1:
        raise ValueError(
            f"{workdir} holds {settings.seeds} seeds; load one of them, such as "
            f"{Path(workdir) / f'seed_{settings.seed}'}."
        )
    variables = encoder_variables(_restore(settings, Path(workdir), step))
    encoder = make_networks(settings).encoder

    def encode(images: Array) -> Array:
        return encoder.apply(variables, images, train=False)

    return encode, config


def _restore(settings: Any, workdir: Path, step: int | None) -> TrainState:
    checkpoints = Checkpoints(workdir)
    try:
        return checkpoints.restore(initial_state(settings), step=step)
    finally:
        checkpoints.close()


def _evaluate(settings: Any, workdir: Path) -> dict[str, Any]:
    """Returns the results of one seed, and writes them and samples."""
    started = time.monotonic()
    state = _restore(settings, workdir, None)
    encoder = FrozenEncoder(settings, parallel.local_devices())
    variables = encoder_variables(state)
    chosen = settings.evaluation
    x = make_examples(settings, "train")[: chosen.train_examples]
    x_test = make_examples(settings, chosen.split)
    h, h_test = (
        encoder.features(variables, part, num_views=chosen.num_views, stream=stream)
        for stream, part in enumerate((x, x_test))
    )
    values = {"mse.constant": float(x_test.var(axis=0).mean())}
    regressions = []
    for number, views in enumerate(chosen.num_views):
        fitted = encoder.regression(h[number], x, h_test[number], x_test)
        regressions.append(fitted)
        values[f"mse@{views}"] = float(fitted.mse.mean())
        for name, mse, r2 in zip(
            settings.data.targets, fitted.mse, fitted.r2, strict=True
        ):
            values[f"mse.{name}@{views}"] = float(mse)
            values[f"r2.{name}@{views}"] = float(r2)
    variance = encoder.variance(variables, x_test[: chosen.variance_examples], stream=1)
    values |= {
        f"variance.{name}": float(value) for name, value in variance._asdict().items()
    }
    values |= _final_metrics(workdir)
    _write_samples(settings, workdir, x_test, regressions)
    results = {
        "format": FORMAT,
        "n": 1,
        "seeds": [settings.seed],
        "settings": _settings_of(settings, int(state.step), len(x), len(x_test)),
        "seconds": time.monotonic() - started,
        "summary": {name: _summary([value]) for name, value in values.items()},
    }
    write_json(workdir / "results.json", results)
    _log.info("%s: evaluated in %.0f s", workdir, results["seconds"])
    return results


def _settings_of(settings: Any, step: int, train: int, test: int) -> dict[str, Any]:
    chosen = settings.evaluation.to_dict()
    chosen |= {"targets": settings.data.targets, "step": step}
    return chosen | {"train_examples": train, "test_examples": test}


def _final_metrics(workdir: Path) -> dict[str, float]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    if not rows:
        return {}
    return {f"{name}.final": rows[-1][name] for name in ("loss", "penalty")}


def _write_samples(
    settings: Any, workdir: Path, x: np.ndarray, regressions: list[Any]
) -> None:
    """Writes views of a few examples, and predictions, for the report."""
    transformation = make_transformation(settings)
    rows = np.repeat(x[:_SAMPLE_ROWS], _SAMPLE_VIEWS, axis=0)
    view = transformation.sample(jax.random.key(settings.evaluation.seed), len(rows))
    images = np.asarray(transformation.apply(rows, view))
    images = np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
    np.savez_compressed(
        workdir / "samples.npz",
        views=images.reshape(-1, _SAMPLE_VIEWS, *images.shape[1:]),
        true=x[:_SAMPLE_PREDICTIONS],
        predicted=regressions[-1].predictions[:_SAMPLE_PREDICTIONS],
        predicted_single=regressions[0].predictions[:_SAMPLE_PREDICTIONS],
    )


def _aggregate(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the results over seeds: mean, and standard error with ddof 1."""
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
