"""Where the penalty acts: parameters, representation or projection.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=500 --config.evaluation.split=validation \
        --workdir=runs/placement --sweep=configs/sweeps/placement.py

Five variants of three seeds, each of 500 steps. Results: configs/README.md.
"""

from configs.spirograph import COLORS


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return {
        "no penalty": {"penalty.weight": 0.0},
        "all parameters": {"penalty.parameters": ()},
        "along h (hole) only": {"penalty.parameters": ("h",)},
        "along the colours": {"penalty.parameters": COLORS},
        "along the colours, at the projection z": {
            "penalty.parameters": COLORS,
            "penalty.at": "z",
        },
    }
