"""The search of `search.py` for Fashion-MNIST.

    python launch.py --config=configs/fashion_mnist.py:quick --config.seeds=3 \
        --config.steps=300 --config.evaluation.split=validation \
        --config.logging.probe_every_steps=0 --config.evaluation.num_views=1,8 \
        --config.evaluation.families=all --config.evaluation.baselines="()" \
        --config.evaluation.l2_grid="()" --config.evaluation.l2=1e-3 \
        --workdir=runs/search_images_1 --sweep=configs/sweeps/search_images.py

Twelve variants of three seeds, 27 minutes on one core. With AFTER=runs/search_images_1
in the environment and more steps, the best quarter is run. Results: configs/README.md.
"""

import os

from configs.sweeps.search import better, penalty


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    sweep = {
        "no_penalty": penalty(0.0),
        "paper": penalty(0.1, example_limit=0.0, batch_limit=1.0),
    }
    for weight in (0.3, 3.0):
        log = penalty(weight, limit_shape="log")
        crop = {"augmentation.differentiate": ("color", "crop")}
        sweep |= {
            f"gradient_hard_{weight}": penalty(weight),
            f"gradient_log_{weight}": log,
            f"gradient_log_{weight}_crop": {**log, **crop},
            f"ratio_log_{weight}": {**log, "penalty.normalization": "batch"},
            f"consistency_log_{weight}": {**log, "penalty.kind": "consistency"},
        }
    return better(sweep, os.environ.get("AFTER"))
