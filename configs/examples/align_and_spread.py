"""An objective of your own: alignment and uniformity (Wang and Isola, 2020).

    python launch.py --config=configs/examples/align_and_spread.py --workdir=runs/align

Spirograph, an MLP, on two CPU cores; no result yet. The penalty acts as with SimCLR.
"""

import jax
import jax.numpy as jnp

from configs import spirograph
from invariance_jax.models import ProjectionHead
from invariance_jax.numerics import l2_normalize
from invariance_jax.settings import Config
from invariance_jax.training.methods import Method


def get_config(variant: str = "quick") -> Config:
    """Returns a variant of configs/spirograph.py with the objective of this file."""
    config = spirograph.get_config(variant)
    config.method.name = "configs.examples.align_and_spread:align_and_spread"
    config.method.kwargs = {"weight": 1.0, "t": 2.0}
    return config


def align_and_spread(*, features, axis_name=None, weight, t) -> Method:
    """Returns the method: squared distance of a pair plus potential to the others."""
    del features  # the head infers its input width

    def loss(own, other, target_own, target_other, memory, *, axis_name):
        z1, z2 = l2_normalize(own), l2_normalize(other)
        align = jnp.sum(jnp.square(z1 - z2), axis=1)
        spread = (potential(z1, axis_name) + potential(z2, axis_name)) / 2
        return align + weight * spread

    def potential(z, axis_name):
        """Returns log mean exp(-t |z_i - z_j|^2) over the other examples, `[]`."""
        rows = z if axis_name is None else jax.lax.all_gather(z, axis_name, tiled=True)
        similarity = z @ rows.T
        total = jnp.sum(jnp.exp(2 * t * (similarity - 1)))
        if axis_name is not None:
            total = jax.lax.psum(total, axis_name)
        return jnp.log((total - len(rows)) / (len(rows) * (len(rows) - 1)))

    return Method(ProjectionHead(output=64, axis_name=axis_name), loss)
