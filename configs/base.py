"""The configuration that the other files in this folder change.

Every key is declared, with its type, range, default, unit and meaning, in
`invariance_jax.settings.schema`; `python launch.py --mode=keys` prints them.
"""

from invariance_jax.settings import Config


def get_config() -> Config:
    """Returns all keys at their defaults, the paper's Spirograph run less a length."""
    return Config()
