"""Shift: the downstream tasks under another distribution of the nuisance.

Foster, Pukdee, Rainforth (ICLR 2021), section 5, refit the head on shifted views.
Added here is the harder test: a head that was fitted on unshifted views.
"""

import functools
import logging
from collections.abc import Callable

import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.runs.results import ExperimentResult, Value, rows_of
from invariance_jax.settings import Config
from invariance_jax.tasks import Scored
from invariance_jax.training.objective import Variables
from invariance_jax.transforms import Transformation, shifts
from invariance_jax.types import Array

_log = logging.getLogger(__name__)

Point = tuple[str, str, float]
"""A parameter or group of them, the kind of its change, and the amount."""

Features = Callable[[str, Point], np.ndarray]


def run(context: Context) -> ExperimentResult:
    """Returns the quality of two heads, "refitted" and "fixed", at every shift.

    The unshifted distribution is added to a grid that lacks it. For images a shift sets
    the strength of colour jitter, applied to every plain image, without grayscale, crop
    and flip; the fixed head is fitted at the strength of training. Features are
    averaged over the smallest and the largest M. A user's own augmentation has no rows.
    """
    grids, base = context.settings.evaluation.shifts, context.task.shiftable()
    if base is None:
        _log.info("no shifts: augmentation.name is MODULE:FUNCTION")
    if base is None or not grids:
        return ExperimentResult([])
    num_views = tuple(sorted({context.num_views[0], context.num_views[-1]}))
    features = shifted_features(context, base, num_views)
    task, y, rows = context.task, context.y("test"), []
    heads = _unshifted(context, features, num_views)
    for what, how, grid in grids:
        start = unshifted_values(context.settings)[how]
        for value in sorted({*grid} | {start}):
            scores = {"refitted": heads, "fixed": heads}
            if value != start:
                h, h_test = (features(split, (what, how, value)) for split in STREAMS)
                scores["refitted"] = list(map(context.fit_and_score, h, h_test))
                scores["fixed"] = [
                    task.score(head.probe, averaged, y)
                    for head, averaged in zip(heads, h_test, strict=True)
                ]
            for head, by_views in scores.items():
                for views, scored in zip(num_views, by_views, strict=True):
                    at: dict[str, Value] = {"parameter": what, "how": how}
                    at |= {"shift": value, "head": head, "views": views}
                    rows += rows_of(scored.values, **at)
    return ExperimentResult(rows)


def unshifted_values(config: Config) -> dict[str, float]:
    """Returns for each kind of shift the value that changes nothing."""
    augmentation = config.augmentation
    strength = (augmentation.strength or 0) * (augmentation.jitter_probability > 0)
    return {"move": 0.0, "widen": 1.0, "strength": float(strength)}


def move_and_scale(
    names: tuple[str, ...], what: str, how: str, value: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arguments of `transforms.shifts.shift` at a point, float32 `[P]`."""
    move, scale = np.zeros(len(names), np.float32), np.ones(len(names), np.float32)
    if how == "strength":  # alpha is drawn at strength 1
        return move, np.float32(value) * scale
    changed = move if how == "move" else scale
    changed[np.asarray(shifts.find_columns(names, what=what))] = value
    return move, scale


def shifted_features(
    context: Context, base: Transformation, num_views: tuple[int, ...]
) -> Features:
    """Returns `(split, point) -> features of shifted views, [len(num_views), N, D]`."""
    encoder = context.encoder

    def compute(
        parts: tuple[Variables, Array, Array], x: Array, indices: Array, stream: Array
    ) -> Array:
        variables, move, scale = parts
        return evaluation.average_features(
            encoder.key(stream),
            functools.partial(encoder.encode, variables),
            shifts.shift(base, move, scale),
            x,
            num_views=num_views,
            indices=indices,
        )

    mapped = encoder.map(compute, axis=1)

    def features(split: str, point: Point) -> np.ndarray:
        parts = context.variables, *move_and_scale(base.names, *point)
        return mapped(parts, context.examples(split).x, STREAMS[split])

    return features


def _unshifted(
    context: Context, features: Features, num_views: tuple[int, ...]
) -> list[Scored]:
    """Returns the scored probes on unshifted views, for each M."""
    if context.task.shiftable() is context.parts.transformation:
        return [context.scored(context.num_views.index(m)) for m in num_views]
    strength = unshifted_values(context.settings)["strength"]
    point = "color", "strength", strength
    return list(map(context.fit_and_score, *(features(s, point) for s in STREAMS)))
