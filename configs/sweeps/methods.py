"""Methods with and without the invariance penalty, with heads narrow enough for CPUs.

    python launch.py --config=configs/spirograph.py:quick --config.seeds=3 \
        --config.steps=500 --config.evaluation.num_views=1,8 \
        --config.evaluation.train_examples=10000 \
        --workdir=runs/methods --sweep=configs/sweeps/methods.py

Sixteen variants of three seeds, each of 500 steps. Results: configs/README.md.
"""

from collections.abc import Mapping

from configs.sweeps.search import PAPER

# Widths of z and of the hidden layers are for CPUs; temperatures are those of the
# papers. The learning rate is that of the run.
METHODS: dict[str, dict[str, object]] = {
    "simclr": {},
    "dcl": {"temperature": 0.1},
    "moco_v3": {"temperature": 1.0, "method.kwargs": {"hidden": 512, "layers": 2}},
    "byol": {"method.kwargs": {"hidden": 512}},
    "simsiam": {
        "encoder.projection": 512,
        "method.kwargs": {"hidden": 512, "bottleneck": 128},
    },
    "barlow_twins": {"encoder.projection": 512, "method.kwargs": {"hidden": 512}},
    "vicreg": {"encoder.projection": 512, "method.kwargs": {"hidden": 512}},
    "emp_ssl": {"encoder.projection": 128, "method.kwargs": {"hidden": 512}},
}


PARTS = {name: {"method.name": name, **changes} for name, changes in METHODS.items()}


def with_and_without(
    parts: dict[str, dict[str, object]], weights: Mapping[str, float] = {}
) -> dict[str, dict[str, object]]:
    """Returns label -> changed keys of each part, without the penalty and with it.

    The weight of the penalty is `weights[part]`, by default 0.3.
    """
    sweep = {}
    for name, changes in parts.items():
        penalty = {**PAPER, "penalty.weight": weights.get(name, 0.3)}
        sweep[f"{name}, no penalty"] = {**changes, "penalty.weight": 0.0}
        sweep[f"{name}, penalty"] = {**changes, **penalty}
    return sweep


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return with_and_without(PARTS)
