"""Data sets: what examples there are, before any transformation."""

from invariance_jax.data.spirograph import make_targets

__all__ = ["make_targets"]
