"""Operations that a training step needs, counted from the shapes of its layers."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from invariance_jax.training.components import (
    make_networks,
    make_stand_ins,
    make_transformation,
)
from invariance_jax.training.objective import penalized_views
from invariance_jax.training.settings import resolve


class Operations(NamedTuple):
    """Floating-point operations of a step, a multiply-add as two.

    Attributes:
      example: of encoder and head, for one example of the batch.
      pair: of the similarities, for one example with one other.
    """

    example: float
    pair: float

    def of_batch(self, size: int) -> float:
        """Returns the operations of a step of so many examples."""
        return self.example * size + self.pair * size**2


def of_step(config: ConfigDict) -> Operations:
    """Returns the operations of a step.

    Those of the convolutions and matrix products of encoder and head, and of the
    similarities: forward and twice that backward, and the same again for each view
    along which the encoder is differentiated. The exact count is a little lower, as
    the first layer needs no gradient of its input; recomputation is not counted.

    Args:
      config: a configuration with the keys of `configs/base.py`; every example is
        penalized or none, by directional derivatives.

    Raises:
      ValueError: if the configuration is invalid.
    """
    settings = resolve(config)
    networks, transformation = make_networks(settings), make_transformation(settings)

    def views() -> Any:
        x = make_stand_ins(settings)
        return transformation.apply(x, transformation.sample(jax.random.key(0), len(x)))

    images = jax.eval_shape(views)
    h, encoder = products(networks.encoder, images)
    z, head = products(networks.head, h)
    tangents = penalized_views(settings) * settings.penalty.directions
    passes = 2 * settings.average_views + tangents
    passes_of_head = 2 + tangents * (settings.penalty.at == "z")
    # Forward, and backward for inputs and weights. Of two examples, four views meet.
    return Operations(
        example=2.0 * 3 * (passes * encoder + passes_of_head * head),
        pair=2.0 * 3 * 4 * z.shape[-1],
    )


def products(module: nn.Module, x: Any) -> tuple[Any, int]:
    """Returns what a module makes of examples, as a shape, and its multiplications.

    Args:
      module: called with `(x, train=False)`.
      x: array or shape `[B, ...]`.

    Returns:
      The shape of the result, and the multiplications of one example in the layers
      that have a `kernel`.
    """

    def init(x: Any) -> Any:
        return module.init_with_output(
            jax.random.key(0), x, train=False, capture_intermediates=True
        )

    result, variables = jax.eval_shape(init, x)
    outputs = flatten_dict(variables["intermediates"])
    count = 0
    for path, kernel in flatten_dict(variables["params"]).items():
        if path[-1] == "kernel":
            (output,) = outputs[(*path[:-1], "__call__")]
            count += math.prod(output.shape[1:-1]) * math.prod(kernel.shape)
    return result, count
