"""The step on several devices, and several steps in one call.

The devices are simulated: they share the cores of one machine, so that more of them are
not faster. What is seen is what dividing the batch costs: the collectives, and the work
that every device does for the whole batch.
"""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from invariance_jax.benchmarks.runs import Training, describe
from invariance_jax.benchmarks.timing import Options, Row, compare, keep_freed_memory
from invariance_jax.runtime.devices import simulate
from invariance_jax.training import parallel


def run(
    options: Options, *, counts: Sequence[int] = (2, 4, 8), num_steps: int = 8
) -> Iterator[Row]:
    """Yields several devices over one at the same batch, and calls of one step.

    Args:
      options: see there.
      counts: numbers of simulated devices, of which the batch is a multiple.
      num_steps: of one call.

    Raises:
      ValueError: if the batch does not fit the devices.
      FloatingPointError: if a loss stops being finite.
    """
    context, most = get_context("spawn"), max(counts)
    # In a process of its own, since the devices of this one are what they are.
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=simulate, initargs=(most,)
    ) as pool:
        shapes = [(1, 1), *((count, num_steps) for count in (1, *counts))]
        few = options._replace(timer=options.timer.at_most(5))
        single, one, *others = pool.submit(_measure, few, shapes).result()
    case = describe(options.config)
    for count, seconds in zip(counts, others, strict=True):
        yield compare(case, (f"{count} devices", seconds), ("1 device", one))
    several = f"{num_steps} steps in one call"
    yield compare(case, ("a call for each step", single), (several, one))


def _measure(options: Options, shapes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the seconds of a step for each (devices, steps of a call)."""
    keep_freed_memory()
    runs = [
        Training(options.config, parallel.all_devices(count)) for count, _ in shapes
    ]
    calls = (functools.partial(r, n) for r, (_, n) in zip(runs, shapes, strict=True))
    times = options.timer(*calls) / [[n] for _, n in shapes]
    for each in runs:
        each.check_finite()
    return times
