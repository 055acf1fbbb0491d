"""What the penalty is measured against, and whether statistics are held.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=500 --config.evaluation.split=validation \
        --workdir=runs/normalization --sweep=configs/sweeps/normalization.py

Six variants of three seeds, each of 500 steps. Not yet run.
"""


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return {
        "no penalty": {"penalty.weight": 0.0},
        **{
            f"{normalization}, {statistics} statistics": {
                "penalty.normalization": normalization,
                "penalty.batch_statistics": statistics,
            }
            for normalization, statistics in (
                ("l2", "coupled"),
                ("l2", "example"),
                ("none", "coupled"),
                ("batch", "coupled"),
                ("batch", "example"),
            )
        },
    }
