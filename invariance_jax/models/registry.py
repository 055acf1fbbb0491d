"""Encoders by name."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from invariance_jax.arguments import check_choice, check_integer
from invariance_jax.models.mlp import MLP
from invariance_jax.models.resnet import STEMS, WIDTH, ResNet
from invariance_jax.models.vit import ViT

# name -> (stage_sizes, bottleneck)
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
}
VITS = {"vit_tiny": 192, "vit_small": 384}  # name -> default width
ENCODERS = (*RESNETS, "mlp", *VITS)
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}


def create_encoder(
    name: str,
    *,
    stem: str = "cifar",
    width: int | None = None,
    depth: int | None = None,
    final: str = "linear",
    patch_size: int = 4,
    pool: str = "token",
    norm_group_size: int = 0,
    norm_tangent: str = "coupled",
    precision: str = "float32",
    rematerialize: bool = False,
    axis_name: str | None = None,
) -> nn.Module:
    """Returns an encoder, called as `module.apply(variables, images, train=bool)`.

    All encoders share one set of settings; those that do not apply are ignored.

    >>> import jax
    >>> encoder = create_encoder("mlp", width=8, depth=2)
    >>> variables = encoder.init(
    ...     jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False
    ... )
    >>> encoder.apply(variables, jnp.ones((5, 4, 4, 3)), train=False).shape
    (5, 8)

    Args:
      name: one of `ENCODERS`. D is 8 times the width for resnet18 and resnet34, 32
        times for resnet50, and the width for the others.
      stem: first layers of a ResNet, "cifar" (3x3, stride 1) or "imagenet" (7x7, stride
        2, max-pool).
      width: channels of the first stage of a ResNet, features of the others. None: 64
        for ResNets, 512 for the MLP, 192 for vit_tiny, 384 for vit_small.
      depth: dense layers of the MLP, 3 if None; blocks of a transformer, 12 if None.
      final: last layer of the MLP, "linear" or "norm_relu"; see `MLP`.
      patch_size: side of the patches of a transformer, pixels.
      pool: h of a transformer, "token" (the class token) or "mean" (over the patches).
      norm_group_size: examples of the global batch per BatchNorm group; 0 is all.
      norm_tangent: "coupled" or "example"; see `BatchNorm`.
      precision: dtype of matrix products and convolutions, "float32" (float64 if the
        images are) or "bfloat16". Parameters, statistics and h are at least float32.
      rematerialize: whether the backward pass recomputes the intermediates of each
        residual or transformer block, instead of keeping them in memory.
      axis_name: the mapped axis of replicas; None means one replica.

    Returns:
      A flax module that maps float images `[B, H, W, 3]` to h `[B, D]`, and allows
      reverse over forward mode; `train` as in `BatchNorm`. Its collections are `params`
      and, if it has BatchNorm, `batch_stats`. A call raises a ValueError if a size is
      invalid, or the images have another rank, an integer dtype or no entries.

    Raises:
      ValueError: if the name, stem or precision is unknown, or the width or depth is
        not a positive integer.
    """
    check_choice("name", name, ENCODERS)
    check_choice("stem", stem, STEMS)
    check_choice("precision", precision, PRECISIONS)
    dtype = PRECISIONS[precision]
    if name in VITS:
        width = _or_default("width", width, VITS[name])
        depth = _or_default("depth", depth, 12)
        return ViT(patch_size, width, depth, pool, rematerialize, dtype)
    common: dict[str, Any] = {
        "group_size": norm_group_size,
        "tangent": norm_tangent,
        "axis_name": axis_name,
        "dtype": dtype,
    }
    if name == "mlp":
        width, depth = _or_default("width", width, 512), _or_default("depth", depth, 3)
        return MLP(width, depth, final, **common)
    width = _or_default("width", width, WIDTH)
    return ResNet(*RESNETS[name], width, stem, rematerialize=rematerialize, **common)


def _or_default(name: str, value: int | None, default: int) -> int:
    return default if value is None else check_integer(name, value)
