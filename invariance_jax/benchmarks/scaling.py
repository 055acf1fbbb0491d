"""The step on several devices, and several steps in one call.

The devices are simulated: they share the cores of one machine, so that more of them are
not faster. What is seen is what dividing the batch costs: the collectives, and the work
that every device does for the whole batch. What it would be on GPUs is projected from
the compiled programs (`projection`). All of it runs in a process of its own, since the
devices of this one are what they are.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from ml_collections import ConfigDict

from invariance_jax.benchmarks import projection
from invariance_jax.benchmarks.penalty import check_finite, make_steps
from invariance_jax.benchmarks.timing import Comparison, alternate, keep_freed_memory
from invariance_jax.runtime.devices import simulate
from invariance_jax.training import parallel


def run(
    config: ConfigDict,
    *,
    counts: Sequence[int],
    num_steps: int,
    repeats: int,
    min_seconds: float,
) -> list[Comparison]:
    """Returns the time of a step on several devices against one, at the same batch.

    Args:
      config: a configuration with the keys of `configs/base.py`.
      counts: numbers of simulated devices, more than one; the batch is a multiple.
      num_steps: steps of one call.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Returns:
      A comparison for each number of devices, and one of a call for num_steps steps
      with as many calls, in seconds per step.

    Raises:
      ValueError: if the configuration is invalid or does not fit the devices.
      FloatingPointError: if a loss stops being finite.
    """
    plain = ConfigDict(config.to_dict())
    return _in_fresh_process(
        max(counts), _measure, plain, tuple(counts), num_steps, repeats, min_seconds
    )


def steps(configs: dict[str, ConfigDict]) -> list[projection.Step]:
    """Compiles runs for simulated devices, for `projection.table`.

    Args:
      configs: name -> configuration with the keys of `configs/base.py`.

    Raises:
      ValueError: if a configuration is invalid or does not fit the devices.
    """
    plain = {name: ConfigDict(config.to_dict()) for name, config in configs.items()}
    return _in_fresh_process(projection.DEVICES, _compile, plain)


def _in_fresh_process(devices: int, function: Callable[..., Any], *args: Any) -> Any:
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=simulate, initargs=(devices,)
    ) as pool:
        return pool.submit(function, *args).result()


def _compile(configs: dict[str, ConfigDict]) -> list[projection.Step]:
    return [projection.compile_step(name, config) for name, config in configs.items()]


def _measure(
    config: ConfigDict,
    counts: Sequence[int],
    num_steps: int,
    repeats: int,
    min_seconds: float,
) -> list[Comparison]:
    keep_freed_memory()
    shapes = [(count, num_steps) for count in (1, *counts)] + [(1, 1)]
    calls = [make_steps(config, n, parallel.all_devices(count)) for count, n in shapes]
    times = alternate(*calls, repeats=repeats, min_seconds=min_seconds)
    for call in calls:
        check_finite(call())
    *divided, alone = times / [[n] for _, n in shapes]
    one, *others = divided
    results = [
        Comparison("step", f"{count} devices", "1 device", seconds, one, False)
        for count, seconds in zip(counts, others, strict=True)
    ]
    names = f"{num_steps} steps in one call", "a call for each"
    return [*results, Comparison("step", *names, one, alone, True)]
