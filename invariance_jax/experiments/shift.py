"""Shift: the downstream tasks under another law of the nuisance than in training.

Foster, Pukdee, Rainforth (ICLR 2021), section 5, refit the head on shifted views.
Beside it stands here the harder test: a head that was fitted on views of the training
law.
"""

import functools
from typing import Any

import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.subject import (
    TEST,
    TRAIN,
    Measured,
    Row,
    Subject,
    Value,
)
from invariance_jax.training import images
from invariance_jax.training.components import is_regression, make_transformation
from invariance_jax.training.protocols import Scored, fit_and_score, score
from invariance_jax.transforms import shifts
from invariance_jax.types import Array


def run(subject: Subject) -> Measured:
    """Returns the quality of both heads over the grids of `evaluation.shifts`.

    The unshifted law is a point of every grid, added where it is missing. Of images the
    law is that of the colour jitter of plain images, applied to every view, without
    grayscale, crop and flip; the fixed head is fitted at the strength of the training.

    Args:
      subject: the encoder and its examples.

    Returns:
      A row for each point, head ("refitted" or "fixed") and M, the first and the last
      of `evaluation.num_views`: the metrics of the probe.
    """
    rows: list[Row] = []
    features = _Features(subject)
    heads = _unshifted(subject, features) if subject.settings.evaluation.shifts else []
    for what, how, grid in subject.settings.evaluation.shifts:
        start = unshifted_value(subject.settings, how)
        for value in sorted({float(value) for value in grid} | {start}):
            at: dict[str, Value] = {"parameter": what, "how": how, "shift": value}
            if value == start:
                found = {"refitted": heads, "fixed": heads}
            else:
                found = _shifted(subject, heads, features, (what, how, value))
            rows += [
                Row({**at, "head": head, "views": views}, _metrics(one))
                for head, each in found.items()
                for views, one in zip(features.num_views, each, strict=True)
            ]
    return Measured({}, rows)


def unshifted_value(settings: Any, how: str) -> float:
    """Returns the point of a grid at which the law is that of the training.

    Args:
      settings: the result of `training.settings.resolve`.
      how: "move", "widen" or "strength".
    """
    augmentation = settings.augmentation
    strength = augmentation.strength * (augmentation.jitter_probability > 0)
    return {"move": 0.0, "widen": 1.0, "strength": float(strength)}[how]


def move_and_scale(
    names: tuple[str, ...], what: str, how: str, value: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arguments of `transforms.shifts.shift` at a point of a grid.

    Args:
      names: of the columns of alpha; of images those of the jitter.
      what: a parameter, "foreground" or "background"; "color" is all columns.
      how: "move", "widen" or "strength".
      value: the point.

    Returns:
      `(move, scale)`, float32 `[P]` each.
    """
    move, scale = np.zeros(len(names), np.float32), np.ones(len(names), np.float32)
    if how == "strength":  # of a jitter of strength 1
        return move, value * scale
    columns = shifts.find_columns(names, what=what)
    if how == "move":
        return np.where(columns, np.float32(value), move), scale
    return move, np.where(columns, np.float32(value), scale)


class _Features:
    """Features of views of a shifted law, averaged over the first and the last M."""

    def __init__(self, subject: Subject):
        self._subject, settings = subject, subject.settings
        self.num_views = tuple(sorted({subject.num_views[0], subject.num_views[-1]}))
        if is_regression(settings):
            self._base = make_transformation(settings)
        else:
            self._base = images.make_jitter(settings.data, settings.augmentation)
        self._mapped = subject.encoder.map(self._compute, axis=1)

    def __call__(self, split: str, shift: tuple[str, str, float]) -> np.ndarray:
        """Returns `[len(num_views), N, D]` at (what, how, value)."""
        parts = self._subject.variables, *move_and_scale(self._base.names, *shift)
        stream = TRAIN if split == "train" else TEST
        return self._mapped(parts, self._subject.examples(split).x, stream)

    def _compute(self, parts: Any, x: Array, indices: Array, stream: Array) -> Array:
        variables, move, scale = parts
        encoder = self._subject.encoder
        return evaluation.average_features(
            encoder.key(stream),
            functools.partial(encoder.encode, variables),
            shifts.shift(self._base, move, scale),
            x,
            num_views=self.num_views,
            indices=indices,
        )


def _unshifted(subject: Subject, features: _Features) -> list[Scored]:
    """Returns the probes on views of the training law, one for each M."""
    if is_regression(subject.settings):
        return [subject.scored(subject.num_views.index(m)) for m in features.num_views]
    point = "color", "strength", unshifted_value(subject.settings, "strength")
    h, h_test = (features(split, point) for split in ("train", "test"))
    return _fit(subject, h, h_test)


def _shifted(
    subject: Subject,
    heads: list[Scored],
    features: _Features,
    point: tuple[str, str, float],
) -> dict[str, list[Scored]]:
    h, h_test = (features(split, point) for split in ("train", "test"))
    fixed = [
        score(subject.settings, head.probe, one, subject.test.y)
        for head, one in zip(heads, h_test, strict=True)
    ]
    return {"refitted": _fit(subject, h, h_test), "fixed": fixed}


def _metrics(scored: Scored) -> dict[str, float]:
    """Returns what a fixed head has too."""
    return {k: v for k, v in scored.values.items() if k != "gradient_norm"}


def _fit(subject: Subject, h: np.ndarray, h_test: np.ndarray) -> list[Scored]:
    y, y_test = subject.train.y, subject.test.y
    return [
        fit_and_score(subject.settings, one, y, one_test, y_test)
        for one, one_test in zip(h, h_test, strict=True)
    ]
