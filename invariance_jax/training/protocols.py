"""The probe of a run: linear regression or classification on frozen features.

Foster, Pukdee, Rainforth (ICLR 2021), sections 4 and 5.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import data, evaluation
from invariance_jax.training.checks import is_asked
from invariance_jax.training.components import Examples, is_regression


class Scored(NamedTuple):
    """A linear probe and what it does on held-out examples.

    Attributes:
      probe: fitted on the training features.
      predictions: `[N, T]` targets, or `[N, C]` logits.
      values: metric -> number.
    """

    probe: evaluation.LinearProbe
    predictions: np.ndarray
    values: dict[str, float]


def probe_examples(settings: Any, train: Examples) -> Examples:
    """Returns the training examples, or the share of them, that probes are fitted on.

    Args:
      settings: the result of `training.settings.resolve`.
      train: the training split.

    Returns:
      The first `evaluation.train_examples`, and of images `evaluation.label_fraction`
      of each class.

    Raises:
      ValueError: if that leaves a class without an example.
    """
    chosen = settings.evaluation
    train = train.first(chosen.train_examples)
    if is_regression(settings) or chosen.label_fraction == 1:
        return train
    share = data.label_fraction(train.y, chosen.label_fraction, seed=chosen.seed)
    return Examples(train.x[share], train.y[share])


def choose_labeled(settings: Any, y: np.ndarray, fraction: float) -> np.ndarray:
    """Returns the indices of a share of the examples.

    Args:
      settings: the result of `training.settings.resolve`.
      y: targets `[N, T]` or labels `[N]`.
      fraction: above 0 and at most 1.

    Returns:
      int64 `[n]`, increasing; the number of examples is rounded.

    Raises:
      ValueError: if a class would be left without an example; it names the key.
    """
    if is_regression(settings):
        return np.arange(max(int(np.floor(fraction * len(y) + 0.5)), 1))
    try:
        return data.label_fraction(y, fraction, seed=settings.evaluation.seed)
    except ValueError as error:
        raise ValueError(f"evaluation.label_fractions: {error}") from error


def check_label_fractions(settings: Any, train: Examples) -> None:
    """Checks that the smallest share of the labels reaches every class.

    Args:
      settings: the result of `training.settings.resolve`.
      train: the training split.

    Raises:
      ValueError: if "label_fraction" is asked for and it does not; it names the key.
    """
    if is_asked("label_fraction", settings.evaluation.experiments):
        smallest = settings.evaluation.label_fractions[0]
        choose_labeled(settings, probe_examples(settings, train).y, smallest)


def fit_and_score(
    settings: Any, h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray
) -> Scored:
    """Returns the linear probe of features and its quality on held-out ones.

    Ridge regression in float64 on the CPU, or multinomial logistic regression.

    Args:
      settings: the result of `training.settings.resolve`.
      h: training features `[N, D]`.
      y: training targets `[N, T]` or labels `[N]`.
      h_test: features `[N', D]` of the examples that are predicted.
      y_test: their targets or labels.

    Returns:
      Probe, predictions and metrics: mse, and mse and r2 of each target; or accuracy,
      cross_entropy and gradient_norm, that of the objective at the fit, nats.
    """
    l2 = settings.evaluation.l2
    if is_regression(settings):
        probe = _fit_in_float64(evaluation.fit_ridge, h, y, l2=l2)
        return score(settings, probe, h_test, y_test)
    features, labels = jnp.asarray(h), jnp.asarray(y)
    classes = settings.data.num_classes
    probe = evaluation.fit_logistic(features, labels, num_classes=classes, l2=l2)
    objective = evaluation.logistic_objective(probe, features, labels, l2=l2)
    scored = score(settings, probe, h_test, y_test)
    scored.values["gradient_norm"] = float(objective.gradient_norm)
    return scored


def score_selected(
    settings: Any, h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray
) -> dict[str, float]:
    """Returns the quality of a probe whose l2 is chosen for these features.

    Among `evaluation.l2_grid`, on the last tenth of the training examples. Ridge
    regression is that of standardized features, each target with its own l2.

    Args:
      settings: as of `fit_and_score`.
      h: as of `fit_and_score`.
      y: as of `fit_and_score`.
      h_test: as of `fit_and_score`.
      y_test: as of `fit_and_score`.

    Returns:
      The metrics of `score`, and of images l2; nothing if there is no grid.
    """
    grid = tuple(map(float, settings.evaluation.l2_grid))
    if not grid:
        return {}
    choice = {"l2": grid, "num_held_out": max(len(h) // 10, 1)}
    if is_regression(settings):
        probe, _ = _fit_in_float64(evaluation.fit_ridge_selected, h, y, **choice)
        return score(settings, probe, h_test, y_test).values
    features, labels = jnp.asarray(h), jnp.asarray(y)
    probe, l2 = evaluation.fit_logistic_selected(
        features, labels, num_classes=settings.data.num_classes, **choice
    )
    return score(settings, probe, h_test, y_test).values | {"l2": l2}


def score(
    settings: Any, probe: evaluation.LinearProbe, h: np.ndarray, y: np.ndarray
) -> Scored:
    """Returns the quality of a probe that was fitted before.

    Args:
      settings: the result of `training.settings.resolve`.
      probe: that of `fit_and_score`.
      h: features `[N, D]` of the examples that are predicted.
      y: their targets `[N, T]` or labels `[N]`.

    Returns:
      Probe, predictions and metrics.
    """
    if not is_regression(settings):
        logits = evaluation.predict(probe, jnp.asarray(h))
        values = quality(settings, logits, jnp.asarray(y))
        return Scored(probe, np.asarray(logits), values)
    with _in_float64():
        h, y = (jnp.asarray(array).astype(jnp.float64) for array in (h, y))
        predictions = evaluation.predict(probe, h)
        values = quality(settings, predictions, y)
    return Scored(probe, np.asarray(predictions), values)


def _fit_in_float64(
    fit: Callable[..., Any], h: np.ndarray, y: np.ndarray, **choice: Any
) -> Any:
    with _in_float64():
        return fit(
            *(jnp.asarray(array).astype(jnp.float64) for array in (h, y)), **choice
        )


@contextlib.contextmanager
def _in_float64() -> Iterator[None]:
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        yield


def quality(settings: Any, predictions: Any, y: Any) -> dict[str, float]:
    """Returns the metrics of predictions.

    Args:
      settings: the result of `training.settings.resolve`.
      predictions: targets `[N, T]` or logits `[N, C]`.
      y: true targets `[N, T]` or labels `[N]`.

    Returns:
      mse, the mean over the targets, and mse and r2 of each; or accuracy, and
      cross_entropy in nats.
    """
    if not is_regression(settings):
        return {
            "accuracy": float(evaluation.accuracy(predictions, y)),
            "cross_entropy": float(evaluation.cross_entropy(predictions, y)),
        }
    mse = np.asarray(evaluation.mean_squared_error(predictions, y))
    r2 = np.asarray(evaluation.r_squared(predictions, y))
    values = {"mse": float(mse.mean())}
    for number, name in enumerate(settings.data.targets):
        values |= {f"mse.{name}": float(mse[number]), f"r2.{name}": float(r2[number])}
    return values
