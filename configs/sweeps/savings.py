"""The penalty in every n-th step only, with n times its weight.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=500 --config.evaluation.split=validation \
        --workdir=runs/savings --sweep=configs/sweeps/savings.py

Four variants of three seeds, each of 500 steps. Results: configs/README.md.
"""


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return {
        "no penalty": {"penalty.weight": 0.0},
        "every step": {},
        "every second step": {"penalty.every_steps": 2},
        "every fourth step": {"penalty.every_steps": 4},
    }
