"""A search for a penalty that pays, by successive halving on the validation split.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=300 --config.evaluation.split=validation \
        --workdir=runs/search_1 --sweep=configs/sweeps/search.py

Forty-three variants of three seeds, each of 300 steps. With AFTER=runs/search_1 in the
environment, 900 steps and another workdir the same command runs the better quarter of
them beside the run without penalty. The winner is for the test split and other seeds.
What it found: configs/README.md.
"""

import itertools
import json
import os
from pathlib import Path

from configs.spirograph import COLORS

# The penalty that variants change; `quick` has the one that won.
PAPER: dict[str, object] = {
    "penalty.normalization": "l2",
    "penalty.limit_shape": "hard",
    "penalty.parameters": (),
}
PARAMETERS: dict[str, tuple[str, ...]] = {"all": (), "colors": COLORS}


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    grid = itertools.product(
        ("hard", "log"), (0.01, 0.1, 1.0), PARAMETERS, ("coupled", "example")
    )
    sweep: dict[str, dict[str, object]] = {
        "no_penalty": {"penalty.weight": 0.0},
        "paper": {
            "penalty.weight": 0.01,
            "penalty.example_limit": 0.0,
            "penalty.batch_limit": 1000.0,
        },
    }
    # Larger weights where the first of them were the better ones.
    larger = (("log", weight, "colors", "coupled") for weight in (3.0, 10.0))
    for shape, weight, along, statistics in (*grid, *larger):
        sweep[f"gradient_{shape}_{weight}_{along}_{statistics}"] = {
            "penalty.limit_shape": shape,
            "penalty.weight": weight,
            "penalty.parameters": PARAMETERS[along],
            "penalty.batch_statistics": statistics,
        }
    for weight in (0.1, 1.0, 10.0):
        sweep[f"ratio_log_{weight}_colors"] = {
            "penalty.normalization": "batch",
            "penalty.limit_shape": "log",
            "penalty.weight": weight,
            "penalty.parameters": COLORS,
        }
    for kind, weight in itertools.product(
        ("total_effect", "mixed", "consistency"), (0.03, 0.1, 0.3, 1.0)
    ):
        sweep[f"{kind}_log_{weight}"] = {
            "penalty.kind": kind,
            "penalty.limit_shape": "log",
            "penalty.weight": weight,
        }
    sweep = {label: {**PAPER, **changes} for label, changes in sweep.items()}
    return better(sweep, os.environ.get("AFTER"))


def better(
    sweep: dict[str, dict[str, object]], before: str | None
) -> dict[str, dict[str, object]]:
    """Returns the better quarter of what a sweep has finished, and its first variant.

    Better is the smaller error, of regression or of classification: its mean over one
    view and the most that are averaged.
    """
    if not before:
        return sweep
    first, *labels = sweep
    errors = {label: _error(Path(before) / label) for label in labels}
    tried = sorted((e, label) for label, e in errors.items() if e is not None)
    kept = {first, *(label for _, label in tried[: -(-len(tried) // 4)])}
    return {label: sweep[label] for label in sweep if label in kept}


def _error(workdir: Path) -> float | None:
    path = workdir / "results.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    means = {name: each["mean"] for name, each in found["summary"].items()}
    views = found["settings"]["num_views"]
    errors = []
    for m in {views[0], views[-1]}:  # averages may not have been measured
        if f"mse@{m}" in means:
            errors.append(means[f"mse@{m}"])
        elif f"accuracy@{m}" in means:
            errors.append(1 - means[f"accuracy@{m}"])
    return sum(errors) / len(errors) if errors else None
