"""The training runs whose steps are timed."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from invariance_jax.settings import Config, check_devices, resolve
from invariance_jax.training import cost, parallel
from invariance_jax.training.batches import InMemory
from invariance_jax.training.build import build, initial_state
from invariance_jax.training.step import Metrics


def configuration(name: str, *variant: str) -> Config:
    """Returns a configuration of the checkout that is the current directory.

    Args:
      name: of a file in `configs`.
      *variant: that of the file, if not its default.

    Raises:
      ValueError: if there is no such file.
    """
    path = Path("configs", f"{name}.py")
    if not path.is_file():
        raise ValueError(
            f"there is no {path}; expected to be started in a checkout of the project."
        )
    config: Config = importlib.import_module(f"configs.{name}").get_config(*variant)
    return config


def describe(config: Config) -> str:
    """Returns what the time of a step depends on most, as the case of a row."""
    encoder = config.encoder.name
    return f"step, {encoder}, batch {config.batch_size}, {config.precision}"


class Training:
    """A run from its first step, compiled; images are noise, and none is read.

    Attributes:
      settings: of the run.
      flops: operations of a step, see `training.cost`.
      memory: bytes that the program takes of a device, with all its arrays.
    """

    def __init__(self, config: Config, devices: Sequence[jax.Device] = ()):
        """Compiles the steps of a run.

        Args:
          config: its configuration.
          devices: over which the batch is spread; (): all that there are.

        Raises:
          ValueError: if the configuration is invalid or does not fit the devices.
        """
        self.settings, devices = resolve(config), devices or parallel.all_devices()
        check_devices(self.settings, len(devices))
        parts = build(self.settings)
        if self.settings.data.name == "spirograph":
            x = parts.task.examples("train").x
        else:
            shape = (
                self.settings.data.train_examples,
                *parts.task.stand_ins(1).shape[1:],
            )
            x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        batches = InMemory(x, parallel.replicate)
        self._program = cost.compile_train(parts, batches, devices)
        taken = self._program.memory_analysis()
        self.memory: int = (
            taken.argument_size_in_bytes
            + taken.temp_size_in_bytes
            + taken.output_size_in_bytes
            - taken.alias_size_in_bytes
        )
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
        """Checks that the loss of the newest steps is a number.

        Raises:
          FloatingPointError: if it is not.
        """
        loss = float(parallel.one_replica(self._sums)["loss"][0])
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss}, and the time of such steps means nothing; lower "
                "optimizer.learning_rate or penalty.weight."
            )
