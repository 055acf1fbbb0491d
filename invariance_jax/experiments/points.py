"""The runs that a study compares: label -> the training keys that it changes.

Every study holds the run without a penalty, against which the others are compared, and
the run of the configuration itself, "base".
"""

from collections.abc import Callable
from typing import Any

from invariance_jax.training.checks import require
from invariance_jax.training.keys import WITHOUT_DERIVATIVE

Changes = dict[str, Any]

_PLAIN = {"penalty.weight": 0.0}


def make_points(
    name: str, settings: Any, parameters: tuple[str, ...]
) -> dict[str, Changes]:
    """Returns the runs of a study.

    Args:
      name: one of `keys.STUDIES`.
      settings: the result of `training.settings.resolve`, with a penalty.
      parameters: the names of the columns of alpha.

    Returns:
      Label -> changed keys, the run without a penalty first.

    Raises:
      ValueError: if the configuration has no gradient penalty to compare.
    """
    asked = f"as evaluation.experiments asks for {name}, which compares"
    weight, kind = settings.penalty.weight, settings.penalty.kind
    require(weight > 0, "penalty.weight", weight, f"more than 0, {asked} penalties")
    if name != "penalty_weight":
        gradient = kind == "gradient"
        expected = f"'gradient', {asked} forms of the gradient penalty"
        require(gradient, "penalty.kind", kind, expected)
    return {"no penalty": _PLAIN, **_MAKERS[name](settings, parameters)}


def _penalty_weight(settings: Any, parameters: tuple[str, ...]) -> dict[str, Changes]:
    weights = sorted({*settings.studies.weights} - {0})
    return {
        f"weight {weight:g}": {"penalty.weight": float(weight)} for weight in weights
    }


def _directions(settings: Any, parameters: tuple[str, ...]) -> dict[str, Changes]:
    return {
        f"{estimator}, K = {count}": {
            "penalty.estimator": estimator,
            "penalty.directions": count,
        }
        for estimator in ("directional", "sign")
        for count in (1, 4, 16)
    }


def _limits(settings: Any, parameters: tuple[str, ...]) -> dict[str, Changes]:
    limit = settings.penalty.example_limit or 0.5
    found = {
        f"{shape}, {c:g} per example": _limit(c, 0.0, shape)
        for shape in ("hard", "smooth")
        for c in (limit, 8 * limit)
    }
    # The second is the limit of the configuration, such as the paper's.
    for c in sorted({limit, settings.penalty.batch_limit or limit}):
        found[f"{c:g} on the batch mean"] = _limit(0.0, c, "hard")
    return found | {"none": _limit(0.0, 0.0, "hard")}


def _limit(example: float, batch: float, shape: str) -> Changes:
    return {
        "penalty.example_limit": example,
        "penalty.batch_limit": batch,
        "penalty.limit_shape": shape,
    }


def _normalization(settings: Any, parameters: tuple[str, ...]) -> dict[str, Changes]:
    return {
        f"{normalization}, {statistics} statistics": {
            "penalty.normalization": normalization,
            "penalty.batch_statistics": statistics,
        }
        for normalization, statistics in (
            ("l2", "coupled"),
            ("l2", "example"),
            ("none", "coupled"),
            ("batch", "coupled"),
            ("batch", "example"),
        )
    }


def _placement(settings: Any, parameters: tuple[str, ...]) -> dict[str, Changes]:
    first, *rest = parameters
    found: dict[str, Changes] = {"base": {}, f"{first} only": _along(first)}
    if rest:
        found[f"all but {first}"] = _along(*rest)
    return found | {
        "projection z": {"penalty.at": "z"},
        "both views": {"penalty.views": 2},
    }


def _along(*names: str) -> Changes:
    return {"penalty.parameters": names}


def _savings(settings: Any, parameters: tuple[str, ...]) -> dict[str, Changes]:
    found = {"every example and step": _part(1.0, 1)}
    for count, name in ((2, "half"), (4, "a quarter")):
        found[f"{name} of the examples"] = _part(1 / count, 1)
    for count, name in ((2, "second"), (4, "fourth")):
        found[f"every {name} step"] = _part(1.0, count)
    return found


def _part(fraction: float, every_steps: int) -> Changes:
    return {"penalty.fraction": fraction, "penalty.every_steps": every_steps}


def _baselines(settings: Any, parameters: tuple[str, ...]) -> dict[str, Changes]:
    return {
        "penalty": {},
        "consistency": {"penalty.kind": "consistency", **WITHOUT_DERIVATIVE},
        "2 views averaged": {"average_views": 2, **_PLAIN},
    }


_MAKERS: dict[str, Callable[[Any, tuple[str, ...]], dict[str, Changes]]] = {
    "penalty_weight": _penalty_weight,
    "directions": _directions,
    "limits": _limits,
    "normalization": _normalization,
    "placement": _placement,
    "savings": _savings,
    "baselines": _baselines,
}
