"""Training steps: against PyTorch's, in the forms of the penalty, on several devices.

PyTorch runs the authors' algorithm: views of the broadcasting renderer, the penalty by
a second backward pass. Ours are the steps of a real run, mapped over the devices. The
penalty adds a forward-mode derivative to the first of two views, and its share of the
backward pass: of six parts (two views forward, and twice that backward) three more,
hence 1.5. One step in n needs an n-th of that; two averaged views on each side twelve.

Simulated devices share the cores of one machine, so that more of them are not faster:
what is seen is the price of dividing the batch, the collectives and the work that every
device does for all of it.
"""

import copy
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np

from invariance_jax.benchmarks import peers, timing
from invariance_jax.benchmarks.runs import Training
from invariance_jax.benchmarks.timing import Options, Row
from invariance_jax.models import create_encoder
from invariance_jax.models.weights import to_torch_state_dict
from invariance_jax.runtime.devices import all_devices, simulate
from invariance_jax.settings import Config, change
from invariance_jax.sweeps.variants import make_variants

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
"""Name -> what it changes in the configuration."""

_OF_PEER: dict[str, Any] = {
    "penalty.weight": 0.3,
    "penalty.example_limit": 0.5,
    "penalty.limit_shape": "hard",
    "penalty.normalization": "l2",
    "penalty.parameters": (),
}
"""The penalty of the MLP in PyTorch."""


def describe(config: Config) -> str:
    """Returns what the time of a step depends on most, as the case of a row."""
    encoder = config.encoder.name
    return f"step, {encoder}, batch {config.batch_size}, {config.precision}"


def time_steps(options: Options, *, resnet_batch: int = 64) -> Iterator[Row]:
    """Yields PyTorch over ours: the run of the configuration, and of the ResNet-18."""
    yield from against_torch(options, options.config)
    resnet = timing.configuration("spirograph")
    resnet.precision, resnet.batch_size = "float32", resnet_batch
    yield from against_torch(options.at_most(5), resnet)


def against_torch(
    options: Options, config: Config, *, device: str = "cpu", tuned: bool = False
) -> Iterator[Row]:
    """Yields PyTorch on a device over ours, plain and penalized.

    Before anything is timed, the same weights must give the same representation.
    """
    encoder, size = config.encoder, config.data.image_size
    name = encoder.name
    own = encoder.width, encoder.depth, encoder.stem
    if config.data.name != "spirograph" or own != (None, None, "cifar"):
        raise ValueError(
            "PyTorch's step is that of Spirograph and of encoders of their own size; "
            f"found data.name = {config.data.name!r}, encoder.width, depth, stem {own}."
        )
    assert size is not None
    if name == "mlp":
        config = copy.deepcopy(config)
        for key, value in _OF_PEER.items():
            change(config, key, value)
    else:
        check_encoder(name, size)
    for kind, weight in (("plain", 0.0), ("penalized", config.penalty.weight)):
        chosen = copy.deepcopy(config)
        chosen.penalty.weight = weight
        ours = Training(chosen)
        peer = peers.make_step(
            name,
            batch_size=config.batch_size,
            image_size=size,
            penalized=weight > 0,
            device=device,
            tuned=tuned,
        )
        theirs, seconds = options.timer(peer, ours)
        ours.check_finite()
        share = ours.flops / np.median(seconds) / timing.product_rate(config.precision)
        yield timing.compare(
            f"{describe(config)}, {kind}",
            ("PyTorch, tuned" if tuned else "PyTorch", theirs),
            ("ours", seconds),
            f"target 1; ours at {share:.0%} of the rate of a matrix product",
        )


def check_encoder(name: str, image_size: int) -> None:
    """Refuses a peer whose ResNet gives other representations than ours."""
    generator = np.random.default_rng(0)
    images = generator.random((4, image_size, image_size, 3), np.float32)
    encoder = create_encoder(name)
    init = jax.jit(functools.partial(encoder.init, train=False))
    variables = init(jax.random.key(0), images)
    with jax.default_matmul_precision("highest"):  # of GPUs and TPUs
        represent = jax.jit(functools.partial(encoder.apply, train=False))
        expected = represent(variables, images)
    found = peers.represent(name, to_torch_state_dict(variables), images)
    timing.check_same("representations", found, expected, 1e-3)


def time_penalty(options: Options, *, num_steps: int = 4) -> Iterator[Row]:
    """Yields variants of the step over the first one, in calls of a multiple of 4.

    They are those of a sweep, or the forms of the penalty; each tells its memory.
    """
    weight = options.config.penalty.weight
    if not (weight > 0 or options.sweep):
        raise ValueError(
            f"penalty.weight is {weight!r}; expected a positive number, since the "
            "penalized step is what is timed."
        )
    runs = {}
    for one in make_variants(options.config, options.sweep or FORMS).values():
        run = Training(one.config)
        runs[f"{one.label}, {run.memory / 1e6:.0f} MB"] = run
    (first, base), *others = zip(
        runs, _per_step(options, [*runs.values()], num_steps), strict=True
    )
    for name, seconds in others:
        note = "target: at most 1.5" if name.startswith("penalized,") else ""
        yield timing.compare(
            describe(options.config), (name, seconds), (first, base), note
        )


def _per_step(
    options: Options, runs: Sequence[Training], *num_steps: int
) -> np.ndarray:
    """Returns the seconds of a step of each run, in calls of as many steps."""
    counts = np.broadcast_to(num_steps, len(runs))
    calls = (functools.partial(r, int(n)) for r, n in zip(runs, counts, strict=True))
    times = options.timer(*calls) / counts[:, None]
    for each in runs:
        each.check_finite()
    return times


def time_scaling(
    options: Options, *, counts: Sequence[int] = (2, 4, 8), num_steps: int = 8
) -> Iterator[Row]:
    """Yields several devices over one at the same batch, and calls of one step."""
    context, most = get_context("spawn"), max(counts)
    # In a process of its own, since the devices of this one are what they are.
    with ProcessPoolExecutor(
        1, mp_context=context, initializer=simulate, initargs=(most,)
    ) as pool:
        devices, steps = (1, 1, *counts), (1, *[num_steps] * (1 + len(counts)))
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
    timing.keep_freed_memory()
    every = [all_devices(count) for count in devices]
    return _per_step(options, [Training(options.config, d) for d in every], *num_steps)
