"""Limits of one example's penalty, none among them, by directions per example.

    python launch.py --config=configs/spirograph.py:quick --workdir=runs/limits \
        --sweep=configs/sweeps/example_limit.py

Eight runs, 3 minutes or more each on two CPU cores with `quick`. Not yet run.
"""


def get_sweep() -> dict[str, tuple]:
    """Returns the grid: key -> values."""
    return {
        "penalty.example_limit": (None, 0.1, 0.5, 2.0),
        "penalty.directions": (1, 4),
    }
