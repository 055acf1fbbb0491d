"""An encoder of your own: blocks in the style of ConvNeXt (Liu et al., 2022).

    python launch.py --config=configs/examples/convnext.py --workdir=runs/convnext

Spirograph on two CPU cores; no result yet. Layer normalization does not couple
examples, so `axis_name` is not needed.
"""

import flax.linen as nn
import jax.numpy as jnp

from configs import spirograph
from invariance_jax.settings import Config


def get_config(variant: str = "quick") -> Config:
    """Returns a variant of configs/spirograph.py with the encoder of this file."""
    config = spirograph.get_config(variant)
    config.encoder.name = "configs.examples.convnext:convnext"
    config.encoder.kwargs = {"features": 32, "depth": 2}
    return config


class Block(nn.Module):
    """A depthwise convolution and two dense layers, with a residual connection."""

    features: int

    @nn.compact
    def __call__(self, x):
        """Returns the features of the block, `[B, H, W, features]`."""
        y = nn.Conv(self.features, (7, 7), feature_group_count=self.features)(x)
        y = nn.Dense(4 * self.features)(nn.LayerNorm()(y))
        return x + nn.Dense(self.features)(nn.gelu(y))


class ConvNeXt(nn.Module):
    """Patches of 4 x 4 pixels, blocks, and the mean over the positions."""

    features: int
    depth: int

    @nn.compact
    def __call__(self, images, *, train):
        """Returns h `[B, features]` of images `[B, H, W, 3]`."""
        del train  # training and evaluation do not differ
        x = nn.Conv(self.features, (4, 4), strides=4)(images)
        for _ in range(self.depth):
            x = Block(self.features)(x)
        return nn.LayerNorm()(jnp.mean(x, axis=(1, 2)))


def convnext(*, axis_name=None, features, depth) -> ConvNeXt:
    """Returns the encoder; features and depth come from `encoder.kwargs`."""
    del axis_name
    return ConvNeXt(features=features, depth=depth)
