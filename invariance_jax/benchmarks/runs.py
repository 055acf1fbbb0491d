"""The training runs whose steps are timed."""

from collections.abc import Sequence

import jax
import numpy as np

from invariance_jax.runtime.devices import all_devices
from invariance_jax.settings import Config, check_devices, resolve
from invariance_jax.training import cost, parallel
from invariance_jax.training.batches import InMemory
from invariance_jax.training.build import build, initial_state
from invariance_jax.training.step import Metrics


class Training:
    """A run from its first step, compiled; images are noise, and none is read."""

    def __init__(self, config: Config, devices: Sequence[jax.Device] = ()):
        """Compiles the steps of a run on some devices, or on all that there are."""
        self.settings, devices = resolve(config), devices or all_devices()
        check_devices(self.settings, len(devices))
        parts, count = build(self.settings), self.settings.data.train_examples
        if self.settings.data.name == "spirograph":
            x = parts.task.examples("train").x
        else:
            zeros, generator = (
                parts.task.stand_ins(count or 1),
                np.random.default_rng(0),
            )
            x = jax.tree.map(
                lambda leaf: generator.integers(1, 256, leaf.shape, leaf.dtype), zeros
            )
        batches = InMemory(x, parallel.replicate)
        self._program = cost.compile_train(parts, batches, devices)
        self.memory = sum(cost.memory_of(self._program))
        self.flops = cost.count_operations(parts).of_batch(self.settings.batch_size)
        self._state = parallel.replicate(initial_state(parts), devices)
        self._data = batches.load(0, 1, devices)
        self._key = jax.random.key(self.settings.seed)
        self._sums: Metrics = {}

    def __call__(self, num_steps: int = 1) -> Metrics:
        """Trains on for some steps, in one call; returns sums over them."""
        self._state, self._sums = self._program(
            self._state, self._key, self._data, np.int32(num_steps)
        )
        return self._sums

    def check_finite(self) -> None:
        """Raises a FloatingPointError if the newest loss is no number."""
        loss = float(parallel.one_replica(self._sums)["loss"][0])
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss}, and the time of such steps means nothing; lower "
                "optimizer.learning_rate or penalty.weight."
            )
