"""Losses of representations: contrastive, and the invariance penalties."""

from invariance_jax.losses.contrastive import nt_xent
from invariance_jax.losses.invariance import consistency, invariance_penalty

__all__ = ["consistency", "invariance_penalty", "nt_xent"]
