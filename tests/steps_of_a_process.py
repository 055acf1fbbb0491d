"""One process of a run of some steps: writes state and metrics to an `.npz` file.

python tests/steps_of_a_process.py OUT CASE STEPS DTYPE [flags of a coordinator]
"""

import sys

import jax
import numpy as np
from absl import flags

from invariance_jax.runtime import startup
from invariance_jax.runtime.devices import all_devices
from invariance_jax.training import parallel


def compute(name, steps, count=None):
    """Returns metrics and state after some steps of a case on that many devices."""
    # Once the processes have met: these modules make arrays.
    from test_parallel import KEY, Case
    from test_processes import CASES

    case, devices = Case(CASES[name]), all_devices(count)
    train = case.train(devices)
    state, metrics = parallel.replicate(case.start(), devices), []
    for step in range(steps):
        state, sums = train(state, KEY, step, 1)
        sums = parallel.one_replica(sums)
        metrics.append([float(total) for total, _ in sums.values()])
    leaves = jax.tree.leaves(parallel.one_replica(state))
    arrays = {f"leaf{number}": leaf for number, leaf in enumerate(leaves)}
    return {"metrics": np.array(metrics), **arrays}


def main(out, name, steps, dtype, *rest):
    """Meets the other processes, makes the steps and writes what came out."""
    flags.FLAGS(["process", *rest])
    jax.config.update("jax_enable_x64", dtype == "float64")
    writes = startup.initialize()
    arrays = compute(name, int(steps))
    if writes:
        np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
