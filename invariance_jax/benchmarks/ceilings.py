"""What the device can do at most: the rates of a large matrix product and of a copy."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_CALLS = 5


class Ceilings(NamedTuple):
    """Rates that were measured, the best of a few calls.

    Attributes:
      flops: floating-point operations per second of a float32 matrix product, a
        multiply-add as two.
      bytes_moved: bytes read and written per second of a copy.
    """

    flops: float
    bytes_moved: float

    def share(self, *, flops: float, bytes_moved: float, seconds: float) -> float:
        """Returns the share of the ceiling that a call reaches, by what it must do.

        Args:
          flops: operations that the call needs.
          bytes_moved: bytes that it must read and write.
          seconds: the time that it takes.

        Returns:
          The larger of both shares, 0 if neither is known.
        """
        return max(flops / self.flops, bytes_moved / self.bytes_moved) / seconds


def measure(*, size: int, copied: int) -> Ceilings:
    """Returns the ceilings of the default device.

    Args:
      size: rows and columns of the matrices.
      copied: entries of the array that is copied, float32.
    """
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    x = jnp.ones(copied)
    copy = jax.jit(lambda x: x + 1)
    return Ceilings(2 * size**3 / _best(product, a), 2 * x.nbytes / _best(copy, x))


def _best(function: Callable[[Any], Any], argument: Any) -> float:
    jax.block_until_ready(function(argument))
    times = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - start)
    return min(times)
