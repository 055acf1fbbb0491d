"""Training steps: against PyTorch's, for each form of the penalty, on several devices.

The expected time of a penalized step is 1.5 plain steps. A plain step costs six forward
passes: two views forward, and twice that backward. The penalty adds a forward-mode
derivative of the first view and its backward pass: three more. A penalty in every n-th
step adds 3 / n on average. Two averaged views on each side cost twelve.

Simulated devices share the cores of one machine, so more devices are not faster.
"""

import copy
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np

from invariance_jax.benchmarks import timing
from invariance_jax.benchmarks.timing import Options, Row
from invariance_jax.runtime.devices import all_devices, simulate
from invariance_jax.settings import (
    KEYS,
    Config,
    change,
    check_devices,
    flatten,
    resolve,
)
from invariance_jax.sweeps.variants import make_variants
from invariance_jax.training import cost, parallel
from invariance_jax.training.batches import InMemory
from invariance_jax.training.build import build, initial_state
from invariance_jax.training.step import Metrics

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"penalty.weight": 0.0},
    "penalized": {},
    "penalty in every second step": {"penalty.every_steps": 2},
    "penalty in every fourth step": {"penalty.every_steps": 4},
    "consistency": {
        "penalty.kind": "consistency",
        "penalty.directions": 1,
        "penalty.parameters": (),
    },
    "two views averaged": {"penalty.weight": 0.0, "average_views": 2},
}
"""Form of the penalty -> the keys that it changes."""

DEVICE_COUNTS = (2, 4, 8)  # simulated devices that are compared to one device

_PEER_PENALTY: dict[str, Any] = {
    "penalty.weight": 0.3,
    "penalty.example_limit": 0.5,
    "penalty.limit_shape": "hard",
    "penalty.normalization": "l2",
    "penalty.parameters": (),
}
"""Settings of the penalty that PyTorch's MLP is trained with."""

_OF_PEER = """
average_views more_views microbatches similarity_block deterministic
method.name method.kwargs batchnorm.group_size optimizer.name optimizer.clip_norm
encoder.width encoder.depth encoder.stem encoder.final encoder.projection
encoder.rematerialize data.name data.targets data.num_points data.normalization
penalty.kind penalty.at penalty.every_steps penalty.directions penalty.parameters
penalty.normalization penalty.batch_statistics
""".split()
"""Keys that must have their defaults, which PyTorch's step is written for."""

_OF_MLP = {"optimizer.name": "adamw", "encoder.final": "norm_relu"}
"""Those of them that have other values for PyTorch's MLP."""


class Training:
    """The compiled training steps of a run; image data sets are replaced by noise."""

    def __init__(self, config: Config, devices: Sequence[jax.Device] = ()):
        """Compiles the steps of a run on the given devices, by default on all."""
        self.settings, devices = resolve(config), devices or all_devices()
        check_devices(self.settings, len(devices))
        parts, data = build(self.settings), self.settings.data
        if data.name == "spirograph":
            x = parts.task.examples("train").x
        else:
            draw = functools.partial(np.random.default_rng(0).integers, 1, 256)
            zeros = parts.task.stand_ins(data.train_examples or 1)
            x = jax.tree.map(lambda leaf: draw(leaf.shape, leaf.dtype), zeros)
        batches = InMemory(x, parallel.replicate)
        self._program = cost.compile_train(parts, batches, devices)
        self.memory = sum(cost.memory_of(self._program))
        self.flops = cost.count_operations(parts)
        self._state = parallel.replicate(initial_state(parts), devices)
        self._data = batches.load(0, devices)
        self._key = jax.random.key(self.settings.seed)
        self._sums: Metrics = {}

    def __call__(self, num_steps: int = 1) -> Metrics:
        """Runs the next `num_steps` steps in one call; returns the sums of metrics."""
        self._state, self._sums = self._program(
            self._state, self._key, self._data, np.int32(num_steps)
        )
        return self._sums

    def check_finite(self) -> None:
        """Raises FloatingPointError if the loss of the last call is not finite."""
        loss = float(parallel.one_replica(self._sums)["loss"][0])
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss}; expected a finite loss, without which the times "
                "mean nothing. Lower optimizer.learning_rate or penalty.weight."
            )


def describe(config: Config) -> str:
    """Returns the case of a row: encoder, batch size and precision of the step."""
    return f"step, {config.encoder.name}, batch {config.batch_size}, {config.precision}"


def time_steps(options: Options, *, resnet_batch: int = 64) -> Iterator[Row]:
    """Yields PyTorch over ours, for the configured run and for the ResNet-18."""
    yield from against_torch(options, options.config)
    resnet = timing.configuration("spirograph")
    resnet.precision, resnet.batch_size = "float32", resnet_batch
    yield from against_torch(options.at_most(5), resnet)


def check(names: Sequence[str], options: Options) -> None:
    """Raises ValueError if a named benchmark cannot time the configured run."""
    weight = options.config.penalty.weight
    on_cpu = [name for name in ("render", "steps", "loss", "probe") if name in names]
    if on_cpu and jax.default_backend() != "cpu":
        raise ValueError(
            f"the peers of {', '.join(on_cpu)} run on the CPU, and JAX does not; "
            "expected JAX_PLATFORMS=cpu in the environment."
        )
    if "steps" in names:
        _like_torch(options.config, "cpu")
    if "penalty" in names:
        if not (weight > 0 or options.sweep):
            raise ValueError(
                f"penalty.weight is {weight!r}; expected a positive number, since this "
                "benchmark times the penalized step."
            )
        make_variants(options.config, options.sweep or FORMS)
    if "scaling" in names:
        check_devices(resolve(options.config), max(DEVICE_COUNTS))


def _like_torch(config: Config, device: str) -> Config:
    """Returns a configuration of PyTorch's step; ValueError if it has no such step."""
    config, is_mlp = copy.deepcopy(config), config.encoder.name == "mlp"
    for key, value in _PEER_PENALTY.items() if is_mlp else ():
        change(config, key, value)
    found = flatten(config)
    expected: dict[str, Any] = {"encoder.name": "mlp" if is_mlp else "resnet18"}
    expected |= {key: KEYS[key].default for key in _OF_PEER}
    expected |= _OF_MLP if is_mlp else {}
    expected |= {"precision": "float32"} if device == "cpu" else {}
    wrong = {k: found[k] for k, value in expected.items() if found[k] != value}
    if wrong:
        needed = {key: expected[key] for key in wrong}
        raise ValueError(f"PyTorch's step needs {needed}; found {wrong}.")
    return config


def against_torch(
    options: Options, config: Config, device: str = "cpu"
) -> Iterator[Row]:
    """Yields PyTorch's step over ours, both on one device, plain and penalized.

    In bfloat16, which the authors did not use, PyTorch's step is tuned for GPUs.
    """
    # Imported here, so that `gpu` runs in a process without PyTorch.
    from invariance_jax.benchmarks import peers

    config, tuned = _like_torch(config, device), config.precision == "bfloat16"
    encoder, size = config.encoder.name, config.data.image_size
    assert size is not None
    if encoder != "mlp":
        peers.check_encoder(encoder, size)
    penalized = config.penalty.weight or 0.01  # any weight takes the same time
    for kind, weight in (("plain", 0.0), ("penalized", penalized)):
        config.penalty.weight = weight
        ours = Training(config, jax.local_devices()[:1])  # as many as the peer has
        first, second = options.timer(peers.make_step(config, size, device), ours)
        ours.check_finite()
        share = ours.flops / np.median(second) / timing.product_rate(config.precision)
        yield timing.compare(
            f"{describe(config)}, {kind}",
            ("PyTorch, tuned" if tuned else "PyTorch", first),
            ("ours", second),
            f"target 1; ours at {share:.0%} of the rate of a matrix product",
        )


def time_penalty(options: Options) -> Iterator[Row]:
    """Yields each variant of a sweep, or form of the penalty, over the first one."""
    runs = {}
    for variant in make_variants(options.config, options.sweep or FORMS).values():
        run = Training(variant.config)
        runs[f"{variant.label}, {run.memory / 1e6:.0f} MB"] = run
    # Calls of 4 steps: with a penalty in every fourth step, each call has exactly one.
    times = _per_step(options, [*runs.values()], [4] * len(runs))
    base, *others = zip(runs, times, strict=True)
    for other in others:
        note = "target: at most 1.5" if other[0].startswith("penalized,") else ""
        yield timing.compare(describe(options.config), other, base, note)


def time_scaling(
    options: Options, *, counts: Sequence[int] = DEVICE_COUNTS, num_steps: int = 8
) -> Iterator[Row]:
    """Yields several devices over one device, and one step per call over num_steps."""
    devices, steps = [1, 1, *counts], [1, *[num_steps] * (1 + len(counts))]
    # A new process, since the number of devices of this one is fixed.
    context = get_context("spawn")
    with ProcessPoolExecutor(1, context, simulate, (max(counts),)) as pool:
        measured = pool.submit(_on_devices, options.at_most(5), devices, steps)
        single, one, *others = measured.result()
    case = describe(options.config)
    for count, seconds in zip(counts, others, strict=True):
        yield timing.compare(case, (f"{count} devices", seconds), ("1 device", one))
    several = f"{num_steps} steps in one call"
    yield timing.compare(case, ("a call for each step", single), (several, one))


def _on_devices(
    options: Options, devices: Sequence[int], num_steps: Sequence[int]
) -> np.ndarray:
    """Returns the seconds of a step `[len(devices), R]` for each number of devices."""
    timing.keep_freed_memory()
    runs = [Training(options.config, all_devices(count)) for count in devices]
    return _per_step(options, runs, num_steps)


def _per_step(
    options: Options, runs: Sequence[Training], num_steps: Sequence[int]
) -> np.ndarray:
    """Returns the seconds of a step `[len(runs), R]`, timed in calls of num_steps."""
    calls = map(functools.partial, runs, num_steps)
    times = options.timer(*calls) / np.array(num_steps)[:, None]
    for run in runs:
        run.check_finite()
    return times
