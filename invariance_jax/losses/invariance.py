"""The invariance penalty: how much a representation changes along a transformation.

The gradient penalty of Foster, Pukdee, Rainforth (ICLR 2021), section 3: the
first-order estimate of twice the conditional variance of the representation under alpha
~ p(alpha).
Deviation: the paper takes reverse-mode derivatives of random sign projections and
averages over them; one forward-mode derivative gives their expectation exactly.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from invariance_jax.numerics import l2_normalize, safe_divide
from invariance_jax.types import Array

NORMALIZATIONS = ("l2", "none", "batch")
"""What the squared change of the representation is measured against."""


def invariance_penalty(
    represent: Callable[[Array], Any],
    alpha: Array,
    alpha_other: Array,
    *,
    normalization: str = "l2",
    example_limit: float | Array | None = None,
    has_aux: bool = False,
    axis_name: str | None = None,
) -> tuple[Array, ...]:
    """Returns the squared directional derivative of each representation, and h.

    Computes `|| d n(h)/d alpha . (alpha' - alpha) ||^2` per example, the mean over K
    directions alpha'. Examples coupled by batch statistics add cross terms: pass
    `alpha + s (alpha' - alpha)` with an independent random sign s per example as
    alpha_other, and they vanish in expectation.

    Args:
      represent: `alpha [B, P] -> h [B, D]`, or `(h, aux)` with has_aux: any function
        that JAX differentiates, its other inputs closed over.
      alpha: `[B, P]`, where the derivative is taken.
      alpha_other: `[B, P]` or `[K, B, P]`, the other ends alpha' of the directions; K
        directions share one linearization.
      normalization: "l2" differentiates n(h) = h / ||h|| (the paper), "none" h itself,
        "batch" divides the squared change of h by the total variance over the batch,
        sum_d Var(h_d), which is constant along alpha but not in the parameters.
      example_limit: the largest value that counts, per example and direction; above it
        the gradient is zero. None: no limit.
      has_aux: whether represent returns `(h, aux)`.
      axis_name: the mapped axis over which the variance of "batch" is taken.

    Returns:
      `(penalty [B], h [B, D])`, with has_aux `(penalty, h, aux)`. The penalty is
      non-negative, dimensionless for "l2" and "batch", squared units of h for "none".

    Raises:
      ValueError: if the shapes of alpha and alpha_other disagree, represent does not
        return [B, D], the normalization is unknown or the limit is not positive.

    Gradients: with respect to all that represent closes over, alpha and alpha_other.
    Cost: one forward-mode pass (about two forward passes more) for one direction, one
    linearization for K.
    """
    _check_inputs(alpha, alpha_other, normalization, example_limit)

    def normalized(alpha: Array) -> tuple[Array, tuple[Array, Any]]:
        h, aux = represent(alpha) if has_aux else (represent(alpha), None)
        chex.assert_shape(
            h,
            (alpha.shape[0], None),
            custom_message="represent must return h [B, D], one row per row of alpha.",
            exception_type=ValueError,
        )
        return (l2_normalize(h) if normalization == "l2" else h), (h, aux)

    if alpha_other.ndim == 2:
        _, change, (h, aux) = jax.jvp(
            normalized, (alpha,), (alpha_other - alpha,), has_aux=True
        )
        change = change[None]
    else:
        _, along, (h, aux) = jax.linearize(normalized, alpha, has_aux=True)
        change = jax.vmap(along)(alpha_other - alpha[None])
    squared = jnp.sum(jnp.square(change), axis=-1)
    if normalization == "batch":
        squared = safe_divide(squared, _total_variance(h, axis_name))
    if example_limit is not None:
        squared = jnp.minimum(squared, example_limit)
    penalty = jnp.mean(squared, axis=0)
    return (penalty, h, aux) if has_aux else (penalty, h)


def _total_variance(h: Array, axis_name: str | None) -> Array:
    """Returns sum_d Var(h_d) over the batch of all replicas, with ddof 0."""

    def mean(values: Array) -> Array:
        local = jnp.mean(values, axis=0, keepdims=True)
        return local if axis_name is None else jax.lax.pmean(local, axis_name)

    return jnp.sum(mean(jnp.square(h - mean(h))))


def _check_inputs(
    alpha: Array,
    alpha_other: Array,
    normalization: str,
    example_limit: float | Array | None,
) -> None:
    if alpha.ndim != 2:
        raise ValueError(f"alpha must be [B, P]; found shape {alpha.shape}.")
    if alpha_other.ndim not in (2, 3) or alpha_other.shape[-2:] != alpha.shape:
        raise ValueError(
            f"alpha_other must be [B, P] or [K, B, P] with alpha {alpha.shape}; "
            f"found shape {alpha_other.shape}."
        )
    if alpha_other.ndim == 3 and alpha_other.shape[0] == 0:
        raise ValueError("alpha_other [K, B, P] must hold K >= 1 directions; found 0.")
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {NORMALIZATIONS}; found {normalization!r}."
        )
    if isinstance(example_limit, int | float) and not example_limit > 0:
        raise ValueError(
            f"example_limit must be positive or None; found {example_limit}."
        )
