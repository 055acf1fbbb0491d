"""Label fraction: the downstream task when the probe sees few labels.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: on CIFAR, from plain images.
"""

import numpy as np

from invariance_jax.experiments.context import Context
from invariance_jax.runs.results import ExperimentResult, rows_of


def run(context: Context) -> ExperimentResult:
    """Returns the quality of the probe for each of `evaluation.label_fractions`.

    Each share contains the smaller ones; images: the same share of each class. Features
    are of plain images, and averaged over the largest M of `evaluation.num_views`;
    without plain images also over the smallest M.
    """
    numbers = (-1,) if context.is_plain else (0, -1)
    features: dict[str | int, tuple[np.ndarray, np.ndarray]] = {}
    if context.is_plain:
        features["plain"] = context.plain("train"), context.plain("test")
    features |= {context.num_views[number]: context.both(number) for number in numbers}
    rows, y = [], context.y("train")
    for fraction in context.settings.evaluation.label_fractions:
        labeled = context.task.labeled(y, fraction)
        for views, (h, h_test) in features.items():
            probe = context.task.fit(h[labeled], y[labeled])
            scored = context.task.score(probe, h_test, context.y("test"))
            rows += rows_of(scored.values, fraction=fraction, views=views)
    return ExperimentResult(rows)
