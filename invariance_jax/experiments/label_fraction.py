"""Label fraction: the downstream task when the probe sees few labels.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: on CIFAR, from plain images.
"""

import numpy as np

from invariance_jax.experiments.context import Context
from invariance_jax.runs.results import ExperimentResult, rows_of


def run(context: Context) -> ExperimentResult:
    """Returns the quality of the probe for each of `evaluation.label_fractions`.

    They are shares of the examples that probes are fitted on, each contained in the
    next: of images the same share of each class, of Spirograph the first examples. The
    features are of plain images and averaged over the last M of `evaluation.num_views`;
    where no view is plain, over the first M and the last.
    """
    numbers = (-1,) if context.is_plain else (0, -1)
    features: dict[str | int, tuple[np.ndarray, np.ndarray]] = {}
    if context.is_plain:
        features["plain"] = context.plain("train"), context.plain("test")
    features |= {context.num_views[number]: context.both(number) for number in numbers}
    rows, y = [], context.y("train")
    for fraction in context.settings.evaluation.label_fractions:
        seen = context.task.labeled(y, fraction)
        for views, (h, h_test) in features.items():
            probe = context.task.fit(h[seen], y[seen])
            scored = context.task.score(probe, h_test, context.y("test"))
            rows += rows_of(scored.values, fraction=fraction, views=views)
    return ExperimentResult(rows)
