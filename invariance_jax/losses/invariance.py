"""The invariance penalties: how much a representation changes along a transformation.

The gradient penalty of Foster, Pukdee, Rainforth (ICLR 2021), section 3: the
first-order estimate of twice the conditional variance of the representation under alpha
~ p(alpha). The squared distance of two views estimates the same without a derivative.
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

LIMIT_SHAPES = ("hard", "log")
"""How a squared change q meets its limit c: `min(q, c)`, or `c log(1 + q / c)`."""


def invariance_penalty(
    represent: Callable[[Array], Any],
    alpha: Array,
    alpha_other: Array,
    *,
    signs: Array | None = None,
    normalization: str = "l2",
    example_limit: float | Array | None = None,
    limit_shape: str = "hard",
    has_aux: bool = False,
    axis_name: str | None = None,
) -> tuple[Array, ...]:
    """Returns the squared directional derivative of each representation, and h.

    Computes `|| d n(h)/d alpha . (alpha' - alpha) ||^2` per example, the mean over K
    directions alpha'; with signs e the paper's `(e . d n(h)/d alpha . (alpha' -
    alpha))^2`, the same in expectation over e. Examples coupled by batch statistics add
    cross terms: pass `alpha + s (alpha' - alpha)` with an independent random sign s per
    example as alpha_other, and they vanish in expectation.

    Args:
      represent: `alpha [B, P] -> h [B, D]`, or `(h, aux)` with has_aux: any function
        that JAX differentiates, its other inputs closed over.
      alpha: `[B, P]`, where the derivative is taken.
      alpha_other: `[B, P]` or `[K, B, P]`, the other ends alpha' of the directions; K
        directions share one linearization.
      signs: `[B, D]`, shared by the directions, or `[K, B, D]`: independent random
        signs e, +1 or -1, onto which the derivative is projected. None: its norm.
      normalization: "l2" differentiates n(h) = h / ||h|| (the paper), "none" h itself,
        "batch" divides the squared change of h by the total variance over the batch,
        sum_d Var(h_d), which is constant along alpha but not in the parameters.
      example_limit: c, positive, for the squared change q of each example and direction
        (and sign). None: no limit.
      limit_shape: "hard" is `min(q, c)`, whose gradient is zero above c; "log" is
        `c log(1 + q / c)`, which grows slowly above c with a gradient everywhere.
      has_aux: whether represent returns `(h, aux)`.
      axis_name: the mapped axis over which the variance of "batch" is taken.

    Returns:
      `(penalty [B], h [B, D])`, with has_aux `(penalty, h, aux)`. The penalty is
      non-negative, dimensionless for "l2" and "batch", squared units of h for "none".

    Raises:
      ValueError: if the shapes of alpha, alpha_other and signs disagree, represent does
        not return [B, D], the normalization or the shape of the limit is unknown or the
        limit is not positive.

    Gradients: with respect to all that represent closes over, alpha and alpha_other.
    Cost: one forward-mode pass (about two forward passes more) for one direction, one
    linearization for K.
    """
    _check_ends(alpha, alpha_other)
    _check_settings(normalization, example_limit, limit_shape)

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
    squared = _squared(change, signs)
    if normalization == "batch":
        squared = safe_divide(squared, _total_variance(h, axis_name))
    penalty = jnp.mean(_limit(squared, example_limit, limit_shape), axis=0)
    return (penalty, h, aux) if has_aux else (penalty, h)


def consistency(
    h1: Array,
    h2: Array,
    *,
    normalization: str = "l2",
    example_limit: float | Array | None = None,
    limit_shape: str = "hard",
    axis_name: str | None = None,
) -> Array:
    """Returns the squared distance of the representations of two views.

    Computes `|| n(h1) - n(h2) ||^2` per example: in expectation over independent views
    twice the conditional variance, whose first-order estimate `invariance_penalty` is.
    Not in Foster et al. (2021).

    Args:
      h1: `[B, D]`, representations of the first views.
      h2: `[B, D]`, representations of the second views, in the same order.
      normalization: as of `invariance_penalty`; the variance of "batch" is the mean of
        those of both views.
      example_limit: as of `invariance_penalty`, of each example.
      limit_shape: as of `invariance_penalty`.
      axis_name: the mapped axis over which the variance of "batch" is taken.

    Returns:
      `[B]`, non-negative; dimensionless for "l2" and "batch", squared units of h for
      "none".

    Raises:
      ValueError: if h1 and h2 are not two matrices of one shape, the normalization or
        the shape of the limit is unknown or the limit is not positive.

    Gradients: with respect to h1 and h2.
    """
    chex.assert_rank(
        [h1, h2], 2, custom_message="h1, h2 must be [B, D].", exception_type=ValueError
    )
    chex.assert_equal_shape(
        [h1, h2],
        custom_message="h1 and h2 must be of one shape [B, D].",
        exception_type=ValueError,
    )
    _check_settings(normalization, example_limit, limit_shape)
    n1, n2 = map(l2_normalize, (h1, h2)) if normalization == "l2" else (h1, h2)
    squared = _squared(n1 - n2, None)
    if normalization == "batch":
        both = _total_variance(h1, axis_name) + _total_variance(h2, axis_name)
        squared = safe_divide(squared, both / 2)
    return _limit(squared, example_limit, limit_shape)


def _squared(change: Array, signs: Array | None) -> Array:
    """Returns the squared norm of the last axis, or its squared projection on signs."""
    if signs is None:
        return jnp.sum(jnp.square(change), axis=-1)
    if signs.shape not in (change.shape, change.shape[1:]):
        raise ValueError(
            f"signs must be [B, D] or [K, B, D] with [K, B, D] = {change.shape}; found "
            f"shape {signs.shape}."
        )
    signs = signs.reshape(-1, *change.shape[1:]).astype(change.dtype)
    return jnp.square(jnp.sum(signs * change, axis=-1))


def _limit(squared: Array, limit: float | Array | None, shape: str) -> Array:
    """Returns the squared changes q, cut off at the limit c or slowed down by it."""
    if limit is None:
        return squared
    if shape == "hard":
        return jnp.minimum(squared, limit)
    return limit * jnp.log1p(squared / limit)


def _total_variance(h: Array, axis_name: str | None) -> Array:
    """Returns sum_d Var(h_d) over the batch of all replicas, with ddof 0."""

    def mean(values: Array) -> Array:
        local = jnp.mean(values, axis=0, keepdims=True)
        return local if axis_name is None else jax.lax.pmean(local, axis_name)

    return jnp.sum(mean(jnp.square(h - mean(h))))


def _check_ends(alpha: Array, alpha_other: Array) -> None:
    if alpha.ndim != 2:
        raise ValueError(f"alpha must be [B, P]; found shape {alpha.shape}.")
    if alpha_other.ndim not in (2, 3) or alpha_other.shape[-2:] != alpha.shape:
        raise ValueError(
            f"alpha_other must be [B, P] or [K, B, P] with alpha {alpha.shape}; "
            f"found shape {alpha_other.shape}."
        )
    if alpha_other.ndim == 3 and alpha_other.shape[0] == 0:
        raise ValueError("alpha_other [K, B, P] must hold K >= 1 directions; found 0.")


def _check_settings(
    normalization: str, example_limit: float | Array | None, limit_shape: str
) -> None:
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {NORMALIZATIONS}; found {normalization!r}."
        )
    if isinstance(example_limit, int | float) and not example_limit > 0:
        raise ValueError(
            f"example_limit must be positive or None; found {example_limit}."
        )
    if limit_shape not in LIMIT_SHAPES:
        raise ValueError(
            f"limit_shape must be one of {LIMIT_SHAPES}; found {limit_shape!r}."
        )
