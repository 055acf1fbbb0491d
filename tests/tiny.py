"""Configurations that train in seconds, shared by the tests of the programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from configs import base
from invariance_jax import data
from invariance_jax.settings import Config, change

TINY = {
    "batch_size": 16,
    "steps": 20,
    "temperature": 0.2,
    "steps_per_call": 5,
    "penalty.weight": 0.1,
    "penalty.example_limit": 0.5,
    "encoder.name": "mlp",
    "encoder.width": 16,
    "encoder.depth": 2,
    "encoder.projection": 8,
    "optimizer.name": "adamw",
    "optimizer.schedule": "warmup_cosine",
    "optimizer.learning_rate": 0.03,
    "data.train_examples": 200,
    "data.validation_examples": 60,
    "data.test_examples": 70,
    "data.image_size": 8,
    "data.num_points": 10,
    "checkpoints.every_steps": 10,
    "logging.every_steps": 5,
    "logging.probe_every_steps": 10,
    "logging.probe_train_examples": 100,
    "logging.probe_validation_examples": 30,
    "evaluation.num_views": (1, 3),
    "evaluation.batch_size": 50,
    "evaluation.variance_views": 3,
    "evaluation.variance_examples": 40,
}

SEEDS = {"seeds": 2, "logging.probe_every_steps": 0}
"""What the fixture `trained_seeds` changes of it."""


def tiny_config(changes: Mapping[str, Any] | None = None) -> Config:
    """Returns the tiny configuration with the values of some dotted keys changed."""
    config = base.get_config()
    for key, value in {**TINY, **(changes or {})}.items():
        change(config, key, value)
    return config


def penalty(**keys: Any) -> dict[str, Any]:
    """Returns changes of keys of the penalty."""
    return {f"penalty.{name}": value for name, value in keys.items()}


def image_arrays(seed: int, *, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy uint8 images `[N, 10, 10, 3]` of 3 classes, and their labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num_examples) % 3
    images = generator.integers(0, 120, (num_examples, 10, 10, 3))
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 2] += 100  # a bright bar for each class
    return images.astype(np.uint8), labels


def image_config(
    data_dir: str | Path, changes: Mapping[str, Any] | None = None
) -> Config:
    """Returns the tiny configuration of the set `bars`, prepared if it is not yet."""
    if not (Path(data_dir) / "bars").exists():
        data.prepare_arrays(
            "bars",
            data_dir,
            train=image_arrays(0, num_examples=150),
            test=image_arrays(1, num_examples=45),
        )
    images = {
        "data.name": "bars",
        "data.data_dir": str(data_dir),
        "data.train_examples": None,
        "data.validation_examples": 30,
        "data.test_examples": None,
        "data.image_size": 8,
        "augmentation.crop_area": (0.5, 1.0),
        "evaluation.l2": 1e-3,
        "evaluation.neighbors": (5,),
        "logging.probe_train_examples": 60,
    }
    return tiny_config({**images, **(changes or {})})
