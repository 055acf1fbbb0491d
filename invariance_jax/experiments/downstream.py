"""The downstream tasks: a probe on one view, on plain images, and on what stands beside
the encoder.

Foster, Pukdee, Rainforth (ICLR 2021), section 5. Names in the summary: `mse@1`,
`mse.TARGET@1`, `r2.TARGET@1` and `mse.constant`, the error of the mean of the test
targets; of images `accuracy@plain`, `cross_entropy@plain`, `knn20@plain`. A baseline,
"pixels" or "untrained", comes before the `@`.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.subject import (
    SELECTED,
    TEST,
    TRAIN,
    Measured,
    Subject,
    named,
)
from invariance_jax.training.components import is_regression
from invariance_jax.training.protocols import fit_and_score, score_selected


def run(subject: Subject) -> Measured:
    """Returns the quality of probes on single views and plain images.

    Args:
      subject: the encoder and its examples.

    Returns:
      Values for the summary; no rows.
    """
    views = subject.settings.evaluation.num_views[0]
    values = named(subject.scored(0).values, "all", views)
    if is_regression(subject.settings):
        constant = float(subject.test.y.var(axis=0).mean())
        values |= {"mse.constant": constant} | subject.selected(0)
        return Measured(values | _averaged(subject), [])
    plain = [
        subject.encoder.plain(subject.variables, x)
        for x in (subject.train.x, subject.test.x)
    ]
    y, y_test = subject.train.y, subject.test.y
    selected = score_selected(subject.settings, plain[0], y, plain[1], y_test)
    values |= _classify(subject, *plain, "all") | named(selected, SELECTED, "plain")
    return Measured(values | _plain(subject), [])


def _averaged(subject: Subject) -> dict[str, float]:
    """Returns the errors of the baselines on averaged views, as no view is plain."""
    chosen = subject.settings.evaluation
    views = tuple(sorted({chosen.num_views[0], chosen.num_views[-1]}))
    parts = (TRAIN, subject.train), (TEST, subject.test)
    values: dict[str, float] = {}
    for name in chosen.baselines:
        each = [_baseline(subject, name, part.x, views, n) for n, part in parts]
        for number, count in enumerate(views):
            h, h_test = (features[number] for features in each)
            scored = _score(subject, h, h_test)
            values |= named({"mse": scored["mse"]}, name, count)
    return values


def _baseline(
    subject: Subject, name: str, x: np.ndarray, views: tuple[int, ...], stream: int
) -> np.ndarray:
    if name == "pixels":
        return subject.encoder.pixels(x, num_views=views, stream=stream)
    return subject.encoder.features(
        subject.untrained, x, num_views=views, stream=stream
    )


def _plain(subject: Subject) -> dict[str, float]:
    """Returns the results of the baselines on plain images."""
    values: dict[str, float] = {}
    images = subject.train.x, subject.test.x
    for name in subject.settings.evaluation.baselines:
        if name == "pixels":
            features = [_pixels(x) for x in images]
        else:
            features = [subject.encoder.plain(subject.untrained, x) for x in images]
        values |= _classify(subject, *features, name)
    return values


def _classify(
    subject: Subject, h: np.ndarray, h_test: np.ndarray, part: str
) -> dict[str, float]:
    """Returns linear and kNN results on the features of plain images."""
    values = _score(subject, h, h_test)
    train, test = subject.train, subject.test
    arrays = [jnp.asarray(array) for array in (h, train.y, h_test, test.y)]
    chosen = subject.settings.evaluation
    for k in chosen.neighbors:
        for name, temperature in (
            (f"knn{k}", chosen.neighbor_temperature),
            (f"knn{k}_majority", None),
        ):
            accuracy = evaluation.knn_accuracy(*arrays, k=k, temperature=temperature)
            values[name] = float(accuracy)
    return named(values, part, "plain")


def _score(subject: Subject, h: Any, h_test: Any) -> dict[str, float]:
    y, y_test = subject.train.y, subject.test.y
    return fit_and_score(subject.settings, h, y, h_test, y_test).values


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255
