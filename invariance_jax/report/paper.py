"""Numbers that Foster et al. (2021) measured, for comparison.

From the figure data of the authors' public repository. Of 3 seeds, unless said; their
standard error has ddof 0, times 1.22 for the usual estimate. Spirograph: ResNet-18,
mean squared errors of a linear regression on `h`. CIFAR: ResNet-50, 1000 epochs,
accuracy of a logistic regression. Their probes are 500 steps of L-BFGS and may not have
converged: a closed form can score lower on the same features.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from invariance_jax.report.results import Statistic

KINDS = ("no penalty", "penalty")
"""The two encoders; every number below is one of a pair in this order."""

TARGETS = ("m", "b", "sigma", "rfore")

NUM_VIEWS = (1, 2, 3, 4, 5, 10, 20, 30)

MEAN = {
    "no penalty": (
        2.97e-3,
        2.71e-3,
        2.59e-3,
        2.50e-3,
        2.45e-3,
        2.33e-3,
        2.26e-3,
        2.23e-3,
    ),
    "penalty": (1.99e-3, 1.63e-3, 1.46e-3, 1.36e-3, 1.28e-3, 1.11e-3, 1.00e-3, 0.96e-3),
}
"""Mean over the targets, for each M of NUM_VIEWS."""

ERRORS = {1: (8e-5, 3e-5), 30: (3e-5, 1e-5)}
"""M -> standard error of MEAN; of the others it is not known."""

SINGLE = {
    "no penalty": {"m": 6.77e-4, "b": 1.125e-2, "sigma": 9.14e-5, "rfore": 2.32e-5},
    "penalty": {"m": 5.07e-4, "b": 7.36e-3, "sigma": 5.27e-5, "rfore": 2.79e-6},
}
"""Each target at M = 1, from an evaluation whose means are .00301 and .00198."""

SHIFTS: dict[str, tuple[tuple[float, ...], dict[str, tuple[float, ...]]]] = {
    "h": (
        (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5),
        {
            "no penalty": (5.06e-3, 3.27e-3, 2.98e-3, 3.12e-3, 4.09e-3, 6.89e-3),
            "penalty": (3.50e-3, 2.27e-3, 1.93e-3, 2.17e-3, 2.86e-3, 4.88e-3),
        },
    ),
    "background": (
        (0.0, 0.1, 0.2, 0.3, 0.4),
        {
            "no penalty": (3.00e-3, 3.09e-3, 3.61e-3, 4.70e-3, 6.46e-3),
            "penalty": (1.97e-3, 2.05e-3, 2.50e-3, 3.30e-3, 4.57e-3),
        },
    ),
}
"""Moved parameter -> shifts, and the mean error of a refitted head at M = 1."""

STRENGTHS: dict[str, tuple[tuple[float, ...], dict[str, tuple[float, ...]]]] = {
    "cifar10": (
        (0.0, 0.25, 0.5, 0.75, 0.875),
        {
            "no penalty": (0.9302, 0.9300, 0.9259, 0.9146, 0.9001),
            "penalty": (0.9336, 0.9327, 0.9290, 0.9212, 0.9096),
        },
    ),
    "cifar100": (
        (0.0, 0.257, 0.514, 0.771, 0.9),
        {
            "no penalty": (0.7129, 0.7110, 0.7066, 0.6927, 0.6827),
            "penalty": (0.7218, 0.7205, 0.7151, 0.7045, 0.6912),
        },
    ),
}
"""Set -> strengths of the jitter, and the accuracy of a refitted head at M = 1."""

ACCURACY: dict[str, tuple[tuple[int, ...], dict[str, tuple[float, ...]]]] = {
    "cifar10": (
        (5, 15, 26, 47, 100),
        {
            "no penalty": (0.9341, 0.9426, 0.9438, 0.9456, 0.9460),
            "penalty": (0.9351, 0.9451, 0.9474, 0.9474, 0.9483),
        },
    ),
    "cifar100": ((100,), {"no penalty": (0.7410,), "penalty": (0.7494,)}),
}
"""Set -> numbers M of averaged views, and the accuracy."""

IMAGES: dict[str, dict[str, dict[str, Statistic]]] = {
    "cifar10": {
        "no penalty": {
            "accuracy@plain": Statistic(0.9304, 4e-4, 3),
            "accuracy@100": Statistic(0.9460, 1e-4, 3),
            "cross_entropy@100": Statistic(0.159, None, 3),
        },
        "penalty": {
            "accuracy@plain": Statistic(0.9338, 3e-4, 3),
            "accuracy@100": Statistic(0.9483, 3e-4, 3),
            "cross_entropy@100": Statistic(0.154, None, 3),
        },
    },
    "cifar100": {
        "no penalty": {
            "accuracy@plain": Statistic(0.7129, 1.1e-3, 3),
            "accuracy@100": Statistic(0.7410, 9e-4, 3),
        },
        "penalty": {
            "accuracy@plain": Statistic(0.7221, 6e-4, 3),
            "accuracy@100": Statistic(0.7494, 9e-4, 3),
        },
    },
}
"""Set -> encoder -> the downstream task."""

LABELS = {
    "no penalty": (0.9091, 0.9183, 0.9220, 0.9229, 0.9260, 0.9291, 0.9304, 0.9304),
    "penalty": (0.9120, 0.9224, 0.9261, 0.9269, 0.9299, 0.9312, 0.9335, 0.9338),
}
"""Accuracy on CIFAR-10 at eight shares of the labels, from about .05 to 1: the shares
between are not known, so that these cannot be drawn."""

WEIGHTS = {0.0: 2.86e-3, 1e-4: 2.03e-3, 1e-3: 1.88e-3, 1e-2: 1.96e-3, 1e-1: 0.223}
"""Weight of the penalty -> mean error at M = 1 of one seed; .1 collapsed."""

_SAMPLE: dict[str, Any] = {
    "image_size": 32,
    "num_points": 40,
    "extent": 6.0,
    "normalization": "row",
    "bounds.m": (2.0, 5.0),
    "bounds.b": (0.1, 1.1),
    "bounds.h": (0.5, 2.5),
    "bounds.sigma": (0.25, 1.0),
    **{f"bounds.{color}fore": (0.4, 1.0) for color in "rgb"},
    **{f"bounds.{color}back": (0.0, 0.6) for color in "rgb"},
}

UNITS = {
    "m": "plane units",
    "b": "plane units",
    "h": "plane units",
    "sigma": "plane units²",
    **{f"{color}{layer}": "intensity" for color in "rgb" for layer in ("fore", "back")},
    "foreground": "intensity",
    "background": "intensity",
}

_NOTE = (
    " Grey: Foster et al. (2021), {encoder}, n = 3 seeds (a standard error of theirs "
    "has ddof 0: times 1.22 for the usual estimate). Their probe is 500 steps of "
    "L-BFGS and may not have converged; here it is {solved}, so part of a difference "
    "can come from the probe."
)


def note(images: bool) -> str:
    """Returns what a caption says beside the paper's numbers.

    Args:
      images: whether the task is to classify, not to regress.
    """
    if images:
        return _NOTE.format(encoder="ResNet-50, 1000 epochs", solved="converged")
    return _NOTE.format(encoder="ResNet-18, 50 epochs", solved="solved exactly")


def is_spirograph(config: Mapping[str, Any]) -> bool:
    """Returns whether the (flat) configuration is one of the Spirograph data."""
    return str(config.get("data.name", "")).lower() == "spirograph"


def is_comparable(config: Mapping[str, Any]) -> bool:
    """Returns whether a run's images and tasks are those of the paper's numbers.

    Args:
      config: dotted name -> value; a key that is missing counts as the paper's.
    """
    if not is_spirograph(config):
        return False
    if set(config.get("data.targets", TARGETS)) != set(TARGETS):
        return False
    return all(
        np.array_equal(config.get(f"data.{key}", value), value)
        for key, value in _SAMPLE.items()
    )


def image_set(configs: Sequence[Mapping[str, Any]]) -> str | None:
    """Returns the one image set of some (flat) configurations that the paper used.

    None if there is none, or more than one.
    """
    names = {str(config.get("data.name", "")).lower() for config in configs}
    found = names & {*ACCURACY}
    return found.pop() if len(found) == 1 else None
