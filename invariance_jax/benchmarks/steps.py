"""Training steps against PyTorch's, plain and with the penalty.

The peer runs the authors' algorithm: views of the broadcasting renderer, the penalty by
a second backward pass. Ours is the step of a configuration. Before anything is timed,
both encoders are compared: the same weights give the same representation.
"""

import copy
import functools
from collections.abc import Iterator

import jax
import numpy as np

from invariance_jax.benchmarks import peers
from invariance_jax.benchmarks.runs import Training, configuration, describe
from invariance_jax.benchmarks.timing import (
    Options,
    Row,
    check_same,
    compare,
    product_rate,
)
from invariance_jax.models import create_encoder
from invariance_jax.models.weights import to_torch_state_dict
from invariance_jax.settings import Config


def run(options: Options, *, resnet_batch: int = 64) -> Iterator[Row]:
    """Yields PyTorch over ours: the run of the configuration, and of the ResNet-18."""
    yield from against_torch(options, options.config)
    resnet = configuration("spirograph")
    resnet.batch_size = resnet_batch
    few = options._replace(timer=options.timer.at_most(5))
    yield from against_torch(few, resnet)


def against_torch(
    options: Options, config: Config, *, device: str = "cpu", tuned: bool = False
) -> Iterator[Row]:
    """Yields PyTorch over ours, plain and penalized.

    Args:
      options: see there.
      config: a Spirograph run with a penalty.
      device: of PyTorch, "cpu" or "cuda".
      tuned: see `peers.make_step`.

    Raises:
      ValueError: if the peer has no such encoder, or computes another representation.
      FloatingPointError: if a loss stops being finite.
    """
    name, size = config.encoder.name, config.data.image_size
    assert size is not None
    if name != "mlp":
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
        share = ours.flops / np.median(seconds) / product_rate(config.precision)
        yield compare(
            f"{describe(config)}, {kind}",
            ("PyTorch, tuned" if tuned else "PyTorch", theirs),
            ("ours", seconds),
            f"target 1; ours at {share:.0%} of the rate of a matrix product",
        )


def check_encoder(name: str, image_size: int) -> None:
    """Checks that the peer's encoder, "resnet18" or "resnet50", is ours.

    Raises:
      ValueError: if representations of the same images differ.
    """
    generator = np.random.default_rng(0)
    images = generator.random((4, image_size, image_size, 3), np.float32)
    encoder = create_encoder(name)
    init = jax.jit(functools.partial(encoder.init, train=False))
    variables = init(jax.random.key(0), images)
    with jax.default_matmul_precision("highest"):  # of GPUs and TPUs
        represent = jax.jit(functools.partial(encoder.apply, train=False))
        expected = represent(variables, images)
    found = peers.represent(name, to_torch_state_dict(variables), images)
    check_same("representations", found, expected, 1e-3)
