"""A multi-layer perceptron encoder, for small data sets and small machines.

XLA runs dense layers fast on CPUs; on Spirograph an MLP of three layers replaces a
ResNet-18 at a fraction of its cost. Not in Foster et al. (2021). Kernels are drawn from
a normal distribution of variance 2 / fan_in (He et al., 2015).
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from invariance_jax.arguments import check_choice, check_images, check_integer
from invariance_jax.models.normalization import BatchNorm
from invariance_jax.types import Array

FINALS = ("linear", "norm_relu")

_kernel_init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class MLP(nn.Module):
    """Dense layers on the flattened image, all but the last with BatchNorm and ReLU.

    Attributes:
      width: D, the number of outputs of every layer.
      depth: the number of dense layers, 1 or more.
      final: form of the last layer. "linear": dense with a bias and nothing after it;
        "norm_relu": like the other layers, so that h is non-negative as in a ResNet.
      group_size, tangent, axis_name: as in `BatchNorm`.
      dtype: of matrix products and activations; None: the dtype of the images, at
        least float32. Parameters are always float32.
    """

    width: int
    depth: int
    final: str = "linear"
    group_size: int = 0
    tangent: str = "coupled"
    axis_name: str | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, images: Array, *, train: bool) -> Array:
        """Returns h `[B, D]` of float images `[B, H, W, C]`, used as given."""
        check_images(images)
        check_integer("width", self.width)
        check_integer("depth", self.depth)
        check_choice("final", self.final, FINALS)
        x = images.reshape(images.shape[0], -1)
        for layer in range(self.depth):
            is_linear = layer == self.depth - 1 and self.final == "linear"
            x = nn.Dense(
                self.width,
                use_bias=is_linear,
                kernel_init=_kernel_init,
                dtype=self.dtype,
                name=f"dense{layer + 1}",
            )(x)
            if not is_linear:
                norm = BatchNorm(
                    group_size=self.group_size,
                    tangent=self.tangent,
                    axis_name=self.axis_name,
                    dtype=self.dtype,
                    name=f"bn{layer + 1}",
                )
                x = nn.relu(norm(x, train=train))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
