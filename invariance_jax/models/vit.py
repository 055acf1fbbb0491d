"""Vision transformers, from patches of an image to one representation.

Dosovitskiy et al. (2021) with the choices of MoCo v3, Chen, Xie, He (2021): fixed
sine-cosine position embeddings, pre-norm blocks and a final normalization. No operation
couples the examples of a batch, so the derivative along alpha needs no random sign per
example. Not in Foster et al. (2021).
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from invariance_jax.arguments import check_choice, check_images, check_integer
from invariance_jax.types import Array, Key

POOLS = ("token", "mean")
HEAD_FEATURES = 64

_norm = partial(nn.LayerNorm, epsilon=1e-6)
_xavier = nn.initializers.xavier_uniform()


class Block(nn.Module):
    """A pre-norm transformer block: self-attention, then two dense layers.

    Attributes:
      dtype: of the matrix products; None: the dtype of the tokens.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the tokens `[B, N, D]` after the block; D is a multiple of 64."""
        settings: dict[str, Any] = {"kernel_init": _xavier, "dtype": self.dtype}
        features = x.shape[-1]
        heads = features // HEAD_FEATURES
        attend = nn.MultiHeadDotProductAttention(heads, name="attention", **settings)
        x += attend(_norm(name="ln1")(x))
        y = nn.Dense(4 * features, name="dense1", **settings)(_norm(name="ln2")(x))
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(features, name="dense2", **settings)(y)


class ViT(nn.Module):
    """A vision transformer without a classifier.

    Attributes:
      patch_size: side of a patch, pixels; it must divide the sides of the image.
      width: D, a multiple of 64; each attention head has 64 features.
      depth: number of blocks.
      pool: "token": h is the class token; "mean": h is the mean over the patches, and
        there is no class token.
      rematerialize: whether the backward pass recomputes the intermediates of each
        block, instead of keeping them in memory.
      dtype: of the matrix products; None: the dtype of the images, at least float32.
        Parameters are always float32, the residual stream at least float32.
    """

    patch_size: int
    width: int
    depth: int
    pool: str = "token"
    rematerialize: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Returns h `[B, D]` of normalized images; `train` has no effect."""
        check_images(images)
        self._check(images)
        patch = (self.patch_size, self.patch_size)
        x = nn.Conv(
            self.width,
            patch,
            strides=patch,
            padding="VALID",
            kernel_init=_init_patches,
            dtype=self.dtype,
            name="patches",
        )(images)
        x = x.astype(jnp.promote_types(images.dtype, jnp.float32))
        x = x + jnp.asarray(_positions(*x.shape[1:]), x.dtype)
        x = x.reshape(len(x), -1, self.width)
        if self.pool == "token":
            init = nn.initializers.normal(1e-6)
            token = self.param("token", init, (1, 1, self.width)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(token, x[:, :1].shape), x], axis=1)
        block = nn.remat(Block) if self.rematerialize else Block
        for layer in range(self.depth):
            x = block(dtype=self.dtype, name=f"block{layer + 1}")(x)
        x = _norm(name="ln")(x)
        return x[:, 0] if self.pool == "token" else jnp.mean(x, axis=1)

    def _check(self, images: Array) -> None:
        height, width = images.shape[1:3]
        for name in ("patch_size", "width", "depth"):
            check_integer(name, getattr(self, name))
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"patch_size is {self.patch_size}, expected a divisor of the sides of "
                f"the image, {height} x {width}"
            )
        if self.width % HEAD_FEATURES:
            raise ValueError(
                f"width is {self.width}, expected a multiple of {HEAD_FEATURES}"
            )
        check_choice("pool", self.pool, POOLS)


def _init_patches(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Returns kernels `[p, p, C, D]`, initialized like a linear layer's (MoCo v3)."""
    linear_shape = math.prod(shape[:-1]), shape[-1]
    return _xavier(key, linear_shape, dtype).reshape(shape)


def _positions(rows: int, columns: int, features: int) -> np.ndarray:
    """Returns fixed embeddings of grid positions, `[1, rows, columns, features]`.

    The four quarters of the features are the sine and the cosine of the row, then those
    of the column, at frequencies from 1 to about 1 / 10 000, as in MoCo v3.
    """
    quarter = features // 4
    frequency = 10_000.0 ** -(np.arange(quarter) / quarter)
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    angles = [position[..., None] * frequency for position in (row, column)]
    waves = [wave(angle) for angle in angles for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=-1)[None]
