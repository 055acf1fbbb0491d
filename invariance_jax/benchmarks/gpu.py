"""Training steps on a GPU: time, share of the matrix product's rate, memory.

What is asked for in a few minutes of one machine, the most important first; a step that
there is no time for is named and left out. Nothing is compared here but with the rate
of a matrix product in the precision of the step.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from invariance_jax.benchmarks import ceilings, operations
from invariance_jax.benchmarks.parts import PROGRESS
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

STEPS, SECONDS = 8, 0.3
"""Most steps of one call, and how long a call of fewer may take."""

PRODUCTS = 20
"""Matrix products that the rate is measured over."""

# What an error says, beside RESOURCE_EXHAUSTED, where memory was short.
_SHORT = ("RESOURCE_EXHAUSTED", "ALLOC_FAILED", "OUT_OF_MEMORY", "cudnn", "autotun")

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
      epochs: of the run, None if its length is given in steps.
    """

    name: str
    seconds: Quartiles
    share: float
    memory: int
    rematerialized: bool
    steps: int
    epochs: int | None


class Missing(NamedTuple):
    """A step that was not measured, and why."""

    name: str
    why: str


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
) -> Iterator[Found | Missing]:
    """Yields steps as they are measured, one after the other, until the time is over.

    A step that does not fit into the memory is rematerialized; one that fails
    otherwise is missing, and the others are measured.

    Args:
      steps: the result of `cases`.
      seconds: after so many no step is begun.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.
      size: see `ceilings.measure`.
      clock: the time in seconds.

    Yields:
      What was found, or why not.

    Raises:
      ValueError: if a configuration is invalid.
    """
    start = clock()
    rates = {
        key: ceilings.measure(
            size=size, copied=size**2, precision=name, products=PRODUCTS
        ).flops
        for key, name in PRECISIONS.items()
    }
    reached = ", ".join(f"{key} {rate / 1e12:.0f}" for key, rate in rates.items())
    print(f"a matrix product reaches, in TFLOP/s: {reached} (float32 by default TF32)")
    for name, (config, again) in steps.items():
        if clock() - start > seconds:
            yield Missing(name, "not run: no time left")
            continue
        print(f"{name} {PROGRESS}", flush=True)
        flops = operations.of_step(config).of_batch(config.batch_size)
        ceiling = flops / rates[config.precision]
        measure = functools.partial(
            _measure,
            name,
            config,
            ceiling=ceiling,
            repeats=repeats,
            min_seconds=min_seconds,
        )
        yield _first_that_fits(name, measure, (True,) if again else (False, True))


def _first_that_fits(
    name: str, measure: Callable[..., Found], forms: Sequence[bool]
) -> Found | Missing:
    """Returns a step in the first form that the memory is large enough for."""
    why = ""
    for rematerialize in forms:
        try:
            return measure(rematerialize=rematerialize)
        except (jax.errors.JaxRuntimeError, FloatingPointError) as error:
            why = str(error).strip().splitlines()[0][:100]
            if not any(word in str(error) for word in _SHORT):
                return Missing(name, f"failed: {why}")
    return Missing(name, f"does not fit into the memory: {why}")


def _measure(
    name: str,
    config: ConfigDict,
    *,
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
    metrics: Any = None

    def steps(count: int) -> Any:
        nonlocal state, metrics
        state, metrics = compiled(state, key, data, np.int32(count))
        return metrics

    jax.block_until_ready(steps(1))
    begun = time.perf_counter()
    jax.block_until_ready(steps(1))
    one = time.perf_counter() - begun
    count = min(max(round(SECONDS / one), 1), STEPS)
    call = functools.partial(steps, count)
    times = alternate(call, repeats=repeats, min_seconds=min_seconds)[0] / count
    check_finite(metrics)
    middle = quartiles(times)
    return Found(
        name,
        middle,
        ceiling / middle.median,
        memory,
        rematerialize,
        settings.derived.steps_per_epoch,
        settings.epochs,
    )


def _examples(settings: Any) -> np.ndarray:
    """Returns the training examples; of images, noise that is not read from a disk."""
    if is_regression(settings):
        return make_examples(settings, "train").x
    shape = settings.data.train_examples, *make_stand_ins(settings).shape[1:]
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def line(row: Found | Missing) -> str:
    """Returns what was measured of a step as text.

    Args:
      row: what `run` yields.

    Returns:
      Milliseconds with quartiles, share of the matrix product's rate, memory, and the
      seconds that the steps of an epoch and of the run take at this rate.
    """
    name = row.name.ljust(60)
    if isinstance(row, Missing):
        return f"{name} {row.why}"
    median, lower, upper = (
        1e3 * t for t in (row.seconds.median, row.seconds.lower, row.seconds.upper)
    )
    epoch = row.steps * row.seconds.median
    parts = [
        f"{median:8.2f} ms ({lower:.2f} to {upper:.2f})",
        f"{row.share:4.0%} of a matrix product",
        f"{row.memory / 1e9:6.2f} GB",
        f"{row.steps} steps of an epoch {epoch:.2f} s",
    ]
    parts += [f"{row.epochs} epochs {row.epochs * epoch:.0f} s"] * bool(row.epochs)
    parts += ["rematerialized"] * row.rematerialized
    return f"{name} {', '.join(parts)}"
