"""Alternatives to the gradient penalty.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=500 --config.evaluation.split=validation \
        --workdir=runs/baselines --sweep=configs/sweeps/baselines.py

Four variants of three seeds, each of 500 steps. Results: configs/README.md.
"""


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return {
        "no penalty": {"penalty.weight": 0.0},
        "gradient penalty": {},
        "squared distance of the views": {
            "penalty.kind": "consistency",
            "penalty.parameters": (),
        },
        "two views averaged": {"penalty.weight": 0.0, "average_views": 2},
    }
