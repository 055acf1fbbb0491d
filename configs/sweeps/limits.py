"""Limits of the penalty: hard or logarithmic, of an example or the batch mean.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=500 --config.evaluation.split=validation \
        --workdir=runs/limits --sweep=configs/sweeps/limits.py

Seven variants of three seeds, each of 500 steps. Not yet run.
"""


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return {
        "no penalty": {"penalty.weight": 0.0},
        **{
            f"{shape}, {limit:g} per example": {
                "penalty.limit_shape": shape,
                "penalty.example_limit": limit,
            }
            for shape in ("hard", "log")
            for limit in (0.5, 4.0)
        },
        "0.5 on the batch mean": {
            "penalty.example_limit": None,
            "penalty.batch_limit": 0.5,
        },
        "no limit": {"penalty.example_limit": None},
    }
