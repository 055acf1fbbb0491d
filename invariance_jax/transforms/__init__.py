"""Transformations: examples and parameters alpha to views, differentiable in alpha."""

from invariance_jax.transforms import (
    blur,
    color,
    geometry,
    image,
    shifts,
    spirograph,
)
from invariance_jax.transforms.base import (
    Squashed,
    Transformation,
    View,
    check_transformation,
)

__all__ = [
    "Squashed",
    "Transformation",
    "View",
    "blur",
    "check_transformation",
    "color",
    "geometry",
    "image",
    "shifts",
    "spirograph",
]
