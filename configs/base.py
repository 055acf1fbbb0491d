"""The configuration that the other files in this folder change.

Every key is declared, with its type, range, default, unit and meaning, in
`invariance_jax.settings.schema`; `python launch.py --mode=keys` prints them.
"""

from collections.abc import Callable

from invariance_jax.settings import Config


def get_config() -> Config:
    """Returns all keys at their defaults, the paper's Spirograph run less a length."""
    return Config()


def of_variant(
    variants: dict[str, Callable[[Config], None]], variant: str
) -> Callable[[Config], None]:
    """Returns what a variant changes; raises ValueError with the names there are."""
    if variant not in variants:
        raise ValueError(
            f"the variant is {variant!r}; expected one of {', '.join(variants)}."
        )
    return variants[variant]


def small_mlp(config: Config) -> None:
    """Changes the configuration to the MLP and the penalty of runs on two CPU cores."""
    config.batch_size = 256
    config.temperature = 0.2
    config.encoder.name = "mlp"
    config.encoder.final = "norm_relu"
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.learning_rate = 2e-3
    config.penalty.weight = 0.3
    config.penalty.example_limit = 0.5
