"""Configurations: the declared keys, their checks, and functions of the user's own."""

from invariance_jax.settings.rules import check_devices, check_parameters, resolve
from invariance_jax.settings.schema import (
    KEYS,
    Config,
    Settings,
    change,
    flatten,
    from_dict,
    to_dict,
)

__all__ = [
    "KEYS",
    "Config",
    "Settings",
    "change",
    "check_devices",
    "check_parameters",
    "flatten",
    "from_dict",
    "resolve",
    "to_dict",
]
