"""NT-Xent and its gradient against PyTorch's, and in blocks of anchors.

The peer is what the released codes of SimCLR do: the matrix of all similarities, its
diagonal filled with minus infinity, and the cross-entropy of finding the other view.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.losses import nt_xent
from invariance_jax.types import Array

TEMPERATURE = 0.5

TOLERANCE = 1e-4
"""Largest difference of two gradients, as a share of the largest entry."""


def run(
    *,
    projections: int,
    features: int,
    block_size: int,
    repeats: int,
    min_seconds: float,
) -> list[Comparison]:
    """Returns the times of the loss with its gradient against its peer, or itself.

    Args:
      projections: 2B, of both views together.
      features: D.
      block_size: anchors of a block.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Returns:
      A comparison with PyTorch where it is installed, then that of blocks with all
      similarities at once. What is named ours tells the memory that it takes beside
      inputs and results.

    Raises:
      ValueError: if the peer or the blocks have another gradient.
    """
    generator = np.random.default_rng(0)
    shape = (projections // 2, features)
    z1 = generator.normal(size=shape).astype(np.float32)
    z2 = (z1 + generator.normal(size=shape)).astype(np.float32)
    (whole, text), (blocks, blocks_text) = (
        _ours(z1, z2, size) for size in (None, block_size)
    )
    calls = [whole, blocks]
    if importlib.util.find_spec("torch"):
        calls.append(torch_peer(z1, z2))
    for call in calls[1:]:
        check_equal(np.asarray(call()), np.asarray(whole()))
    times = alternate(*calls, repeats=repeats, min_seconds=min_seconds)
    name = f"loss of {projections}"
    results = [
        Comparison(name, f"at once, {text}", "torch, cpu", times[0], peer, True)
        for peer in times[2:]
    ]
    results.append(
        Comparison(name, f"blocks, {blocks_text}", "at once", times[1], times[0], False)
    )
    # One product of [2B, D] and [D, 2B] forward and two backward.
    flops = 6.0 * projections**2 * features
    return [replace(result, flops=flops) for result in results]


def _ours(
    z1: np.ndarray, z2: np.ndarray, block_size: int | None
) -> tuple[Callable[[], Array], str]:
    """Returns a function that computes the gradient, and the memory that it takes."""

    def loss(z1: Array, z2: Array) -> Array:
        losses = nt_xent(z1, z2, temperature=TEMPERATURE, block_size=block_size)
        return jnp.mean(losses)

    @jax.jit
    def gradient(z1: Array, z2: Array) -> Array:
        return jnp.stack(jax.grad(loss, argnums=(0, 1))(z1, z2))

    inputs = jax.device_put((z1, z2))
    compiled = gradient.lower(*inputs).compile()
    size = compiled.memory_analysis().temp_size_in_bytes
    return lambda: compiled(*inputs), f"{size / 1e6:.0f} MB"


def torch_peer(z1: np.ndarray, z2: np.ndarray) -> Callable[[], Any]:
    """Returns a function that computes the gradient with PyTorch, on the CPU.

    Args:
      z1: float32 `[B, D]`.
      z2: float32 `[B, D]`.

    Returns:
      `() -> [2, B, D]`, the gradients of the mean loss.
    """
    torch = importlib.import_module("torch")
    inputs = [torch.from_numpy(z.copy()).requires_grad_() for z in (z1, z2)]
    other = (torch.arange(2 * len(z1)) + len(z1)) % (2 * len(z1))

    def gradient() -> Any:
        z = torch.nn.functional.normalize(torch.cat(inputs))
        logits = z @ z.T / TEMPERATURE
        logits.fill_diagonal_(-torch.inf)
        loss = torch.nn.functional.cross_entropy(logits, other)
        return torch.stack(torch.autograd.grad(loss, inputs))

    return gradient


def check_equal(found: np.ndarray, expected: np.ndarray) -> None:
    """Checks that two gradients are the same.

    Args:
      found: any shape.
      expected: the same shape, ours.

    Raises:
      ValueError: if they differ by more than `TOLERANCE` of the largest entry.
    """
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the gradients differ by {difference:.2g} of the largest entry; expected "
            f"at most {TOLERANCE}."
        )
