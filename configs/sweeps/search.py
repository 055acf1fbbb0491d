"""A search for a penalty that pays, by successive halving on the validation split.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=300 --config.evaluation.split=validation \
        --workdir=runs/search_1 --sweep=configs/sweeps/search.py

Forty-nine variants of three seeds, each of 300 steps. With AFTER=runs/search_1 in the
environment, 900 steps and another workdir the same command runs the better quarter of
them, and with AFTER naming that one and 2500 steps the better quarter of these, beside
the run without penalty. The winner is for the test split and other seeds. Not yet run.
"""

import itertools
import json
import os
from pathlib import Path

# The nuisance of Spirograph but for the hole h.
COLORS = ("rback", "gfore", "gback", "bfore", "bback")
PARAMETERS: dict[str, tuple[str, ...]] = {"all": (), "colors": COLORS}
PLAIN = "no_penalty"


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    grid = itertools.product(
        ("hard", "log"), (0.01, 0.03, 0.1, 0.3), PARAMETERS, ("coupled", "example")
    )
    sweep: dict[str, dict[str, object]] = {PLAIN: {"penalty.weight": 0.0}}
    for shape, weight, along, statistics in grid:
        sweep[f"gradient_{shape}_{weight}_{along}_{statistics}"] = {
            "penalty.limit_shape": shape,
            "penalty.weight": weight,
            "penalty.parameters": PARAMETERS[along],
            "penalty.batch_statistics": statistics,
        }
    kinds = itertools.product(("total_effect", "mixed"), ("hard", "log"))
    for (kind, shape), weight in itertools.product(kinds, (0.03, 0.1, 0.3, 1.0)):
        sweep[f"{kind}_{shape}_{weight}"] = {
            "penalty.kind": kind,
            "penalty.limit_shape": shape,
            "penalty.weight": weight,
        }
    if before := os.environ.get("AFTER"):
        errors = {label: error(Path(before) / label) for label in [*sweep][1:]}
        tried = sorted((e, label) for label, e in errors.items() if e is not None)
        kept = {PLAIN, *(label for _, label in tried[: -(-len(tried) // 4)])}
        sweep = {label: sweep[label] for label in sweep if label in kept}
    return sweep


def error(workdir: Path) -> float | None:
    """Returns the mean over M = 1 and the largest M of the error of a finished run."""
    path = workdir / "results.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    views = found["settings"]["num_views"]
    ends = [found["summary"][f"mse@{m}"]["mean"] for m in (views[0], views[-1])]
    return sum(ends) / len(ends)
