"""One process of a run of some steps: writes state and metrics to an `.npz` file.

python tests/steps_of_a_process.py OUT [flags of a coordinator]
"""

import sys

import jax
import numpy as np
from absl import flags

from invariance_jax.runtime import startup
from invariance_jax.runtime.devices import all_devices
from invariance_jax.training import parallel

# Groups that span processes, two directions; LARS, since adamw scales the rounding
# error of a gradient of 0 up to a step.
CHANGES = {
    "optimizer.name": "lars",
    "batchnorm.group_size": 8,
    "penalty.directions": 2,
}
STEPS = 20


def compute(count=None):
    """Returns metrics and state after some steps in float64 on that many devices."""
    from test_parallel import KEY, Case  # once the processes have met: it makes arrays

    case, devices = Case(CHANGES), all_devices(count)
    train = case.train(devices)
    state, metrics = parallel.replicate(case.start(), devices), []
    for step in range(STEPS):
        state, sums = train(state, KEY, step, 1)
        sums = parallel.one_replica(sums)
        metrics.append([float(total) for total, _ in sums.values()])
    leaves = jax.tree.leaves(parallel.one_replica(state))
    arrays = {f"leaf{number}": leaf for number, leaf in enumerate(leaves)}
    return {"metrics": np.array(metrics), **arrays}


def main(out, *rest):
    """Meets the other processes, makes the steps and writes what came out."""
    flags.FLAGS(["process", *rest])
    jax.config.update("jax_enable_x64", True)
    writes = startup.initialize()
    arrays = compute()
    if writes:
        np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
