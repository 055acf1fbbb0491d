"""Data sets: what examples there are, before any transformation.

Importing this package imports neither TFDS nor TensorFlow.
"""

from invariance_jax.data.preparation import (
    NAMES,
    prepare,
    prepare_arrays,
    prepare_folder,
)
from invariance_jax.data.subsets import hold_out, label_fraction
from invariance_jax.data.targets import make_targets
from invariance_jax.data.tfds import Description, describe, load_arrays

__all__ = [
    "NAMES",
    "Description",
    "describe",
    "hold_out",
    "label_fraction",
    "load_arrays",
    "make_targets",
    "prepare",
    "prepare_arrays",
    "prepare_folder",
]
