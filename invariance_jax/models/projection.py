"""Heads on the representation: the projection z, which only the loss sees, and p of it.

Foster et al. (2021), released code: Linear(D, D, no bias) - BatchNorm - ReLU -
Linear(D, 128, no bias) - BatchNorm without scale and bias, in the precision of h.
Kernels are uniform between +-1 / sqrt(fan_in), PyTorch's default for a linear layer.
The heads of other methods differ in the number of layers, their widths and what stands
after the last one; a bias before BatchNorm, which some papers have, does nothing.
"""

import chex
import flax.linen as nn

from invariance_jax.models.normalization import BatchNorm
from invariance_jax.types import Array

# a uniform distribution on +-a has variance a^2 / 3
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ProjectionHead(nn.Module):
    """The projection z of a representation h: each layer but the last with a ReLU.

    Attributes:
      features: outputs of each layer but the last; None is D, the features of h.
      output: outputs of the last layer, the dimension of z.
      layers: linear layers, 1 or more.
      final_norm: whether BatchNorm without scale and bias ends it.
      final_bias: whether the last layer has a bias.
      group_size: as of `BatchNorm`; the paper normalizes over the whole batch here (0).
      tangent: as of `BatchNorm`.
      axis_name: as of `BatchNorm`.
    """

    features: int | None = None
    output: int = 128
    layers: int = 2
    final_norm: bool = True
    final_bias: bool = False
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
          z `[B, output]`; after a final BatchNorm, in training mode, each column has
          mean 0 and variance 1 over its group.

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
        hidden = self.features or h.shape[-1]
        for layer in range(1, self.layers):
            h = self._dense(hidden, layer, bias=False)(h)
            h = nn.relu(self._norm(True, layer)(h, train=train))
        h = self._dense(self.output, self.layers, bias=self.final_bias)(h)
        return self._norm(False, self.layers)(h, train=train) if self.final_norm else h

    def _dense(self, features: int, layer: int, *, bias: bool) -> nn.Dense:
        return nn.Dense(
            features, use_bias=bias, kernel_init=_kernel_init, name=f"dense{layer}"
        )

    def _norm(self, affine: bool, layer: int) -> BatchNorm:
        return BatchNorm(
            use_scale=affine,
            use_bias=affine,
            group_size=self.group_size,
            tangent=self.tangent,
            axis_name=self.axis_name,
            name=f"bn{layer}",
        )


class PredictedProjection(nn.Module):
    """A projection z of h, and a prediction p of the other view's.

    Attributes:
      projector: h -> z.
      predictor: z -> p `[B, D of z]`.
    """

    projector: nn.Module
    predictor: nn.Module

    def __call__(self, h: Array, *, train: bool) -> dict[str, Array]:
        """Returns {"z": z, "p": p}.

        Args:
          h: float `[B, D]`.
          train: as of `BatchNorm`.
        """
        z = self.projector(h, train=train)
        return {"z": z, "p": self.predictor(z, train=train)}
