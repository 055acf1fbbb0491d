"""Functions of a batch, computed a few examples at a time.

The intermediate arrays (sums, patches) are several times as large as their input. Those
of a part fit in the CPU cache, and need little new memory, which is slow to allocate.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from invariance_jax.types import Array

PART_BYTES = 2**21
"""Largest size of a part of x; half or twice as much is slower."""


def map_parts(function: Callable[[Array], Array], x: Array) -> Array:
    """Returns `function(x)`, which has one row per example, computed part by part."""
    num_parts = _num_parts(x)
    if num_parts == 1:
        return function(x)
    y = jax.lax.map(function, _split(x, num_parts))
    return y.reshape(-1, *y.shape[2:])


def sum_parts(function: Callable[[Array, Array], Array], x: Array, y: Array) -> Array:
    """Returns `function(x, y)`, which is a sum over examples, computed part by part."""
    num_parts = _num_parts(x)
    if num_parts == 1:
        return function(x, y)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total + function(*part), None

    parts = _split(x, num_parts), _split(y, num_parts)
    shape = jax.eval_shape(lambda parts: function(parts[0][0], parts[1][0]), parts)
    total, _ = jax.lax.scan(add, jnp.zeros_like(shape), parts)
    return total


def _num_parts(x: Array) -> int:
    """Returns the least divisor of B with parts of at most `PART_BYTES`, or else B."""
    least = min(-(-x.size * x.dtype.itemsize // PART_BYTES), len(x))
    return next(n for n in range(max(least, 1), len(x) + 1) if len(x) % n == 0)


def _split(x: Array, num_parts: int) -> Array:
    return x.reshape(num_parts, -1, *x.shape[1:])
