"""Readable names of metrics, coordinates and their values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from invariance_jax.report.read import Run
from invariance_jax.runs.results import Value

_WORDS = {
    # Metrics.
    "mse": "MSE",
    "r2": "R²",
    "cross_entropy": "cross-entropy",
    "constant": "MSE of the constant predictor",
    "top_share": "share of the top 1 %",
    "l2": "chosen l2",
    "within": "within examples",
    "normalized": "within / total",
    "paired": "half the mean squared change between two views",
    "variance.within": "variance of n(h) within examples",
    "variance.total": "total variance of n(h)",
    "variance.normalized": "normalized variance of n(h)",
    "loss.final": "last training loss",
    "penalty.final": "last penalty",
    # Coordinates.
    "views": "M",
    "how": "change",
    "shift": "amount",
    "fraction": "share of labels",
    "of": "representation",
    "parameters": "parameter",
}

_AXES = {
    "mse": "mean squared error",
    "cross_entropy": "cross-entropy (nats)",
    "relative_error": "squared error / squared change",
    "cosine": "cosine of the two changes",
    "normalized": "within / total variance",
}

_VALUES = {
    ("probe", "selected"): "probe with its own l2",
    ("probe", "ensemble"): "averaged predictions",
    ("encoder", "pixels"): "raw pixels",
    ("encoder", "untrained"): "untrained encoder",
    ("family", "color"): "colour only",
    ("family", "crop"): "crop and flip only",
    ("views", "plain"): "plain images",
    ("head", "refitted"): "refitted head",
    ("head", "fixed"): "fixed head",
    ("how", "move"): "shift",
    ("how", "widen"): "width factor",
    ("parameter", "color"): "the colour jitter",
}

_COLORS = "rfore gfore bfore foreground rback gback bback background".split()
_UNITS = {
    **dict.fromkeys("mbh", "plane units"),
    "sigma": "plane units²",
    **dict.fromkeys(_COLORS, "intensity"),
}
"""Units of the Spirograph parameters."""


def is_share(metric: str) -> bool:
    """Returns whether a metric is at most 1, and higher is better: no log axis."""
    shares = r"(accuracy|r2|R²|cosine|knn\d+|\d+ nearest)\b"
    return re.match(shares, metric) is not None


def word(name: str) -> str:
    """Returns a metric or a coordinate in words."""
    knn = re.fullmatch(r"knn(\d+)(_majority)?", name)
    if knn:
        return f"{knn[1]} nearest neighbours{', majority' if knn[2] else ''}"
    return _WORDS.get(name, name.replace("_", " "))


class Words:
    """Words for the runs of a report; Spirograph's parameters have units."""

    def __init__(self, runs: Sequence[Run] = ()):
        """Units are shown if all of the runs are of Spirograph."""
        self.several = len(runs) > 1
        self.spirograph = {run.config["data.name"] for run in runs} == {"spirograph"}

    def axis(self, name: str, target: object = None) -> str:
        """Returns the axis label of a metric, with the unit of an MSE."""
        unit = self.unit(target) if name == "mse" else ""
        return f"MSE, ({unit})²" if unit else _AXES.get(name, word(name))

    def unit(self, parameter: object) -> str:
        """Returns the unit of a parameter, empty if it is not known."""
        return _UNITS.get(str(parameter), "") if self.spirograph else ""

    def value(self, name: str, value: Value | None) -> str:
        """Returns the value of a coordinate in words; empty if it is absent."""
        if pd.isna(value):
            return ""
        if isinstance(value, str):
            if self.spirograph and value == "h" and name.startswith("parameter"):
                return "h (hole)"
            text = re.sub(r"^lbfgs(\d+)$", r"\1 steps of L-BFGS", value)
            return _VALUES.get((name, value), text)
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"

    def place(self, at: Mapping[Any, Any]) -> str:
        """Returns coordinates in words, such as "b, crop and flip only, M = 8"."""
        texts = [
            f"{'' if isinstance(v, str) else word(n) + ' = '}{self.value(n, v)}"
            for n, v in at.items()
            if not pd.isna(v)
        ]
        return ", ".join(texts)
