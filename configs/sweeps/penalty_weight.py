"""Weights of the invariance penalty, none among them.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --workdir=runs/weights --sweep=configs/sweeps/penalty_weight.py

Twelve runs, 3 to 6 minutes each on two CPU cores with `quick`. Not yet run.
"""


def get_sweep() -> dict[str, tuple]:
    """Returns the grid: key -> values."""
    return {"penalty.weight": (0.0, 0.1, 0.3, 1.0)}
