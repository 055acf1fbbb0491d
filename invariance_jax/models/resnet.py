"""ResNet-18, 34 and 50 encoders in torchvision's form.

He et al. (2016), as used by Foster et al. (2021): the stride of a bottleneck is in its
3x3 convolution, convolutions pad the same on both sides (not flax's SAME, which differs
at stride 2), global average pool, no classifier. Kernels are normal, not truncated, of
variance 2 / fan_out. Names follow PyTorch's state dict: `layer1.0` is `layer1_0`,
`downsample.0` and `.1` are `downsample_conv` and `downsample_bn`.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from invariance_jax.arguments import check_choice, check_shape
from invariance_jax.models.convolution import Convolution
from invariance_jax.models.normalization import BatchNorm
from invariance_jax.types import Array

STEMS = ("cifar", "imagenet")

WIDTH = 64
"""Channels of the first stage, those of the paper."""

Factory = Callable[..., nn.Module]

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@jax.custom_jvp
def _relu(x: Array) -> Array:
    """Returns max(x, 0); its derivative reads the output, which is kept anyway."""
    return jnp.maximum(x, 0)


_relu.defjvps(lambda tangent, y, x: jnp.where(y != 0, tangent, 0))


class ResidualBlock(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1 - 3x3 - 1x1 (bottleneck).

    Attributes:
      features: channels F of the 3x3 convolutions.
      stride: of the block.
      bottleneck: whether the output has 4 F channels behind a bottleneck, or F.
      conv: makes a `Convolution` from features, kernel size, strides and name.
      norm: makes a `BatchNorm` from a name.
    """

    features: int
    stride: int
    bottleneck: bool
    conv: Factory
    norm: Factory

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns the block's output.

        Args:
          x: `[B, H, W, C]`.
          train: as of `BatchNorm`.

        Returns:
          `[B, H / stride, W / stride, F or 4 F]`, rounded up, non-negative.
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
      stage_sizes: blocks per stage; stage i has `width * 2**i` channels (times 4 behind
        a bottleneck) and all but the first halve the image.
      bottleneck: the kind of block, as of `ResidualBlock`.
      width: channels of the stem and the first stage, 64 in the paper.
      stem: "cifar", a 3x3 convolution of stride 1; or "imagenet", a 7x7 convolution of
        stride 2 and a 3x3 max-pool of stride 2.
      group_size, tangent, axis_name: as of `BatchNorm`.
      rematerialize: whether the backward pass computes what is within a block again
        instead of keeping it.
      dtype: of the convolutions and activations; None is that of the images. The
        parameters are float32 in any case.
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
        """Returns the representation h.

        Args:
          images: float `[B, H, W, 3]`, normalized by the caller.
          train: as of `BatchNorm`.

        Returns:
          h `[B, D]`, non-negative, in at least float32.

        Raises:
          ValueError: if the images have another rank, or as of `BatchNorm`, or if the
            stem is unknown.

        Gradients: in images and parameters, reverse over forward mode included.
        """
        check_images(images)
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
        large = self.stem == "imagenet"
        size, stride = (7, 2) if large else (3, 1)
        x = conv(self.width, size, strides=stride, name="conv1")(x)
        dtype, x = x.dtype, norm(name="bn1")(x, train=train)
        x = nn.relu(x).astype(dtype)
        if large:
            pad = ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=pad)
        return x


def check_images(images: Array) -> None:
    """Checks that images are floating and of rank 4.

    Args:
      images: `[B, H, W, 3]`.

    Raises:
      ValueError: if they have another rank, or are integers.
    """
    check_shape("images", images, (None,) * 4, expected="[B, H, W, C]")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating, as a transformation gives them; found "
            f"{images.dtype}: `plain` normalizes 8-bit images."
        )
