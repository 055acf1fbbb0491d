"""Weights of the invariance penalty, from no penalty to 10.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=500 --config.evaluation.split=validation \
        --workdir=runs/penalty_weight --sweep=configs/sweeps/penalty_weight.py

Five variants of three seeds, each of 500 steps. Results: configs/README.md.
"""


def get_sweep() -> dict[str, tuple[float, ...]]:
    """Returns key -> values, each combination a variant."""
    return {"penalty.weight": (0.0, 0.01, 0.1, 1.0, 10.0)}
