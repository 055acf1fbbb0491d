"""Label fraction: the downstream task when the probe sees few labels.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: on CIFAR, from plain images.
"""

import numpy as np

from invariance_jax.experiments.subject import Measured, Row, Subject
from invariance_jax.training.components import is_regression
from invariance_jax.training.protocols import choose_labeled, fit_and_score


def run(subject: Subject) -> Measured:
    """Returns the quality of the probe for each of `evaluation.label_fractions`.

    They are shares of the examples that probes are fitted on, each contained in the
    next. Of images the same share of each class; of Spirograph the first examples,
    which are as good as any, since they are drawn independently of one another.

    Args:
      subject: the encoder and its examples.

    Returns:
      A row for each share and each kind of features: of images "plain" and averaged
      over the last M of `evaluation.num_views`, of Spirograph over the first and the
      last; the metrics of the probe.

    Raises:
      ValueError: if a share leaves a class without an example; it names the key.
    """
    features = _features(subject)
    rows = []
    for fraction in map(float, subject.settings.evaluation.label_fractions):
        seen = choose_labeled(subject.settings, subject.train.y, fraction)
        for views, (h, h_test) in features.items():
            scored = fit_and_score(
                subject.settings, h[seen], subject.train.y[seen], h_test, subject.test.y
            )
            rows.append(Row({"fraction": fraction, "views": views}, scored.values))
    return Measured({}, rows)


def _features(subject: Subject) -> dict[str | int, tuple[np.ndarray, np.ndarray]]:
    """Returns views -> features of the training and of the test examples."""
    kinds: dict[str | int, tuple[np.ndarray, np.ndarray]] = {}
    numbers = [0, -1]
    if not is_regression(subject.settings):
        kinds["plain"] = subject.plain("train"), subject.plain("test")
        numbers = [-1]
    for number in numbers:
        h, h_test = (subject.features(split)[number] for split in ("train", "test"))
        kinds[subject.num_views[number]] = h, h_test
    return kinds
