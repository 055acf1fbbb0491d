"""The default configuration, and changes that several files in this folder share.

`invariance_jax.settings.schema` declares every key with its type, range, default, unit
and meaning; `python launch.py --mode=keys` prints the keys.
"""

from typing import TypeVar

from invariance_jax.settings import Config

T = TypeVar("T")


def get_config() -> Config:
    """Returns the default of every key: the paper's Spirograph run without a length."""
    return Config()


def of_variant(variants: dict[str, T], variant: str) -> T:
    """Returns the entry of a variant; raises ValueError with the names of all."""
    if variant not in variants:
        raise ValueError(
            f"the variant is {variant!r}; expected one of {', '.join(variants)}."
        )
    return variants[variant]


def small_mlp(config: Config) -> None:
    """Sets the MLP, its optimizer and the penalty of runs on two CPU cores."""
    config.batch_size = 256
    config.temperature = 0.2
    config.encoder.name = "mlp"
    config.encoder.final = "norm_relu"
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.learning_rate = 2e-3
    config.penalty.weight = 0.3
    config.penalty.example_limit = 0.5


def of_images(config: Config) -> None:
    """Sets the keys of image sets, with the paper's constants."""
    config.data.train_examples = None
    config.data.validation_examples = 5000
    config.data.test_examples = None
    config.data.image_size = None
    config.evaluation.l2 = 1e-5
    config.evaluation.shifts = (("color", "strength", (0.0, 0.25, 0.5, 0.75, 0.875)),)


def smoke_of_mlp(config: Config) -> None:
    """Shortens the run of an MLP to about a minute."""
    config.batch_size = 64
    config.steps = 40
    config.steps_per_call = 10
    config.encoder.width = 64
    config.data.train_examples = 2000
    config.data.validation_examples = 500
    config.data.test_examples = 500
    config.logging.every_steps = 10
    config.logging.probe_every_steps = 20
    config.logging.probe_train_examples = 500
    config.logging.probe_validation_examples = 200
    config.checkpoints.every_steps = 20
    config.evaluation.num_views = (1, 2, 4)
    config.evaluation.train_examples = None
    config.evaluation.variance_views = 4
    config.evaluation.variance_examples = 100


def smoke_of_resnet(config: Config) -> None:
    """Shortens a run on images to a few steps of a ResNet-18."""
    config.epochs = None
    config.steps = 4
    config.steps_per_call = 2
    config.batch_size = 16
    config.encoder.name = "resnet18"
    config.data.train_examples = 64
    config.data.validation_examples = 32
    config.data.test_examples = 64
    config.logging.every_steps = 2
    config.logging.probe_every_steps = 0
    config.checkpoints.every_steps = 4
    config.evaluation.num_views = (1, 2)
    config.evaluation.neighbors = (5,)
    config.evaluation.batch_size = 16
    config.evaluation.variance_views = 2
    config.evaluation.variance_examples = 16
