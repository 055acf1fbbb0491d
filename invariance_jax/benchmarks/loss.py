"""NT-Xent and its gradient against PyTorch's, and in blocks of anchors.

The peer is what the released codes of SimCLR do: the matrix of all similarities, its
diagonal filled with minus infinity, and the cross-entropy of finding the other view.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.benchmarks import peers, timing
from invariance_jax.benchmarks.timing import Options, Row
from invariance_jax.losses import nt_xent
from invariance_jax.training import cost
from invariance_jax.types import Array

TEMPERATURE, TOLERANCE = 0.5, 1e-4


def time_loss(
    options: Options,
    *,
    sizes: Sequence[int] = (4096, 16384),
    features: int = 128,
    block_size: int = 512,
) -> Iterator[Row]:
    """Yields PyTorch over ours, and blocks of anchors over all of them at once.

    Ours tells the memory that it takes beside inputs and results.
    """
    for size in sizes:
        generator = np.random.default_rng(0)
        z1 = generator.normal(size=(size // 2, features)).astype(np.float32)
        z2 = z1 + generator.normal(size=z1.shape).astype(np.float32)
        whole, name = _make_ours(z1, z2, None)
        others = dict([_make_ours(z1, z2, block_size)[::-1]])
        if timing.has_torch():
            others["PyTorch"] = peers.make_nt_xent_gradient(z1, z2, TEMPERATURE)
        for other, call in others.items():
            timing.check_same("gradients", call(), whole(), TOLERANCE)
            case = f"NT-Xent and gradient, {size} projections"
            yield options.at_most(5).versus(case, (other, call), (name, whole))


def _make_ours(
    z1: np.ndarray, z2: np.ndarray, block_size: int | None
) -> tuple[Callable[[], Array], str]:
    """Returns `() -> gradient [2, B, D]`, and a name with the memory that it takes."""

    def loss(z1: Array, z2: Array) -> Array:
        losses = nt_xent(z1, z2, temperature=TEMPERATURE, block_size=block_size)
        return jnp.mean(losses)

    def gradient(z1: Array, z2: Array) -> Array:
        return jnp.stack(jax.grad(loss, argnums=(0, 1))(z1, z2))

    inputs = jax.device_put((z1, z2))
    compiled = jax.jit(gradient).lower(*inputs).compile()
    _, taken, _ = cost.memory_of(compiled)
    how = "at once" if block_size is None else f"in blocks of {block_size}"
    name = f"ours {how}, {taken / 1e6:.0f} MB"
    return lambda: compiled(*inputs), name
