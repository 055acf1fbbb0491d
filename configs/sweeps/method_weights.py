"""Methods without the penalty and with a weight per method, on Fashion-MNIST.

    python launch.py --config=configs/fashion_mnist.py:quick --config.seeds=3 \
        --config.steps=200 --config.logging.probe_every_steps=0 \
        --config.evaluation.num_views=1,8 --config.evaluation.families=all \
        --config.evaluation.baselines="()" --config.evaluation.l2_grid="()" \
        --config.evaluation.l2=1e-3 --config.evaluation.train_examples=5000 \
        --config.evaluation.variance_views=8 --config.evaluation.variance_examples=500 \
        --workdir=runs/method_weights --sweep=configs/sweeps/method_weights.py

Sixteen variants of three seeds, each of 200 steps: 70 minutes on one core. Results:
configs/README.md.
"""

from configs.sweeps.methods import PARTS, with_and_without

# The larger of the weights 3 and 30 that lowers the accuracy by at most 0.01 (one seed,
# 300 steps, validation split). A method that is missing has the default weight, 0.3:
# both weights lower its accuracy by more, or (simsiam) it was not searched.
WEIGHTS = {
    "simclr": 3.0,
    "dcl": 3.0,
    "barlow_twins": 30.0,
    "vicreg": 3.0,
    "emp_ssl": 30.0,
}


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return with_and_without(PARTS, WEIGHTS)
