"""The search of `search.py` for a convolutional encoder, over fewer settings.

    python launch.py --config=configs/spirograph.py:conv --config.seeds=3 \
        --config.steps=300 --config.evaluation.split=validation \
        --config.evaluation.num_views=1,8 \
        --config.evaluation.lbfgs_steps="()" --workdir=runs/search_conv_1 \
        --sweep=configs/sweeps/search_conv.py

Sixteen variants of three seeds, an hour on one core. With AFTER=runs/search_conv_1 in
the environment and more steps, the best quarter is run. Results: configs/README.md.
"""

import itertools
import os
from functools import partial

from configs.sweeps.search import PARAMETERS, better, penalty


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    sweep = {"no_penalty": penalty(0.0)}
    for weight in (0.001, 0.01, 0.1):
        sweep[f"paper_{weight}"] = penalty(weight)
    limited = partial(penalty, example_limit=0.5, limit_shape="log")
    for shape, weight, along in itertools.product(
        ("hard", "log"), (0.1, 1.0), PARAMETERS
    ):
        sweep[f"gradient_{shape}_{weight}_{along}"] = limited(
            weight, limit_shape=shape, parameters=PARAMETERS[along]
        )
    for along, parameters in PARAMETERS.items():
        sweep[f"ratio_log_0.1_{along}"] = limited(
            0.1, normalization="batch", parameters=parameters
        )
    for kind in ("total_effect", "mixed"):
        sweep[f"{kind}_log_0.3"] = limited(0.3, kind=kind)
    return better(sweep, os.environ.get("AFTER"))
