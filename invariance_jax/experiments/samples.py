"""What the report shows of single examples: views of a few, and predictions."""

import io
from typing import Any

import jax
import numpy as np

from invariance_jax.experiments.subject import Subject
from invariance_jax.runtime.files import write_bytes
from invariance_jax.training.components import is_regression, make_transformation

_ROWS, _VIEWS, _PREDICTIONS = 4, 10, 2000


def write(subject: Subject, *, predictions: bool) -> None:
    """Writes `samples.npz` into the work directory.

    Args:
      subject: the encoder and its examples.
      predictions: whether the probes' predictions are written too, those at the
        smallest and at the largest M.
    """
    arrays = {"views": _views(subject)}
    if predictions:
        family = main_family(subject.settings)
        single, averaged = (subject.scored(n, family).predictions for n in (0, -1))
        arrays |= _predictions(subject, single, averaged)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(subject.workdir / "samples.npz", content.getvalue())


def main_family(settings: Any) -> str:
    """Returns the family of views whose predictions are shown.

    Args:
      settings: the result of `training.settings.resolve`.
    """
    families = settings.evaluation.families
    return "all" if "all" in families else families[0]


def _views(subject: Subject) -> np.ndarray:
    settings = subject.settings
    transformation = make_transformation(settings)
    rows = np.repeat(subject.test.x[:_ROWS], _VIEWS, axis=0)
    view = transformation.sample(jax.random.key(settings.evaluation.seed), len(rows))
    images = np.asarray(transformation.apply(rows, view))
    if not is_regression(settings):
        images = images * np.array(settings.data.std) + np.array(settings.data.mean)
    images = np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
    return images.reshape(-1, _VIEWS, *images.shape[1:])


def _predictions(
    subject: Subject, single: np.ndarray, averaged: np.ndarray
) -> dict[str, np.ndarray]:
    settings, y = subject.settings, subject.test.y
    if is_regression(settings):
        shown = {"true": y, "predicted": averaged, "predicted_single": single}
        return {name: values[:_PREDICTIONS] for name, values in shown.items()}
    classes = settings.data.num_classes
    pairs = y * classes + averaged.argmax(axis=1)
    counts = np.bincount(pairs, minlength=classes**2)
    return {"confusion": counts.reshape(classes, classes)}
