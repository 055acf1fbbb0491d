"""Batches computed some examples at a time, so that what is between stays in a cache.

Also for the memory's sake: the sums and patches of a whole batch take several times as
much as the batch, and new memory is slow to get.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from invariance_jax.types import Array

PART_BYTES = 2**21
"""Of the first array that is taken at a time; half or twice as much takes longer."""


def map_parts(function: Callable[[Array], Array], x: Array) -> Array:
    """Returns `function(x)`, a row for each example, from some examples at a time."""
    parts = _num_parts(x)
    if parts == 1:
        return function(x)
    y = jax.lax.map(function, _split(x, parts))
    return y.reshape(-1, *y.shape[2:])


def sum_parts(function: Callable[[Array, Array], Array], x: Array, y: Array) -> Array:
    """Returns `function(x, y)`, a sum over examples, from some of them at a time."""
    parts = _num_parts(x)
    if parts == 1:
        return function(x, y)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total + function(*part), None

    both = _split(x, parts), _split(y, parts)
    shape = jax.eval_shape(lambda both: function(both[0][0], both[1][0]), both)
    total, _ = jax.lax.scan(add, jnp.zeros(shape.shape, shape.dtype), both)
    return total


def _num_parts(x: Array) -> int:
    """Returns the least divisor of B that makes the parts of at most so many bytes."""
    wanted = min(-(-x.size * x.dtype.itemsize // PART_BYTES), len(x))
    return next(n for n in range(max(wanted, 1), len(x) + 1) if len(x) % n == 0)


def _split(x: Array, parts: int) -> Array:
    return x.reshape(parts, -1, *x.shape[1:])
