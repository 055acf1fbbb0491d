"""Shared types: arrays, PRNG keys, pytrees, JSON objects, and frozen encoders.

The glossary of dimension letters is in the docstring of `invariance_jax`.
"""

from collections.abc import Callable
from typing import Any

import jax

Array = jax.Array
"""A JAX array, concrete or traced."""

Key = jax.Array
"""A JAX PRNG key: a typed key array or raw `uint32 [2]`."""

PyTree = Any
"""A pytree of arrays: examples, variables, outputs of heads."""

Json = dict[str, Any]
"""The content of a JSON file, an object."""


Encode = Callable[[Array], Array]
"""A frozen encoder, `images [B, H, W, 3] -> h [B, D]`."""
