"""Numbers that Foster et al. (2021) measured on Spirograph, for comparison.

ResNet-18, 3 seeds, mean squared errors of a linear regression on `h`; from the figure
data of the authors' public repository. Their probe is 500 steps of L-BFGS and may not
have converged: a closed form can score lower on the same features.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

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

SINGLE = {
    "no penalty": {"m": 6.77e-4, "b": 1.125e-2, "sigma": 9.14e-5, "rfore": 2.32e-5},
    "penalty": {"m": 5.07e-4, "b": 7.36e-3, "sigma": 5.27e-5, "rfore": 2.79e-6},
}
"""Each target at M = 1, from an evaluation whose means are .00301 and .00198."""

_IMAGES: dict[str, Any] = {
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
    "sigma": "plane units²",
    "rfore": "intensity",
}


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
        for key, value in _IMAGES.items()
    )
