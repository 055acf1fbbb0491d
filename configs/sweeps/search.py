"""A search for the best penalty, by successive halving on the validation split.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=300 --config.evaluation.split=validation \
        --workdir=runs/search_1 --sweep=configs/sweeps/search.py

Forty-three variants of three seeds, each of 300 steps. With AFTER=runs/search_1 in the
environment, 900 steps and another workdir, the same command runs the best quarter of
the variants and the run without penalty. Only the winner is measured on the test split,
with other seeds. Results: configs/README.md.
"""

import itertools
import json
import os
from pathlib import Path

from configs.spirograph import COLORS

PARAMETERS: dict[str, tuple[str, ...]] = {"all": (), "colors": COLORS}


def penalty(weight: float, **others: object) -> dict[str, object]:
    """Returns `penalty.NAME` -> value, for the weight and other keys of the penalty."""
    values = {"weight": weight, **others}
    return {f"penalty.{name}": value for name, value in values.items()}


# The penalty that the variants change; `quick` has the winner of the search.
PAPER = penalty(0.01, normalization="l2", limit_shape="hard", parameters=())


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    grid = itertools.product(
        ("hard", "log"), (0.01, 0.1, 1.0), PARAMETERS, ("coupled", "example")
    )
    sweep = {
        "no_penalty": penalty(0.0),
        "paper": penalty(0.01, example_limit=0.0, batch_limit=1000.0),
    }
    # Larger weights for one setting, where the larger weights of the grid did better.
    larger = (("log", weight, "colors", "coupled") for weight in (3.0, 10.0))
    for shape, weight, along, statistics in (*grid, *larger):
        sweep[f"gradient_{shape}_{weight}_{along}_{statistics}"] = penalty(
            weight,
            limit_shape=shape,
            parameters=PARAMETERS[along],
            batch_statistics=statistics,
        )
    for weight in (0.1, 1.0, 10.0):
        ratio = penalty(weight, normalization="batch", parameters=COLORS)
        sweep[f"ratio_log_{weight}_colors"] = {**ratio, "penalty.limit_shape": "log"}
    for kind, weight in itertools.product(
        ("total_effect", "mixed", "consistency"), (0.03, 0.1, 0.3, 1.0)
    ):
        sweep[f"{kind}_log_{weight}"] = penalty(weight, kind=kind, limit_shape="log")
    sweep = {label: {**PAPER, **changes} for label, changes in sweep.items()}
    return better(sweep, os.environ.get("AFTER"))


def better(
    sweep: dict[str, dict[str, object]], before: str | None
) -> dict[str, dict[str, object]]:
    """Returns the best quarter of the finished variants of a sweep, and its first one.

    `before` is the folder of the sweep; without it, all variants are returned. The
    order is by the error, of regression or classification: the mean of the errors at
    the smallest and the largest number of averaged views.
    """
    if not before:
        return sweep
    first, *labels = sweep
    errors = {label: _error(Path(before) / label) for label in labels}
    ranked = sorted((e, label) for label, e in errors.items() if e is not None)
    kept = {first, *(label for _, label in ranked[: -(-len(ranked) // 4)])}
    return {label: sweep[label] for label in sweep if label in kept}


def _error(workdir: Path) -> float | None:
    path = workdir / "results.json"
    if not path.exists():
        return None
    results = json.loads(path.read_text())
    means = {name: entry["mean"] for name, entry in results["summary"].items()}
    views = results["settings"]["num_views"]
    errors = []
    for m in {views[0], views[-1]}:  # without the experiment averaging, only views[0]
        if f"mse@{m}" in means:
            errors.append(means[f"mse@{m}"])
        elif f"accuracy@{m}" in means:
            errors.append(1 - means[f"accuracy@{m}"])
    return sum(errors) / len(errors) if errors else None
