"""A configuration that trains in seconds, shared by the tests of training."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import base

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


def tiny_config(changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns the tiny configuration with the values of some dotted keys changed."""
    config = base.get_config()
    for key, value in {**TINY, **(changes or {})}.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section[part]
        assert name in section, key
        section[name] = value
    return config
