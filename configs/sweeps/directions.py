"""Estimators of the penalty, and numbers of directions, compared to no penalty.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=500 --config.evaluation.split=validation \
        --workdir=runs/directions --sweep=configs/sweeps/directions.py

Five variants of three seeds, each of 500 steps. Results: configs/README.md.
"""


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return {
        "no penalty": {"penalty.weight": 0.0},
        **{
            f"{estimator}, K = {count}": {
                "penalty.estimator": estimator,
                "penalty.directions": count,
            }
            for estimator in ("directional", "sign")
            for count in (1, 4)
        },
    }
