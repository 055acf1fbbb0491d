"""The linear probe that ridge and logistic regression fit, and its predictions."""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from invariance_jax.arguments import check_matrix, promote
from invariance_jax.types import Array


class LinearProbe(NamedTuple):
    """A linear map from representations to targets or logits.

    Attributes:
      kernel: `[D, T]` for regression, target units per representation unit; `[D, C]`
        for classification, logits per representation unit.
      bias: `[T]`, target units; `[C]`, logits.
    """

    kernel: Array
    bias: Array


def predict(probe: LinearProbe, h: Array) -> Array:
    """Returns `h kernel + bias`, the predictions of a linear probe.

    Args:
      probe: kernel `[D, T]`, bias `[T]`; or C instead of T.
      h: float `[B, D]`, representations.

    Returns:
      `[B, T]`, target units, or `[B, C]`, logits; at least float32.

    Raises:
      ValueError: if the shapes of kernel, bias and h do not fit together.

    Gradients: with respect to probe and h.
    """
    check_matrix("h", h, expected="[B, D], representations")
    check_matrix("probe.kernel", probe.kernel, expected="[D, T]")
    num_features, num_targets = probe.kernel.shape
    if h.shape[1] != num_features or probe.bias.shape != (num_targets,):
        raise ValueError(
            f"h must be [B, {num_features}] and probe.bias [{num_targets}] for a "
            f"kernel [{num_features}, {num_targets}], but they are {list(h.shape)} "
            f"and {list(probe.bias.shape)}."
        )
    h, kernel, bias = promote(h=h, kernel=probe.kernel, bias=probe.bias)
    return exact_dot(h, kernel) + bias[None]


exact_dot = functools.partial(jnp.matmul, precision="highest")
"""The matrix product in the full precision of the dtype on every device."""
