"""The runs of the checkout that benchmarks measure, without their data sets."""

import importlib

from ml_collections import ConfigDict

CIFAR10 = {
    "num_classes": 10,
    "source_size": (32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
    "train_examples": 50_000,
    "test_examples": 10_000,
}
"""What the step depends on, where the images are not there."""


def configuration(name: str, *variant: str) -> ConfigDict:
    """Returns a configuration of the checkout that is the current directory.

    Args:
      name: of its file, "spirograph" or "cifar10".
      *variant: that of the file, if not its default.

    Returns:
      The configuration; that of images with what would be read from the set.
    """
    config = importlib.import_module(f"configs.{name}").get_config(*variant)
    if name == "cifar10":
        config.data.update(CIFAR10)
    return config
