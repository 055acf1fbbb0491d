"""Losses of representations: contrastive, and the invariance penalty."""

from invariance_jax.losses.contrastive import nt_xent
from invariance_jax.losses.invariance import invariance_penalty

__all__ = ["invariance_penalty", "nt_xent"]
