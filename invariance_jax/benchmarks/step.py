"""Training steps against PyTorch's, plain and with the penalty.

The peer runs the authors' algorithm (`benchmarks.peers`): views of the broadcasting
renderer, the penalty by a second backward pass. Ours is the step of a configuration.
Before anything is timed, both encoders are compared: the same weights give the same
representation of the same images.
"""

import functools
import importlib
from dataclasses import replace

import jax
import numpy as np
from ml_collections import ConfigDict

from invariance_jax.benchmarks import operations, peers, torch_networks
from invariance_jax.benchmarks.penalty import check_finite, make_steps
from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.models import create_encoder
from invariance_jax.models.weights import to_torch_state_dict

TOLERANCE = 1e-3
"""Largest difference of two representations, as a share of the largest entry."""


def run(
    config: ConfigDict,
    *,
    repeats: int,
    min_seconds: float,
    device: str = "cpu",
    tuned: bool = False,
) -> list[Comparison]:
    """Returns the times of the steps of a run against PyTorch's.

    Args:
      config: a Spirograph configuration with the keys of `configs/base.py` and a
        penalty; the plain step is that of the same one with the weight 0.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.
      device: of PyTorch, "cpu" or "cuda".
      tuned: see `peers.make_torch_step`.

    Returns:
      Two comparisons, in seconds per step.

    Raises:
      ValueError: if the peer has no such encoder, computes another representation, or
        the configuration is invalid.
      FloatingPointError: if a loss stops being finite.
      ModuleNotFoundError: if PyTorch is not installed.
    """
    name, size = config.encoder.name, config.data.image_size
    if name != "mlp":
        check_encoder(name, size)
    results = []
    for weight in (0.0, config.penalty.weight):
        chosen = config.copy_and_resolve_references()
        chosen.penalty.weight = weight
        ours = make_steps(chosen, 1)
        peer = peers.make_torch_step(
            name,
            batch_size=config.batch_size,
            image_size=size,
            penalized=weight > 0,
            device=device,
            tuned=tuned,
        )
        times = alternate(ours, peer, repeats=repeats, min_seconds=min_seconds)
        check_finite(ours())
        kind = f"{name}, penalized" if weight else f"{name}, plain"
        kind = kind if device == "cpu" else f"{kind}, {config.precision}"
        torch = f"torch, {device}, tuned" if tuned else f"torch, {device}"
        found = Comparison("step", kind, torch, *times, True, "at least 1")
        flops = operations.of_step(chosen).of_batch(chosen.batch_size)
        results.append(replace(found, flops=flops))
    return results


def check_encoder(name: str, image_size: int) -> None:
    """Checks that the peer's encoder of this name is ours.

    Args:
      name: "resnet18" or "resnet50".
      image_size: S, pixels per side.

    Raises:
      ValueError: if representations of the same images differ by more than `TOLERANCE`.
    """
    torch = importlib.import_module("torch")
    generator = np.random.default_rng(0)
    images = generator.random((4, image_size, image_size, 3), np.float32)
    encoder = create_encoder(name)
    variables = jax.jit(lambda key: encoder.init(key, images, train=False))(
        jax.random.key(0)
    )
    with jax.default_matmul_precision("highest"):  # of GPUs and TPUs
        represent = jax.jit(functools.partial(encoder.apply, train=False))
        expected = represent(variables, images)
    peer = torch_networks.make_encoder(name, image_size=image_size)
    weights = to_torch_state_dict(variables)
    peer.load_state_dict({n: torch.from_numpy(np.array(w)) for n, w in weights.items()})
    with torch.inference_mode():
        found = peer.eval()(torch.from_numpy(images)).numpy()
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the {name} of the peer differs from ours by {difference:.2g} of the "
            f"largest entry; expected at most {TOLERANCE}."
        )
