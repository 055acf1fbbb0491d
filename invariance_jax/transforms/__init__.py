"""Transformations: `view = t(example; alpha)`, differentiable in alpha."""

from invariance_jax.transforms import blur, color, geometry, image, shifts, spirograph
from invariance_jax.transforms.base import (
    Squashed,
    Transformation,
    View,
    check_transformation,
)
from invariance_jax.transforms.operations import (
    Family,
    Operation,
    compose,
    uniform_family,
)

__all__ = [
    "Family",
    "Operation",
    "Squashed",
    "Transformation",
    "View",
    "blur",
    "check_transformation",
    "color",
    "compose",
    "geometry",
    "image",
    "shifts",
    "spirograph",
    "uniform_family",
]
