"""Training steps on a GPU, ours and PyTorch's: time, rate of operations, memory."""

import os
import time
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from invariance_jax.benchmarks.steps import Training, against_torch
from invariance_jax.benchmarks.timing import Options, Row, configuration, product_rate
from invariance_jax.runtime.cards import MEMORY_SHARES
from invariance_jax.settings import Config

STEPS, SECONDS = 8, 0.3  # most steps of a call; seconds that one of fewer should take

CASES = """
spirograph resnet18 512 bfloat16 penalized
spirograph resnet18 512 bfloat16 plain
spirograph resnet18 512 float32 penalized
cifar10 resnet18 512 bfloat16 penalized
spirograph resnet18 512 float32 plain
cifar10 resnet18 512 bfloat16 plain
cifar10 resnet18 512 float32 penalized
cifar10 resnet18 512 float32 plain
cifar10 resnet50 512 bfloat16 penalized
cifar10 resnet50 512 bfloat16 plain
cifar10 resnet50 512 bfloat16 penalized rematerialized
cifar10 resnet50 512 bfloat16 plain rematerialized
cifar10 resnet18 4096 bfloat16 penalized
cifar10 resnet18 4096 bfloat16 plain
cifar10 resnet18 4096 float32 penalized
cifar10 resnet18 4096 float32 plain
cifar10 resnet50 512 float32 penalized
cifar10 resnet50 512 float32 plain
cifar10 resnet50 4096 bfloat16 plain
cifar10 resnet50 4096 bfloat16 penalized
""".strip().splitlines()
"""Cases, named RUN ENCODER BATCH PRECISION KIND, the most important first.

All fit into an H200; XLA compiles the last one for minutes, as it nearly fills it.
"""


def time_gpu(options: Options) -> Iterator[Row]:
    """Yields a row for each case as soon as it is measured."""
    _check_gpu(0.92)
    yield from measure_all(chosen(CASES, options.cases), options)


def time_gpu_peers(options: Options) -> Iterator[Row]:
    """Yields PyTorch over ours: tuned in bfloat16, then the authors' code in float32.

    Run it in a process of its own: memory that one library keeps on the device is
    missing for the other.
    """
    _check_gpu(0.4)
    for precision in chosen(["bfloat16", "float32"], options.cases):
        config = configuration("spirograph")
        config.precision = precision
        yield from against_torch(options.at_most(5), config, "cuda")


def _check_gpu(share: float) -> None:
    """Gives JAX a share of the device memory; raises ValueError if there is no GPU."""
    if not {*MEMORY_SHARES} & {*os.environ}:
        os.environ[MEMORY_SHARES[0]] = str(share)
    if jax.default_backend() != "gpu":
        raise ValueError(f"this benchmark needs a GPU; found {jax.devices()}.")


def chosen(names: Iterable[str], texts: tuple[str, ...]) -> list[str]:
    """Returns the names that contain one of the texts; without texts, all names."""
    selected = [n for n in names if not texts or any(text in n for text in texts)]
    if not selected:
        raise ValueError(f"--cases is {texts}; expected parts of: {', '.join(names)}.")
    return selected


def make_config(name: str) -> Config:
    """Returns the configuration of the case with this name."""
    run, encoder, batch_size, precision, kind, *rematerialized = name.split()
    config = configuration(run, *["resnet18"] * (run == "cifar10"))
    config.encoder.name, config.encoder.rematerialize = encoder, bool(rematerialized)
    config.batch_size, config.precision = int(batch_size), precision
    config.penalty.weight *= kind == "penalized"
    return config


def measure_all(names: Iterable[str], options: Options) -> Iterator[Row]:
    """Yields a row for each case: measured, failed, or not run for lack of time."""
    clock = options.timer.clock
    end = clock() + options.seconds
    for name in names:
        if clock() > end:
            yield {"case": name, "note": "not run: no time left"}
            continue
        try:
            yield measure(name, make_config(name), options)
        except (jax.errors.JaxRuntimeError, FloatingPointError, ValueError) as error:
            first, *_ = str(error).strip().splitlines()
            yield {"case": name, "note": f"failed: {first[:100]}"}


def measure(name: str, config: Config, options: Options) -> Row:
    """Returns the row of one case, measured on the first local device."""
    start = time.perf_counter()
    training = Training(config, jax.local_devices()[:1])
    jax.block_until_ready(training())
    compiled = time.perf_counter()
    jax.block_until_ready(training())
    one_step = time.perf_counter() - compiled
    count = min(max(round(SECONDS / one_step), 1), STEPS)
    times = options.at_most(3).timer(lambda: training(count))[0] / count
    training.check_finite()
    median, derived = float(np.median(times)), training.settings.derived
    share = training.flops / median / product_rate(config.precision)
    return {
        "case": name,
        "ms": 1e3 * median,
        "min": 1e3 * float(times.min()),
        "max": 1e3 * float(times.max()),
        "n": len(times),
        "TFLOP": training.flops / 1e12,
        "% of a product's rate": 100 * share,
        "GB": training.memory / 1e9,
        "epoch, s": derived.steps_per_epoch * median,
        "run, s": derived.steps * median,
        "start, s": compiled - start,
    }
