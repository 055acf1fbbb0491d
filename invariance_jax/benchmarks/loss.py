"""NT-Xent and its gradient against PyTorch's, and in blocks of anchors."""

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
    """Yields blocks of anchors, and PyTorch, over our loss of all anchors at once."""
    for size in sizes:
        generator = np.random.default_rng(0)
        z1 = generator.normal(size=(size // 2, features)).astype(np.float32)
        z2 = z1 + generator.normal(size=z1.shape).astype(np.float32)
        case = f"NT-Xent and gradient, {size} projections"
        whole, *others = (_make_ours(z1, z2, block) for block in (None, block_size))
        if timing.has_torch():
            peer = peers.make_nt_xent_gradient(z1, z2, TEMPERATURE)
            others.append(("PyTorch", peer))
        for other in others:
            timing.check_same("gradients", other[1](), whole[1](), TOLERANCE)
            yield options.at_most(5).versus(case, other, whole)


def _make_ours(
    z1: np.ndarray, z2: np.ndarray, block_size: int | None
) -> tuple[str, Callable[[], Array]]:
    """Returns a name with the temporary memory, and `() -> gradient [2, B, D]`."""

    @jax.jit
    @jax.grad
    def gradient(pair: Array) -> Array:
        losses = nt_xent(*pair, temperature=TEMPERATURE, block_size=block_size)
        return jnp.mean(losses)

    pair = jnp.stack([z1, z2])
    compiled = gradient.lower(pair).compile()
    _, temporary, _ = cost.memory_of(compiled)
    how = "at once" if block_size is None else f"in blocks of {block_size}"
    return f"ours {how}, {temporary / 1e6:.0f} MB", lambda: compiled(pair)
