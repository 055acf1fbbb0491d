"""Heads on the representation h: the projection z and the prediction p.

Only the loss uses them. By default the projection is that of the released code of
Foster et al. (2021): Linear(D, D, no bias) - BatchNorm - ReLU - Linear(D, 128, no bias)
- BatchNorm without scale and bias, in the precision of h. Kernels are uniform between
+-1 / sqrt(fan_in), PyTorch's default for a linear layer. Heads of other methods differ
in the number and widths of the layers, or have no BatchNorm at the end. A bias before
BatchNorm, which some papers have, has no effect and is left out.
"""

from functools import partial

import flax.linen as nn

from invariance_jax.arguments import check_integer, check_matrix
from invariance_jax.models.normalization import BatchNorm
from invariance_jax.types import Array

# a uniform distribution on +-a has variance a^2 / 3
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_dense = partial(nn.Dense, kernel_init=_kernel_init)


class ProjectionHead(nn.Module):
    """Linear layers from h to z; BatchNorm and ReLU follow all but the last.

    Attributes:
      features: outputs of each layer but the last; None is D, the features of h.
      output: outputs of the last layer, the dimension of z.
      layers: number of linear layers, 1 or more.
      final_norm: whether a BatchNorm without scale and bias follows the last layer.
      final_bias: whether the last layer has a bias.
      group_size: as in `BatchNorm`; the paper normalizes over the whole batch here (0).
      tangent, axis_name: as in `BatchNorm`.
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
        """Returns z `[B, output]` of h `[B, D]`; `train` as in `BatchNorm`."""
        check_matrix("h", h, expected="[B, D]")
        norm = partial(
            BatchNorm,
            group_size=self.group_size,
            tangent=self.tangent,
            axis_name=self.axis_name,
        )
        hidden = h.shape[-1] if self.features is None else self.features
        last = check_integer("layers", self.layers)
        check_integer("features", hidden)
        check_integer("output", self.output)
        for layer in range(1, last):
            h = _dense(hidden, use_bias=False, name=f"dense{layer}")(h)
            h = nn.relu(norm(name=f"bn{layer}")(h, train=train))
        h = _dense(self.output, use_bias=self.final_bias, name=f"dense{last}")(h)
        if not self.final_norm:
            return h
        norm = partial(norm, use_scale=False, use_bias=False)
        return norm(name=f"bn{last}")(h, train=train)


class PredictedProjection(nn.Module):
    """A projection z of h, and a prediction p of the other view's z.

    Attributes:
      projector: maps h to z.
      predictor: maps z to p, of the shape of z.
    """

    projector: nn.Module
    predictor: nn.Module

    def __call__(self, h: Array, *, train: bool) -> dict[str, Array]:
        """Returns {"z": z, "p": p}; `train` as in `BatchNorm`."""
        z = self.projector(h, train=train)
        return {"z": z, "p": self.predictor(z, train=train)}
