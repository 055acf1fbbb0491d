"""Data sets: their examples before any transformation.

Importing this package imports neither TFDS nor TensorFlow.
"""

from invariance_jax.data.loading import describe, load_arrays, open_pictures
from invariance_jax.data.preparation import prepare, prepare_arrays, prepare_folder
from invariance_jax.data.sets import NAMES, Description, known
from invariance_jax.data.streams import Pictures, take
from invariance_jax.data.subsets import hold_out, label_fraction
from invariance_jax.data.targets import make_targets

__all__ = [
    "NAMES",
    "Description",
    "Pictures",
    "describe",
    "hold_out",
    "known",
    "label_fraction",
    "load_arrays",
    "make_targets",
    "open_pictures",
    "prepare",
    "prepare_arrays",
    "prepare_folder",
    "take",
]
