"""Which examples a step sees, and where their rows come from.

The sampler of indices is a pure function of key and step, so a resumed run, on any
number of devices, sees the same examples in the same order. `InMemory` takes the rows
from a copy of the whole set on each device, `Streamed` decodes them from the disk.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.data import Pictures, limits
from invariance_jax.data.streams import Pending
from invariance_jax.types import Array, Key, PyTree

_ROUNDS = 32  # of the swap-or-not shuffle

_STEPS_AT_ONCE = 64
"""Number of steps whose indices a stream computes in one call."""

Sampler = Callable[[Key, Array], Array]
"""`(key, step int32 []) -> indices int32 [B]` of the global batch."""


class InMemory:
    """A training set of which each device holds a copy."""

    loads_each_step = False  # one `load` serves any number of steps

    def __init__(self, x: PyTree, replicate: Callable[..., PyTree]):
        """Stores the examples, `[N, ...]`; the first `load` replicates them."""
        self._x, self._replicate, self._copies = x, replicate, None

    @property
    def shape(self) -> PyTree:
        """Shapes and dtypes of the data set."""
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), self._x)

    def load(
        self, step: int, devices: Sequence[jax.Device], before: PyTree = ()
    ) -> PyTree:
        """Returns a copy of the examples per local device (axis 0), for all steps."""
        if self._copies is None:
            self._copies = self._replicate(self._x, devices)
        return self._copies

    def take(self, loaded: PyTree, indices: Array) -> PyTree:
        """Returns one replica's rows of a batch; indices int32 `[B / replicas]`."""
        return jax.tree.map(lambda leaf: leaf[indices], loaded)

    def report(self) -> dict[str, float]:
        """Returns {}: no step waits for data."""
        return {}


class Streamed:
    """A training set that is decoded while the devices compute, one batch per step.

    Each process reads only the share of its devices. Key and step determine the
    indices: no state has to be saved, and `load` accepts any step next.
    """

    loads_each_step = True
    ahead: int  # bytes of a batch and of those that this process decodes before it

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
        """Stores the images and the sampler of their indices; reads no image."""
        count = (prefetch + 1) * batch_size // jax.process_count()
        self.ahead = count * pictures.store.image_bytes
        what, advice = f"data.prefetch: the next {count} images", "lower data.prefetch"
        limits.memory(what, self.ahead, advice=f"{advice} or batch_size")
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
        """Shapes and dtypes of the batch of one device."""
        empty = self._pictures.load(np.arange(0))
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct((self._share[1], *a.shape[1:]), a.dtype),
            empty,
        )

    def load(
        self, step: int, devices: Sequence[jax.Device], before: PyTree = ()
    ) -> PyTree:
        """Returns the batch of a step, and starts to decode the batches after it.

        before: results of the previous step. Waiting counts only after these are ready.
        """
        is_local = [device.process_index == jax.process_index() for device in devices]
        wanted = range(step, step + self._prefetch + 1)
        self._pending = {n: p for n, p in self._pending.items() if n in wanted}
        for number in wanted:
            if number not in self._pending:
                rows = self._batch_indices(number).reshape(self._share)[is_local]
                self._pending[number] = self._pictures.start(rows)
        leaves = jax.tree.leaves(before)  # ready once the devices have computed them
        pending = self._pending.pop(step)
        batch, waited = pending.wait(lambda: not all(a.is_ready() for a in leaves))
        self._waited += waited
        return batch

    def _batch_indices(self, step: int) -> np.ndarray:
        """Returns the indices of a global batch, computed for several steps at once."""
        if step not in self._indices:
            first = step - step % _STEPS_AT_ONCE
            indices = np.asarray(self._sample(np.int32(first)))
            self._indices = dict(enumerate(indices, start=first))
        return self._indices[step]

    def take(self, loaded: PyTree, indices: Array) -> PyTree:
        """Returns the batch as loaded: its rows are those of the indices already."""
        return loaded

    def report(self) -> dict[str, float]:
        """Returns seconds waited since the last call, and a count of corrupt images."""
        waited, self._waited = self._waited, 0.0
        return {"waited": waited, "corrupt": float(self._pictures.num_corrupt)}


Batches = InMemory | Streamed
"""The rows of a training set, batch by batch."""


def make_sampler(*, num_examples: int, batch_size: int) -> Sampler:
    """Returns a sampler: the full batches of a new random permutation in each epoch."""
    steps_per_epoch = num_examples // batch_size

    def sample(key: Key, step: Array) -> Array:
        order_key, _ = jax.random.split(key)  # the second draws the views
        epoch, within = step // steps_per_epoch, step % steps_per_epoch
        positions = within * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        epoch_key = jax.random.fold_in(order_key, epoch)
        return shuffle(epoch_key, positions, num_examples=num_examples)

    return sample


def shuffle(key: Key, positions: Array, *, num_examples: int) -> Array:
    """Returns the entries at positions of a random permutation of range(N), N <= 2**30.

    The swap-or-not shuffle of Hoang, Morris and Rogaway (2012): each round pairs all
    positions at random, and swaps each pair with probability 1/2. Unlike a sort of
    random numbers it needs no array of num_examples, so it is cheap inside a step. The
    number of rounds is constant, so no device waits for the host.
    """
    sum_key, coin_key = jax.random.split(key)
    sums = jax.random.randint(sum_key, (_ROUNDS,), 0, num_examples, jnp.int32)
    coins = jax.random.bits(coin_key, (_ROUNDS,), jnp.uint32)
    for pair_sum, coin in zip(sums, coins, strict=True):
        partners = pair_sum - positions
        partners = jnp.where(partners < 0, partners + num_examples, partners)
        pairs = jnp.maximum(positions, partners).astype(jnp.uint32)
        is_swapped = (_mix(pairs ^ coin) & 1) == 1
        positions = jnp.where(is_swapped, partners, positions)
    # Without it XLA would repeat the shuffle for every pixel that it gathers.
    return jax.lax.optimization_barrier(positions)


def _mix(x: Array) -> Array:
    """Returns MurmurHash3's finalizer of x: every output bit depends on all 32 bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
