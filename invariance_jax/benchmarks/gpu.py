"""Training steps on a GPU: time, share of the matrix product's rate, memory.

What is asked for in a few minutes of one machine, the most important first; a step that
there is no time for is named and left out. Nothing is compared here but with the rate
of a matrix product in the precision of the step.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from invariance_jax.benchmarks import ceilings, operations
from invariance_jax.benchmarks.penalty import check_finite
from invariance_jax.benchmarks.timing import Quartiles, alternate, quartiles
from invariance_jax.training import parallel
from invariance_jax.training.components import (
    is_regression,
    make_examples,
    make_stand_ins,
)
from invariance_jax.training.memory import compile_train
from invariance_jax.training.settings import resolve
from invariance_jax.training.start import initial_state

STEPS = 8
"""Steps of one call."""

PRECISIONS = {"float32": "default", "bfloat16": "bfloat16"}
"""Key of a configuration -> what `ceilings.measure` calls it."""


class Found(NamedTuple):
    """A step as it was measured.

    Attributes:
      name: of the step.
      seconds: of a step.
      share: the operations that it needs over those of a matrix product in the same
        time and precision; recomputed ones do not count.
      memory: bytes of the device that the program takes with all its arrays.
      rematerialized: whether it did not fit otherwise, or was asked for.
      steps: of an epoch.
    """

    name: str
    seconds: Quartiles
    share: float
    memory: int
    rematerialized: bool
    steps: int


def cases(
    spirograph: ConfigDict, cifar10: ConfigDict
) -> dict[str, tuple[ConfigDict, bool]]:
    """Returns the steps to measure.

    Args:
      spirograph: a run with a penalty, `configs/spirograph.py`.
      cifar10: another, of a batch of several groups, `configs/cifar10.py:resnet18`.

    Returns:
      Name -> configuration, and whether to rematerialize from the start; the most
      important first.
    """
    found = {}

    def add(name: str, config: ConfigDict, *, again: bool = False, **keys: Any) -> None:
        weight = config.penalty.weight
        for kind, value in (("penalized", weight), ("plain", 0.0)):
            chosen = config.copy_and_resolve_references()
            chosen.penalty.weight = value
            chosen.encoder.name = keys["encoder"]
            chosen.precision, chosen.batch_size = keys["precision"], keys["batch_size"]
            parts = name, *map(str, keys.values()), kind, *["rematerialized"] * again
            found[", ".join(parts)] = chosen, again

    paper = {"encoder": spirograph.encoder.name, "batch_size": spirograph.batch_size}
    for precision in ("bfloat16", "float32"):
        add("spirograph", spirograph, **paper, precision=precision)
        add("cifar10", cifar10, **paper, precision=precision)
    for again in (False, True):
        large = {"encoder": "resnet50", "batch_size": 512, "precision": "bfloat16"}
        add("cifar10", cifar10, **large, again=again)
    for encoder in ("resnet18", "resnet50"):
        for precision in ("bfloat16", "float32"):
            large = {"encoder": encoder, "batch_size": 4096, "precision": precision}
            add("cifar10", cifar10, **large)
    large = {"encoder": "resnet50", "batch_size": 512, "precision": "float32"}
    add("cifar10", cifar10, **large)
    return found


def run(
    steps: Mapping[str, tuple[ConfigDict, bool]],
    *,
    seconds: float,
    repeats: int,
    min_seconds: float,
    size: int = 8192,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Found], dict[str, str]]:
    """Measures steps one after the other until the time is over.

    A step that does not fit into the memory is rematerialized.

    Args:
      steps: the result of `cases`.
      seconds: after so many no step is begun.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.
      size: see `ceilings.measure`.
      clock: the time in seconds.

    Returns:
      What was found, and name -> why not for the other steps.

    Raises:
      ValueError: if a configuration is invalid.
      FloatingPointError: if a loss stops being finite.
    """
    start = clock()
    rates = {
        key: ceilings.measure(size=size, copied=size**2, precision=name).flops
        for key, name in PRECISIONS.items()
    }
    found, missing = [], {}
    for name, (config, again) in steps.items():
        if clock() - start > seconds:
            missing[name] = "not run: no time left"
            continue
        print(f"{name} ...", flush=True)
        flops = operations.of_step(config).of_batch(config.batch_size)
        ceiling = flops / rates[config.precision]
        for rematerialize in (True,) if again else (False, True):
            try:
                found.append(
                    _measure(name, config, rematerialize, ceiling, repeats, min_seconds)
                )
                break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
        else:
            missing[name] = "does not fit into the memory"
    return found, missing


def _measure(
    name: str,
    config: ConfigDict,
    rematerialize: bool,
    ceiling: float,
    repeats: int,
    min_seconds: float,
) -> Found:
    chosen = config.copy_and_resolve_references()
    chosen.encoder.rematerialize = rematerialize
    settings, devices = resolve(chosen), jax.local_devices()[:1]
    x = _examples(settings)
    compiled = compile_train(settings, x, devices)
    taken = compiled.memory_analysis()
    memory = taken.argument_size_in_bytes + taken.temp_size_in_bytes
    memory += taken.output_size_in_bytes - taken.alias_size_in_bytes
    state = parallel.replicate(initial_state(settings), devices)
    data = parallel.replicate(x, devices)
    key = jax.random.key(settings.seed)

    def steps() -> Any:
        nonlocal state
        state, metrics = compiled(state, key, data, np.int32(STEPS))
        return metrics

    times = alternate(steps, repeats=repeats, min_seconds=min_seconds)[0] / STEPS
    check_finite(steps())
    middle = quartiles(times)
    return Found(
        name,
        middle,
        ceiling / middle.median,
        memory,
        rematerialize,
        settings.derived.steps_per_epoch,
    )


def _examples(settings: Any) -> np.ndarray:
    """Returns the training examples; of images, noise that is not read from a disk."""
    if is_regression(settings):
        return make_examples(settings, "train").x
    shape = settings.data.train_examples, *make_stand_ins(settings).shape[1:]
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def table(found: Sequence[Found], missing: Mapping[str, str]) -> str:
    """Returns what was measured as text.

    Args:
      found: the first result of `run`.
      missing: the second.

    Returns:
      A line per step: milliseconds with quartiles, share of the matrix product's rate,
      memory, and the seconds that the steps of an epoch take at this rate.
    """
    names = [each.name for each in found] + [*missing]
    width = max(map(len, names), default=0)
    lines = [
        f"{each.name.ljust(width)}  {1e3 * each.seconds.median:8.2f} ms "
        f"({1e3 * each.seconds.lower:.2f} to {1e3 * each.seconds.upper:.2f}), "
        f"{each.share:4.0%} of a matrix product, {each.memory / 1e9:6.2f} GB, "
        f"{each.steps} steps of an epoch {each.steps * each.seconds.median:.2f} s"
        + (", rematerialized" if each.rematerialized else "")
        for each in found
    ]
    lines += [f"{name.ljust(width)}  {why}" for name, why in missing.items()]
    return "\n".join(lines)
