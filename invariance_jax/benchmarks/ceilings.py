"""What the device can do at most: the rates of a large matrix product and of a copy."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_CALLS = 5


class Ceilings(NamedTuple):
    """Rates that were measured, the best of a few calls.

    Attributes:
      flops: floating-point operations per second of a matrix product, a multiply-add
        as two.
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


def measure(
    *, size: int, copied: int, precision: str = "highest", products: int = 1
) -> Ceilings:
    """Returns the ceilings of the default device.

    Args:
      size: rows and columns of the matrices.
      copied: entries of the array that is copied, float32.
      precision: of the product: "bfloat16", of matrices that are; of float32 ones
        "highest", or "default", which is what a step uses.
      products: of one call, each of the result of the one before.
    """
    narrow = precision == "bfloat16"
    dtype = jnp.bfloat16 if narrow else jnp.float32
    # Random: a device draws less power for ones, and is faster than it is for a step.
    a = jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5
    how = "default" if narrow else precision

    @jax.jit
    def product(a: Any) -> Any:
        multiply = functools.partial(jnp.matmul, a, precision=how)
        return jax.lax.fori_loop(0, products, lambda _, b: multiply(b), a)

    x = jnp.ones(copied)
    copy = jax.jit(lambda x: x + 1)
    flops = 2 * size**3 * products
    return Ceilings(flops / _best(product, a), 2 * x.nbytes / _best(copy, x))


def _best(function: Callable[[Any], Any], argument: Any) -> float:
    jax.block_until_ready(function(argument))
    times = []
    for _ in range(_CALLS):
        start = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - start)
    return min(times)
