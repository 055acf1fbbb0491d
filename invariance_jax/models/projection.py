"""The projection head g, which only the contrastive loss sees.

Foster et al. (2021), released code: Linear(D, D, no bias) - BatchNorm - ReLU -
Linear(D, 128, no bias) - BatchNorm without scale and bias, in the precision of h.
Kernels are uniform between +-1 / sqrt(fan_in), PyTorch's default for a linear layer.
"""

import chex
import flax.linen as nn

from invariance_jax.models.normalization import BatchNorm
from invariance_jax.types import Array

# a uniform distribution on +-a has variance a^2 / 3
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ProjectionHead(nn.Module):
    """The projection z of a representation h.

    Attributes:
      features: outputs of the first layer; None is D, the features of h.
      output: outputs of the second layer, the dimension of z.
      group_size: as of `BatchNorm`; the paper normalizes over the whole batch here (0).
      tangent: as of `BatchNorm`.
      axis_name: as of `BatchNorm`.
    """

    features: int | None = None
    output: int = 128
    group_size: int = 0
    tangent: str = "coupled"
    axis_name: str | None = None

    @nn.compact
    def __call__(self, h: Array, *, train: bool) -> Array:
        """Returns the projection z.

        Args:
          h: float `[B, D]`.
          train: as of `BatchNorm`.

        Returns:
          z `[B, output]`; in training mode each column has mean 0 and variance 1 over
          its group.

        Raises:
          ValueError: if h has another rank, or as of `BatchNorm`.

        Gradients: with respect to h and parameters, reverse over forward mode included.
        """
        chex.assert_rank(
            h,
            2,
            exception_type=ValueError,
            custom_message=f"h has shape {h.shape}, expected [B, D]",
        )
        h = self._dense(self.features or h.shape[-1], "dense1")(h)
        h = nn.relu(self._norm(True, "bn1")(h, train=train))
        h = self._dense(self.output, "dense2")(h)
        return self._norm(False, "bn2")(h, train=train)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, use_bias=False, kernel_init=_kernel_init, name=name)

    def _norm(self, affine: bool, name: str) -> BatchNorm:
        return BatchNorm(
            use_scale=affine,
            use_bias=affine,
            group_size=self.group_size,
            tangent=self.tangent,
            axis_name=self.axis_name,
            name=name,
        )
