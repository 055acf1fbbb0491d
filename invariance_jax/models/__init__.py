"""Flax encoders from images to representations, and the heads of methods."""

from invariance_jax.models import weights
from invariance_jax.models.mlp import MLP
from invariance_jax.models.normalization import BatchNorm, Moments, group_moments
from invariance_jax.models.projection import PredictedProjection, ProjectionHead
from invariance_jax.models.registry import ENCODERS, create_encoder
from invariance_jax.models.resnet import ResidualBlock, ResNet
from invariance_jax.models.vit import ViT

__all__ = [
    "ENCODERS",
    "MLP",
    "BatchNorm",
    "Moments",
    "PredictedProjection",
    "ProjectionHead",
    "ResNet",
    "ResidualBlock",
    "ViT",
    "create_encoder",
    "group_moments",
    "weights",
]
