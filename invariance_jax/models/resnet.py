"""ResNet-18, 34 and 50 encoders in torchvision's form.

He et al. (2016), as used by Foster et al. (2021): the stride of a bottleneck is in its
3x3 convolution, convolutions pad both sides equally (unlike flax's SAME at stride 2),
global average pooling, no classifier. Kernels are drawn from an untruncated normal
distribution of variance 2 / fan_out. Module names follow PyTorch's state dict:
`layer1_0` is its `layer1.0`, `downsample_conv` and `downsample_bn` are its
`downsample.0` and `downsample.1`.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from invariance_jax.arguments import check_choice, check_images, check_integer
from invariance_jax.models.convolution import Convolution
from invariance_jax.models.normalization import BatchNorm
from invariance_jax.types import Array

STEMS = ("cifar", "imagenet")

WIDTH = 64
"""Channels of the first stage in the paper."""

Factory = Callable[..., nn.Module]

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@jax.custom_jvp
def _relu(x: Array) -> Array:
    """Returns max(x, 0); its derivative needs only the output, which is kept anyway."""
    return jnp.maximum(x, 0)


_relu.defjvps(lambda tangent, y, x: jnp.where(y != 0, tangent, 0))


class ResidualBlock(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1 - 3x3 - 1x1 (bottleneck).

    Attributes:
      features: channels F of the 3x3 convolutions.
      stride: factor by which the block reduces height and width.
      bottleneck: whether the block is a bottleneck, with 4 F output channels, not F.
      conv: returns a `Convolution` for features, kernel size, strides and name.
      norm: returns a `BatchNorm` for a name.
    """

    features: int
    stride: int
    bottleneck: bool
    conv: Factory
    norm: Factory

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns the output, `[B, H / stride, W / stride, F or 4 F]`, non-negative.

        Sides are rounded up, and the dtype is that of x; `train` as in `BatchNorm`.
        """
        f, dtype, y = self.features, x.dtype, x
        # (channels, kernel size, stride) of each convolution
        if self.bottleneck:
            layers = [(f, 1, 1), (f, 3, self.stride), (4 * f, 1, 1)]
        else:
            layers = [(f, 3, self.stride), (f, 3, 1)]
        for i, (channels, size, stride) in enumerate(layers, start=1):
            y = nn.relu(y) if i > 1 else y
            y = self.conv(channels, size, strides=stride, name=f"conv{i}")(y)
            y = self.norm(name=f"bn{i}")(y, train=train)
        if x.shape != y.shape:
            shortcut = self.conv(
                y.shape[-1], 1, strides=self.stride, name="downsample_conv"
            )
            x = self.norm(name="downsample_bn")(shortcut(x), train=train)
        return _relu((x + y).astype(dtype))


class ResNet(nn.Module):
    """A ResNet from images to the globally pooled features of its last block.

    Attributes:
      stage_sizes: blocks per stage. Stage i, from 0, has `width * 2**i` channels (times
        4 after a bottleneck); all stages but the first halve height and width.
      bottleneck: whether blocks are bottlenecks, as in `ResidualBlock`.
      width: channels of the stem and the first stage, 64 in the paper.
      stem: "cifar", a 3x3 convolution of stride 1; or "imagenet", a 7x7 convolution of
        stride 2 and a 3x3 max-pool of stride 2.
      group_size, tangent, axis_name: as in `BatchNorm`.
      rematerialize: whether the backward pass recomputes the intermediates of each
        block, instead of keeping them in memory.
      dtype: of convolutions and activations; None: the dtype of the images, at least
        float32. Parameters are always float32.
    """

    stage_sizes: tuple[int, ...]
    bottleneck: bool
    width: int = WIDTH
    stem: str = "cifar"
    group_size: int = 0
    tangent: str = "coupled"
    axis_name: str | None = None
    rematerialize: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Returns h `[B, D]`, non-negative, of normalized images `[B, H, W, 3]`."""
        check_images(images)
        check_integer("width", self.width)
        for size in self.stage_sizes:
            check_integer("stage_sizes", size)
        conv = partial(Convolution, kernel_init=_kernel_init, dtype=self.dtype)
        norm = partial(
            BatchNorm,
            group_size=self.group_size,
            tangent=self.tangent,
            axis_name=self.axis_name,
            dtype=images.dtype,
        )
        block_class = ResidualBlock
        if self.rematerialize:
            block_class = nn.remat(ResidualBlock, static_argnums=(2,))  # train
        x = self._stem(images, conv, norm, train)
        for stage, size in enumerate(self.stage_sizes):
            for block in range(size):
                x = block_class(
                    features=self.width * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    bottleneck=self.bottleneck,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{block}",
                )(x, train)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.mean(x, axis=(1, 2))

    def _stem(self, x: Array, conv: Factory, norm: Factory, train: bool) -> Array:
        check_choice("stem", self.stem, STEMS)
        is_large = self.stem == "imagenet"
        size, stride = (7, 2) if is_large else (3, 1)
        x = conv(self.width, size, strides=stride, name="conv1")(x)
        dtype, x = x.dtype, norm(name="bn1")(x, train=train)
        x = nn.relu(x).astype(dtype)
        if is_large:
            padding = ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        return x
