"""Which examples a step sees, and where their rows come from.

The sampler of indices is a function of key and step alone, so a resumed run, on any
number of devices, sees the same examples in the same order. Batches bring the rows to
the devices: from their memory, which holds the whole set, or from the disk.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.data import Pictures
from invariance_jax.data.streams import Pending
from invariance_jax.types import Array, Key, PyTree

_ROUNDS = 32

_STEPS_AT_ONCE = 64
"""Steps of which a stream computes the indices in one call."""

Sampler = Callable[[Key, Array], Array]
"""`(key, step int32 []) -> indices int32 [B]`, of the global batch."""


class InMemory:
    """A training set of which each device holds a copy."""

    most_steps: int | None = None  # that one `load` serves; None: any number

    def __init__(self, x: PyTree, replicate: Callable[..., PyTree]):
        """Takes the examples, `[N, ...]`; `parallel.replicate` copies them later."""
        self._x, self._replicate, self._copies = x, replicate, None

    @property
    def shape(self) -> PyTree:
        """That of the set."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self._x)

    def load(
        self, step: int, devices: Sequence[jax.Device], before: PyTree = ()
    ) -> PyTree:
        """Returns what `take` needs from a step on, axis 0 the local of all devices.

        Until what the step before returned is there, no step waits.
        """
        if self._copies is None:
            self._copies = self._replicate(self._x, devices)
        return self._copies

    def take(self, loaded: PyTree, indices: Array) -> PyTree:
        """Returns the rows of a replica for a step; indices int32 `[B / replicas]`."""
        return jax.tree.map(lambda leaf: leaf[indices], loaded)

    def report(self) -> dict[str, float]:
        """Returns nothing: no step waits."""
        return {}


class Streamed:
    """A training set that is decoded while the devices compute, a batch for each step.

    Only the share of the local devices is read. Which examples these are follows from
    key and step, so that nothing has to be saved, and any step may come next.
    """

    most_steps: int | None = 1

    def __init__(
        self,
        pictures: Pictures,
        sampler: Sampler,
        key: Key,
        *,
        batch_size: int,
        num_devices: int,
        prefetch: int,
    ):
        """Takes images and the sampler of their indices; reads nothing."""
        self._pictures, self._prefetch = pictures, prefetch
        self._share = num_devices, batch_size // num_devices
        steps = jnp.arange(_STEPS_AT_ONCE, dtype=jnp.int32)
        self._sample = jax.jit(
            lambda first: jax.lax.map(lambda n: sampler(key, first + n), steps)
        )
        self._indices: dict[int, np.ndarray] = {}
        self._pending: dict[int, Pending] = {}
        self._waited = 0.0

    @property
    def shape(self) -> PyTree:
        """That of the batch of one device."""
        nothing = self._pictures.load(np.arange(0))
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((self._share[1], *a.shape[1:]), a.dtype),
            nothing,
        )

    def load(
        self, step: int, devices: Sequence[jax.Device], before: PyTree = ()
    ) -> PyTree:
        """Returns the batch of a step, and begins to decode those that follow."""
        own = [device.process_index == jax.process_index() for device in devices]
        wanted = range(step, step + self._prefetch + 1)
        self._pending = {n: p for n, p in self._pending.items() if n in wanted}
        for number in wanted:
            if number not in self._pending:
                rows = self._rows(number).reshape(self._share)[own]
                self._pending[number] = self._pictures.start(rows)
        leaves = jax.tree.leaves(before)  # ready when the devices have computed them
        pending = self._pending.pop(step)
        batch, waited = pending.wait(lambda: not all(one.is_ready() for one in leaves))
        self._waited += waited
        return batch

    def _rows(self, step: int) -> np.ndarray:
        """Returns the indices of a global batch, computed for some steps at once."""
        if step not in self._indices:
            first = step - step % _STEPS_AT_ONCE
            rows = np.asarray(self._sample(np.int32(first)))
            self._indices = dict(enumerate(rows, start=first))
        return self._indices[step]

    def take(self, loaded: PyTree, indices: Array) -> PyTree:
        """Returns the batch, which holds these rows already."""
        return loaded

    def report(self) -> dict[str, float]:
        """Returns the seconds that steps have waited, and how many are corrupt."""
        waited, self._waited = self._waited, 0.0
        return {"waited": waited, "corrupt": float(self._pictures.num_corrupt)}


Batches = InMemory | Streamed
"""The rows of a training set, batch by batch."""


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

    The swap-or-not shuffle of Hoang, Morris and Rogaway (2012): each round pairs all
    positions at random, and tosses a coin for each pair that changes places. Unlike
    sorting random numbers it needs no array of num_examples, so it is cheap inside a
    step, and its number of rounds is known, so that no device waits for the host.
    """
    sum_key, coin_key = jax.random.split(key)
    sums = jax.random.randint(sum_key, (_ROUNDS,), 0, num_examples, jnp.int32)
    coins = jax.random.bits(coin_key, (_ROUNDS,), jnp.uint32)
    for total, coin in zip(sums, coins, strict=True):
        partners = total - positions
        partners = jnp.where(partners < 0, partners + num_examples, partners)
        pairs = jnp.maximum(positions, partners).astype(jnp.uint32)
        changes = (_mix(pairs ^ coin) & 1) == 1
        positions = jnp.where(changes, partners, positions)
    # Or XLA would shuffle anew for every pixel that it takes.
    return jax.lax.optimization_barrier(positions)


def _mix(x: Array) -> Array:
    """Returns the 32-bit finalizer of MurmurHash3: every output bit depends on all."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
