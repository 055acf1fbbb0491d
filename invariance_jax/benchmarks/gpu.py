"""Training steps on a GPU: time, share of a matrix product's rate, memory.

The cases come most important first; one that there is no time for is named and left
out. `gpu_peers` compares with PyTorch, in a process of its own, since what one library
leaves in the memory of the device decides what fits for the other.
"""

import copy
import functools
import itertools
import os
import time
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from invariance_jax.benchmarks.runs import Training, configuration
from invariance_jax.benchmarks.timing import Options, Row, product_rate
from invariance_jax.settings import Config

STEPS, SECONDS = 8, 0.3
"""Most steps of one call, and how long a call of fewer may take."""

RATES = {"float32": "default", "bfloat16": "bfloat16"}
"""Precision of a run -> that of the matrix product that it is compared with."""


def run(options: Options) -> Iterator[Row]:
    """Yields the steps of the paper's runs, each when it is measured.

    Raises:
      ValueError: if there is no GPU.
    """
    check_gpu(0.92)
    yield from measure_all(chosen(cases(), options.cases), options)


def check_gpu(fraction: float) -> None:
    """Checks that there is a GPU, of whose memory JAX takes a share.

    Raises:
      ValueError: if there is none.
    """
    os.environ.setdefault("XLA_CLIENT_MEM_FRACTION", str(fraction))
    if jax.default_backend() != "gpu":
        raise ValueError(f"this benchmark needs a GPU; found {jax.devices()}.")


def cases() -> dict[str, Config]:
    """Returns name -> configuration, the most important first."""
    spirograph, cifar10 = (
        configuration("spirograph"),
        configuration("cifar10", "resnet18"),
    )
    found = {}

    def add(
        name: str,
        config: Config,
        kind: str,
        precision: str,
        encoder: str = "resnet18",
        batch_size: int = 512,
        *rematerialized: str,
    ) -> None:
        case = copy.deepcopy(config)
        case.encoder.name, case.encoder.rematerialize = encoder, bool(rematerialized)
        case.batch_size, case.precision = batch_size, precision
        case.penalty.weight *= kind == "penalized"
        words = name, encoder, str(batch_size), precision, kind, *rematerialized
        found[" ".join(words)] = case

    both = "penalized", "plain"
    add("spirograph", spirograph, "penalized", "bfloat16")
    add("spirograph", spirograph, "plain", "bfloat16")
    add("cifar10", cifar10, "penalized", "bfloat16")
    add("spirograph", spirograph, "penalized", "float32")
    add("cifar10", cifar10, "plain", "bfloat16")
    add("spirograph", spirograph, "plain", "float32")
    for kind in both:
        add("cifar10", cifar10, kind, "float32")
    for kind, again in itertools.product(both, ((), ("rematerialized",))):
        add("cifar10", cifar10, kind, "bfloat16", "resnet50", 512, *again)
    for encoder in ("resnet18", "resnet50"):
        for precision, kind in itertools.product(("bfloat16", "float32"), both):
            add("cifar10", cifar10, kind, precision, encoder, 4096)
    for kind in both:
        add("cifar10", cifar10, kind, "float32", "resnet50")
    return found


def chosen(found: Mapping[str, Config], texts: tuple[str, ...]) -> dict[str, Config]:
    """Returns the cases whose name has one of the texts, all of them if there are none.

    Raises:
      ValueError: if there is no such case.
    """
    picked = {
        name: config
        for name, config in found.items()
        if not texts or any(text in name for text in texts)
    }
    if not picked:
        raise ValueError(f"--cases is {texts}; expected parts of: {', '.join(found)}.")
    return picked


def measure_all(found: Mapping[str, Config], options: Options) -> Iterator[Row]:
    """Yields what is measured of each case, until the time is over.

    A case that fails, as one that does not fit into the memory, is told; the others are
    measured.
    """
    clock = options.timer.clock
    start = clock()
    for name, config in found.items():
        if clock() - start > options.seconds:
            yield {"case": name, "note": "not run: no time left"}
            continue
        try:
            yield measure(name, config, options)
        except (jax.errors.JaxRuntimeError, FloatingPointError) as error:
            first, *_ = str(error).strip().splitlines()
            yield {"case": name, "note": f"failed: {first[:100]}"}


def measure(name: str, config: Config, options: Options) -> Row:
    """Returns a row of one case, on the first device."""
    begun = time.perf_counter()
    training = Training(config, jax.local_devices()[:1])
    jax.block_until_ready(training())
    compiled = time.perf_counter()
    jax.block_until_ready(training())
    one = time.perf_counter() - compiled
    count = min(max(round(SECONDS / one), 1), STEPS)
    timer = options.timer.at_most(3)
    (times,) = timer(functools.partial(training, count)) / count
    training.check_finite()
    median = float(np.median(times))
    rate = product_rate(RATES[config.precision])
    settings = training.settings
    row: Row = {
        "case": name,
        "ms": 1e3 * median,
        "min": 1e3 * float(times.min()),
        "max": 1e3 * float(times.max()),
        "n": len(times),
        "TFLOP": training.flops / 1e12,
        "of a product, %": 100 * training.flops / median / rate,
        "GB": training.memory / 1e9,
        "epoch, s": settings.derived.steps_per_epoch * median,
        "run, s": settings.derived.steps * median,
        "compiled in, s": compiled - begun,
    }
    return row
