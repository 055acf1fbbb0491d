"""Losses: contrastive, non-contrastive, and the invariance penalties."""

from invariance_jax.losses.contrastive import dcl, info_nce, nt_xent
from invariance_jax.losses.invariance import (
    consistency,
    invariance_penalty,
    total_effect,
)
from invariance_jax.losses.non_contrastive import (
    barlow_twins,
    emp_ssl,
    negative_cosine,
    vicreg,
)

__all__ = [
    "barlow_twins",
    "consistency",
    "dcl",
    "emp_ssl",
    "info_nce",
    "invariance_penalty",
    "negative_cosine",
    "nt_xent",
    "total_effect",
    "vicreg",
]
