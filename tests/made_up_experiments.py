"""The rows of every experiment as `results.json` holds them, with made-up numbers.

Plausible in size, so that figures of them look like those of a run.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = ("m", "b", "sigma", "rfore")
NUISANCE = ("h", "rback", "gfore", "gback", "bfore", "bback")

LABELS = {
    "directions": ("directional, K = 1", "directional, K = 16", "sign, K = 1"),
    "limits": ("hard, 0.5 per example", "0.5 on the batch mean", "none"),
    "normalization": ("l2, coupled statistics", "none, coupled statistics"),
    "placement": ("base", "h only", "all but h", "projection z", "both views"),
    "savings": ("every example and step", "half of the examples", "every fourth step"),
    "baselines": ("penalty", "consistency", "2 views averaged"),
}

Rows = list[dict[str, Any]]


class Maker:
    """Makes numbers of n seeds about a given one."""

    def __init__(self, n: int, scale: float, seed: int = 0):
        self.n, self.scale = n, scale
        self.random = np.random.default_rng(seed)

    def __call__(self, mean: float) -> dict[str, Any]:
        mean = float(mean * (1 + 0.03 * self.random.normal()))
        error = None if self.n == 1 else abs(mean) * 0.06 / self.n**0.5
        return {"mean": mean, "standard_error": error, "n": self.n}

    def tasks(self, mse: float) -> dict[str, Any]:
        shares = dict(zip(TARGETS, (0.24, 3.7, 0.05, 0.01), strict=True))
        found = {"mse": self(self.scale * mse)}
        for name, share in shares.items():
            found[f"mse.{name}"] = self(self.scale * mse * share)
            found[f"r2.{name}"] = self(1 - 5 * mse * share)
        return found

    def classes(self, error: float) -> dict[str, Any]:
        wrong = self(min(self.scale * error, 0.9))
        accuracy = {**wrong, "mean": 1 - wrong["mean"]}
        return {"accuracy": accuracy, "cross_entropy": self(3 * wrong["mean"])}


def experiments(
    n: int = 1, *, scale: float = 1.0, images: bool = False
) -> dict[str, dict[str, Any]]:
    """The content of the key "experiments"."""
    made = Maker(n, scale)
    rows = {
        "invariance": _invariance(made),
        "linearization": _linearization(made),
        "nuisance_prediction": _nuisance(made),
        "shift": _strengths(made) if images else _shifts(made),
        "label_fraction": _fractions(made, images),
        "penalty_weight": _weights(made, images),
        **{name: _study(made, labels, images) for name, labels in LABELS.items()},
    }
    return {
        name: {"seconds": None if name in LABELS else 12.3, "rows": found}
        for name, found in rows.items()
    }


def add(workdir: Path, found: Mapping[str, Any], **summary: float) -> Path:
    """Writes experiments, and more numbers, into the `results.json` of a run."""
    path = workdir / "results.json"
    content = json.loads(path.read_text())
    content["experiments"] = dict(found)
    content["settings"]["experiments"] = ["downstream", "averaging", *found]
    for name, mean in summary.items():
        content["summary"][name] = {"mean": mean, "standard_error": None, "n": 1}
    path.write_text(json.dumps(content))
    return workdir


def _row(at: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return {"at": at, "values": values}


def _invariance(made: Maker) -> Rows:
    rows = []
    shares = dict(zip(NUISANCE, (0.6, 0.02, 0.1, 0.02, 0.05, 0.03), strict=True))
    for name, share in {"all": 1.0, **shares}.items():
        for of, level in (("n(h)", 0.02), ("h", 0.03)):
            within = made.scale * level * share
            values = {"within": made(within), "total": made(0.9)}
            values["normalized"] = made(within / 0.9)
            if name == "all":
                values["paired"] = made(within)
            at = {"table": "parameters", "parameter": name, "of": of}
            rows.append(_row(at, values))
    for step in (250, 500, 1000, 1500):
        for of in ("n(h)", "h"):
            level = made.scale * (0.02 + np.exp(-step / 300))
            values = {name: made(level) for name in ("within", "total", "normalized")}
            at = {"table": "checkpoints", "step": step, "of": of}
            rows.append(_row(at, values))
    return rows


def _linearization(made: Maker) -> Rows:
    def values(step: float, power: float) -> dict[str, Any]:
        return {
            "relative_error": made(made.scale * 0.9 * step**power),
            "ratio": made(1 + 1.5 * step),
            "median_ratio": made(1 + 0.3 * step),
            "top_share": made(0.05 + 0.1 * step),
            "cosine": made(1 - 0.2 * step),
        }

    steps = (0.01, 0.03, 0.1, 0.3, 1.0)
    rows = [_row({"step": s, "parameters": "all"}, values(s, 1.6)) for s in steps]
    return rows + [
        _row({"step": 1.0, "parameters": name}, values(1.0 / (number + 1), 1.0))
        for number, name in enumerate(NUISANCE)
    ]


def _nuisance(made: Maker) -> Rows:
    return [
        _row(
            {"parameter": name},
            {
                "mse": made(0.33 - 0.3 / (number + 1)),
                "constant": made(0.333),
                "r2": made(0.9 / (number + 1) ** 2 - 0.02),
                "l2": made(1e-4),
            },
        )
        for number, name in enumerate(NUISANCE)
    ]


def _shifts(made: Maker) -> Rows:
    def grown(harder: float) -> Callable[[float, str], float]:
        return lambda shift, head: (
            3e-3 * (1 + harder * shift**2 * (8 if head == "refitted" else 40))
        )

    grids = {
        ("h", "move"): ((-0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5), grown(0.6)),
        ("background", "move"): ((0.0, 0.1, 0.2, 0.3, 0.4), grown(0.9)),
        ("h", "widen"): ((1.0, 1.25, 1.5), lambda s, head: grown(0.5)(s - 1, head)),
    }
    return [
        _row(
            {
                "parameter": parameter,
                "how": how,
                "shift": shift,
                "head": head,
                "views": views,
            },
            made.tasks(level(shift, head) * views**-0.25),
        )
        for (parameter, how), (grid, level) in grids.items()
        for shift in grid
        for head in ("refitted", "fixed")
        for views in (1, 8)
    ]


def _strengths(made: Maker) -> Rows:
    return [
        _row(
            {
                "parameter": "color",
                "how": "strength",
                "shift": strength,
                "head": head,
                "views": views,
            },
            made.classes(0.08 + 0.05 * strength**2 * (1 if head == "refitted" else 2)),
        )
        for strength in (0.0, 0.25, 0.5, 0.75, 0.875)
        for head in ("refitted", "fixed")
        for views in (1, 8)
    ]


def _fractions(made: Maker, images: bool) -> Rows:
    fill = made.classes if images else made.tasks
    return [
        _row({"fraction": f, "views": views}, fill(level * (1 + 0.05 / f)))
        for f in (0.05, 0.1, 0.2, 0.5, 1.0)
        for views, level in (("plain" if images else 1, 0.05), (8, 0.03))
    ]


def _summary(made: Maker, images: bool, mse: float, variance: float) -> dict[str, Any]:
    if images:
        found = {
            f"{name}@{views}": value
            for views in ("plain", "8")
            for name, value in made.classes(20 * mse).items()
        }
    else:
        found = {"mse@1": made(mse), "mse@8": made(0.6 * mse), "mse.b@1": made(3 * mse)}
    return {**found, "variance.normalized": made(variance), "collapsed": made(0.0)}


def _against(made: Maker, first: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    values = dict(one)
    for name in first:
        if name == "collapsed":
            continue
        mean = one[name]["mean"] - first[name]["mean"]
        exact = {"standard_error": None, "n": made.n}
        values[f"difference.{name}"] = {"mean": mean, **exact}
        if made.n > 1:
            half = 0.15 * first[name]["mean"]
            for end, sign in (("low", -1), ("high", 1)):
                place = f"interval.{name}.{end}"
                values[place] = {"mean": mean + sign * half, **exact}
    return values


def _weights(made: Maker, images: bool) -> Rows:
    first = _summary(made, images, 8e-3, 0.025)
    rows = [_row({"run": "no penalty", "weight": 0.0}, first)]
    for weight in (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0):
        mse, variance = 8e-3 * (1 - 0.1 * weight**0.3), 0.02 / (1 + 20 * weight)
        one = _summary(made, images, mse if weight < 10 else 0.2, variance)
        if weight == 10:
            one["collapsed"] = {**made(1.0), "mean": 1.0}
        at = {"run": f"weight {weight:g}", "weight": weight}
        rows.append(_row(at, _against(made, first, one)))
    return rows


def _study(made: Maker, labels: tuple[str, ...], images: bool) -> Rows:
    first = _summary(made, images, 8e-3, 0.025)
    rows = [_row({"run": "no penalty", "weight": 0.0}, first)]
    for number, label in enumerate(labels):
        one = _summary(made, images, 8e-3 - 5e-4 * number, 0.012 + 3e-3 * number)
        if label == "none":
            one = _summary(made, images, 0.04, 0.7)
            one["collapsed"] = {**made(1.0), "mean": 1.0}
        rows.append(_row({"run": label}, _against(made, first, one)))
    return rows
