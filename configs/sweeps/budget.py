"""How to spend a time budget: on the penalty or on more views, at equal seconds.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.logging.probe_every_steps=0 --config.evaluation.num_views=1,8 \
        --config.evaluation.l2_grid="()" --workdir=runs/budget \
        --sweep=configs/sweeps/budget.py

Seven ways to spend each of two budgets, the time of 200 and of 600 steps without
penalty: 14 variants of three seeds, 25 minutes on one core. Results: configs/README.md.
"""

PLAIN: dict[str, object] = {"penalty.weight": 0.0}
CONSISTENCY: dict[str, object] = {
    "penalty.kind": "consistency",
    "penalty.parameters": (),
    "penalty.normalization": "l2",
    "penalty.weight": 0.3,
}

# Label -> (time of a step relative to one without penalty, changed keys).
WAYS: dict[str, tuple[float, dict[str, object]]] = {
    "no penalty": (1.0, PLAIN),
    "penalty": (1.2, {}),
    "consistency": (1.0, CONSISTENCY),
    "two views": (1.8, {**PLAIN, "average_views": 2}),
    "four views": (3.4, {**PLAIN, "average_views": 4}),
    "two views, penalty": (2.0, {"average_views": 2}),
    "two views, consistency": (1.8, {**CONSISTENCY, "average_views": 2}),
}


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return {
        f"{steps} steps: {way}": {**changes, "steps": int(steps / factor)}
        for steps in (200, 600)
        for way, (factor, changes) in WAYS.items()
    }
