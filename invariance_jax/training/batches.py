"""Which examples a step sees, and where their rows come from.

The sampler of indices is a function of key and step alone, so a resumed run, on any
number of devices, sees the same examples in the same order. Batches bring the rows to
the devices: here from their memory, which holds the whole set.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.types import Array, Key, PyTree

_FEISTEL_ROUNDS = 6

Sampler = Callable[[Key, Array], Array]
"""`(key, step int32 []) -> indices int32 [B]`, of the global batch."""


class Batches(Protocol):
    """The rows of a training set, batch by batch."""

    @property
    def shape(self) -> PyTree:
        """What `load` returns of one device, leaves `jax.ShapeDtypeStruct`."""
        ...

    def load(self, step: int, count: int, devices: Sequence[jax.Device]) -> PyTree:
        """Returns what `take` needs for some steps, axis 0 the local devices.

        Args:
          step: the first of them.
          count: how many.
          devices: the devices of all processes.
        """
        ...

    def take(self, loaded: PyTree, indices: Array, position: Array) -> Array:
        """Returns the rows of a replica for one step.

        Args:
          loaded: what `load` returned, of this device.
          indices: int32 `[B / replicas]`, its examples.
          position: int32 `[]`, of the step among those that were loaded.
        """
        ...


class InMemory:
    """A training set of which each device holds a copy."""

    def __init__(self, x: np.ndarray, replicate: Callable[..., Any]):
        """Takes the examples, `[N, ...]`; `parallel.replicate` copies them later."""
        self._x, self._replicate, self._copies = x, replicate, None

    @property
    def shape(self) -> jax.ShapeDtypeStruct:
        """That of the set."""
        return jax.ShapeDtypeStruct(self._x.shape, self._x.dtype)

    def load(self, step: int, count: int, devices: Sequence[jax.Device]) -> PyTree:
        """Returns the copies of the whole set."""
        if self._copies is None:
            self._copies = self._replicate(self._x, devices)
        return self._copies

    def take(self, loaded: Array, indices: Array, position: Array) -> Array:
        """Returns the rows with these indices."""
        return loaded[indices]


def make_sampler(*, num_examples: int, batch_size: int) -> Sampler:
    """Returns the sampler of epochs over random permutations.

    The remainder of a permutation is left out, another one in each epoch.
    """
    steps_per_epoch = num_examples // batch_size

    def sample(key: Key, step: Array) -> Array:
        order_key, _ = jax.random.split(key)  # the other one draws the views
        epoch, within = step // steps_per_epoch, step % steps_per_epoch
        positions = within * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        epoch_key = jax.random.fold_in(order_key, epoch)
        return shuffle(epoch_key, positions, num_examples=num_examples)

    return sample


def shuffle(key: Key, positions: Array, *, num_examples: int) -> Array:
    """Returns where a random permutation of range(N), N <= 2**30, sends the positions.

    A Feistel network permutes the smallest power of 4 that is large enough, and is
    applied again to what falls outside (cycle walking). Unlike sorting random numbers
    it needs no array of num_examples, so it is cheap inside a step.
    """
    half_bits = max(1, (max(num_examples - 1, 1).bit_length() + 1) // 2)
    mask = jnp.uint32(2**half_bits - 1)
    round_keys = jax.random.bits(key, (_FEISTEL_ROUNDS,), jnp.uint32)

    def permute(values: Array) -> Array:
        left, right = values >> half_bits, values & mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & mask)
        return (left << half_bits) | right

    def walk(values: Array) -> Array:
        return jnp.where(values >= num_examples, permute(values), values)

    values = permute(positions.astype(jnp.uint32))
    values = jax.lax.while_loop(lambda v: jnp.any(v >= num_examples), walk, values)
    return values.astype(jnp.int32)


def _mix(x: Array) -> Array:
    """Returns the 32-bit finalizer of MurmurHash3: every output bit depends on all."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
