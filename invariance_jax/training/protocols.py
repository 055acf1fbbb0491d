"""What is measured of a frozen encoder, by name: regression or classification.

Foster, Pukdee, Rainforth (ICLR 2021), sections 4 and 5. A name is `metric@M`, with what
it is of (a target, a family of views, a baseline) after a dot: `mse.b@8`,
`accuracy.crop@16`, `accuracy.untrained@plain`.
"""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import data, evaluation
from invariance_jax.training.components import Examples, is_regression
from invariance_jax.training.frozen import FrozenEncoder

_log = logging.getLogger(__name__)

_TRAIN, _TEST = 0, 1  # Streams of views.


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


class Measured(NamedTuple):
    """All that was measured of an encoder.

    Attributes:
      values: name -> number.
      single: `[N, T]` or `[N, C]`, predictions at the smallest M.
      averaged: `[N, T]` or `[N, C]`, predictions at the largest M.
    """

    values: dict[str, float]
    single: np.ndarray
    averaged: np.ndarray


def measure(
    settings: Any,
    encoder: FrozenEncoder,
    variables: Any,
    untrained: Any,
    train: Examples,
    test: Examples,
) -> Measured:
    """Returns all that the settings ask for.

    Args:
      settings: the result of `training.settings.resolve`.
      encoder: the frozen encoder.
      variables: its variables after training.
      untrained: its variables before, if that baseline is asked for.
      train: the examples that probes are fitted on, see `probe_examples`.
      test: the examples that they are measured on.

    Returns:
      Values and predictions.
    """
    chosen = settings.evaluation
    values: dict[str, float] = {}
    if is_regression(settings):
        values["mse.constant"] = float(test.y.var(axis=0).mean())
    sweeps = {}
    for family in chosen.families:
        sweeps[family] = _sweep(settings, encoder, variables, train, test, family)
        for views, scored in zip(chosen.num_views, sweeps[family], strict=True):
            values |= _named(scored.values, family, views)
    if not is_regression(settings):
        if "all" in sweeps and chosen.num_views[0] == 1:
            probe = sweeps["all"][0].probe
            values |= _ensembles(settings, encoder, variables, probe, test)
        else:
            _log.info("no ensembles: they need the family 'all' and M = 1")
        values |= _baselines(settings, encoder, variables, untrained, train, test)
    for family in dict.fromkeys(("all", *chosen.families)):
        values |= _variance(settings, encoder, variables, test, family)
    main = sweeps.get("all") or sweeps[chosen.families[0]]
    return Measured(values, main[0].predictions, main[-1].predictions)


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
    if is_regression(settings):
        return _fit_ridge(settings, h, y, h_test, y_test)
    features, labels, l2 = jnp.asarray(h), jnp.asarray(y), settings.evaluation.l2
    classes = settings.data.num_classes
    probe = evaluation.fit_logistic(features, labels, num_classes=classes, l2=l2)
    objective = evaluation.logistic_objective(probe, features, labels, l2=l2)
    logits = evaluation.predict(probe, jnp.asarray(h_test))
    values = _quality(logits, jnp.asarray(y_test))
    values["gradient_norm"] = float(objective.gradient_norm)
    return Scored(probe, np.asarray(logits), values)


def _fit_ridge(
    settings: Any, h: np.ndarray, y: np.ndarray, h_test: np.ndarray, y_test: np.ndarray
) -> Scored:
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        h, y, h_test, y_test = (
            jnp.asarray(array, jnp.float64) for array in (h, y, h_test, y_test)
        )
        probe = evaluation.fit_ridge(h, y, l2=settings.evaluation.l2)
        predictions = evaluation.predict(probe, h_test)
        mse = np.asarray(evaluation.mean_squared_error(predictions, y_test))
        r2 = np.asarray(evaluation.r_squared(predictions, y_test))
    values = {"mse": float(mse.mean())}
    for number, name in enumerate(settings.data.targets):
        values |= {f"mse.{name}": float(mse[number]), f"r2.{name}": float(r2[number])}
    return Scored(probe, np.asarray(predictions), values)


def _quality(logits: Any, labels: Any) -> dict[str, float]:
    return {
        "accuracy": float(evaluation.accuracy(logits, labels)),
        "cross_entropy": float(evaluation.cross_entropy(logits, labels)),
    }


def _named(values: dict[str, float], part: str, views: Any) -> dict[str, float]:
    part = "" if part == "all" else f".{part}"
    return {f"{name}{part}@{views}": value for name, value in values.items()}


def _variance(
    settings: Any, encoder: FrozenEncoder, variables: Any, test: Examples, family: str
) -> dict[str, float]:
    x = test.x[: settings.evaluation.variance_examples]
    variance = encoder.variance(variables, x, stream=_TEST, family=family)
    part = "" if family == "all" else f".{family}"
    return {f"variance.{n}{part}": float(v) for n, v in variance._asdict().items()}


def _sweep(
    settings: Any,
    encoder: FrozenEncoder,
    variables: Any,
    train: Examples,
    test: Examples,
    family: str,
) -> list[Scored]:
    views = settings.evaluation.num_views
    h, h_test = (
        encoder.features(variables, x, num_views=views, stream=stream, family=family)
        for stream, x in ((_TRAIN, train.x), (_TEST, test.x))
    )
    return [
        fit_and_score(settings, h[number], train.y, h_test[number], test.y)
        for number in range(len(views))
    ]


def _ensembles(
    settings: Any, encoder: FrozenEncoder, variables: Any, probe: Any, test: Examples
) -> dict[str, float]:
    """Returns the quality of the mean prediction of a probe on one view."""
    views = settings.evaluation.num_views
    means = encoder.probabilities(
        variables, probe, test.x, num_views=views, stream=_TEST
    )
    values = {}
    tiny = np.finfo(means.dtype).tiny
    for count, probabilities in zip(views, means, strict=True):
        logits = jnp.log(jnp.maximum(probabilities, tiny))
        values |= _named(_quality(logits, jnp.asarray(test.y)), "ensemble", count)
    return values


def _baselines(
    settings: Any,
    encoder: FrozenEncoder,
    variables: Any,
    untrained: Any,
    train: Examples,
    test: Examples,
) -> dict[str, float]:
    """Returns the results on plain images: of the encoder, untrained, of the pixels."""

    def encode(variables: Any) -> list[np.ndarray]:
        return [encoder.plain(variables, part.x) for part in (train, test)]

    chosen = settings.evaluation.baselines
    values = _classify(settings, *encode(variables), train, test, "all")
    if "untrained" in chosen:
        values |= _classify(settings, *encode(untrained), train, test, "untrained")
    if "pixels" in chosen:
        pixels = [_pixels(part.x) for part in (train, test)]
        values |= _classify(settings, *pixels, train, test, "pixels")
    return values


def _classify(
    settings: Any,
    h: np.ndarray,
    h_test: np.ndarray,
    train: Examples,
    test: Examples,
    part: str,
) -> dict[str, float]:
    """Returns linear and kNN results on the features of plain images."""
    values = fit_and_score(settings, h, train.y, h_test, test.y).values
    arrays = [jnp.asarray(array) for array in (h, train.y, h_test, test.y)]
    chosen = settings.evaluation
    for k in chosen.neighbors:
        for name, temperature in (
            (f"knn{k}", chosen.neighbor_temperature),
            (f"knn{k}_majority", None),
        ):
            accuracy = evaluation.knn_accuracy(*arrays, k=k, temperature=temperature)
            values[name] = float(accuracy)
    return _named(values, part, "plain")


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255
