"""The invariance penalties: how much a representation changes along a transformation.

The gradient penalty of Foster, Pukdee, Rainforth (ICLR 2021), section 3: the
first-order estimate of twice the conditional variance of the representation under alpha
~ p(alpha). The squared distance of two views estimates the same without a derivative,
and so does, for one parameter, that of two views which differ in it. Deviation: the
paper takes reverse-mode derivatives of random sign projections and averages over them;
one forward-mode derivative gives their expectation exactly.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from invariance_jax.arguments import (
    check_choice,
    check_number,
    check_same_shape,
    check_shape,
    promote,
    promote_pair,
)
from invariance_jax.numerics import (
    batch_mean,
    l2_normalize,
    magnitude,
    num_replicas,
    safe_divide,
)
from invariance_jax.types import Array, PyTree

NORMALIZATIONS = ("l2", "none", "batch")
"""What the squared change of the representation is measured against."""

LIMIT_SHAPES = ("hard", "log")
"""How a squared change q meets its limit c: `min(q, c)`, or `c log(1 + q / c)`."""


def invariance_penalty(
    represent: Callable[[Array], PyTree],
    alpha: Array,
    alpha_other: Array,
    *,
    alpha_redrawn: Array | None = None,
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
      alpha_redrawn: the shape of alpha_other, ends whose full, squared change `|| n(h)
        at alpha_redrawn - n(h) ||^2` is added: for parameters along which derivatives
        predict no change, held in alpha_other. None: nothing is added.
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
      non-negative, dimensionless for "l2" and "batch", squared units of h for "none",
      and at least float32; h is as represent gave it.

    Raises:
      ValueError: if the shapes of alpha, alpha_other and signs disagree, represent does
        not return [B, D], the normalization or the shape of the limit is unknown, the
        limit is not positive, or "batch" is to normalize a batch of one example.

    Gradients: with respect to all that represent closes over and every alpha.
    Cost: one forward-mode pass (about two forward passes more) for one direction, one
    linearization for K; a forward pass for each alpha_redrawn.
    """
    _check_ends(alpha, alpha_other)
    _check_settings(normalization, example_limit, limit_shape)
    alpha, alpha_other = promote(alpha=alpha, alpha_other=alpha_other)
    normalized = _normalized(represent, normalization, has_aux)
    if alpha_other.ndim == 2:
        r, change, (h, aux) = jax.jvp(
            normalized, (alpha,), (alpha_other - alpha,), has_aux=True
        )
        change = change[None]
    else:
        r, along, (h, aux) = jax.linearize(normalized, alpha, has_aux=True)
        change = jax.vmap(along)(alpha_other - alpha[None])
    relative = partial(_relative, normalization=normalization, axis_name=axis_name)
    squared = relative(change, h, signs=signs)
    if alpha_redrawn is not None:
        check_same_shape(alpha_other=alpha_other, alpha_redrawn=alpha_redrawn)
        squared += relative(_full_change(normalized, r, alpha_redrawn), h)
    penalty = jnp.mean(_limit(squared, example_limit, limit_shape), axis=0)
    return (penalty, h, aux) if has_aux else (penalty, h)


def total_effect(
    represent: Callable[[Array], PyTree],
    alpha: Array,
    alpha_redrawn: Array,
    *,
    normalization: str = "l2",
    example_limit: float | Array | None = None,
    limit_shape: str = "hard",
    has_aux: bool = False,
    axis_name: str | None = None,
) -> tuple[Array, ...]:
    """Returns half the squared change of each representation at the full step, and h.

    Computes `1/2 || n(h) at alpha_redrawn - n(h) at alpha ||^2` per example: where the
    two differ in one parameter, drawn anew, the estimator of Jansen (1999) of its total
    effect, the variance that remains where all others are known, without bias and
    without a derivative. Not in Foster et al. (2021).

    Args:
      represent: as of `invariance_penalty`.
      alpha: `[B, P]`, parameters that do not depend on each other.
      alpha_redrawn: `[B, P]`, or `[K, B, P]`, of which the mean is taken: alpha with a
        parameter of each example drawn anew.
      normalization: as of `invariance_penalty`.
      example_limit: as of `invariance_penalty`, for each half squared change.
      limit_shape: as of `invariance_penalty`.
      has_aux: as of `invariance_penalty`.
      axis_name: as of `invariance_penalty`.

    Returns:
      As `invariance_penalty`: `(penalty [B], h [B, D])`, with has_aux `(penalty, h,
      aux)`.

    Raises:
      ValueError: as `invariance_penalty` does.

    Gradients: with respect to all that represent closes over, alpha and alpha_redrawn.
    Cost: one forward pass more, or K.
    """
    _check_ends(alpha, alpha_redrawn, "alpha_redrawn")
    _check_settings(normalization, example_limit, limit_shape)
    alpha, alpha_redrawn = promote(alpha=alpha, alpha_redrawn=alpha_redrawn)
    normalized = _normalized(represent, normalization, has_aux)
    r, (h, aux) = normalized(alpha)
    change = _full_change(normalized, r, alpha_redrawn)
    half = _relative(change, h, normalization=normalization, axis_name=axis_name) / 2
    penalty = jnp.mean(_limit(half, example_limit, limit_shape), axis=0)
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
      "none"; at least float32.

    Raises:
      ValueError: if h1 and h2 are not two matrices of one shape, the normalization or
        the shape of the limit is unknown, the limit is not positive, or "batch" is to
        normalize a batch of one example.

    Gradients: with respect to h1 and h2.
    """
    _check_settings(normalization, example_limit, limit_shape)
    h1, h2 = promote_pair(h1=h1, h2=h2)
    if normalization == "l2":
        change = l2_normalize(h1) - l2_normalize(h2)
    else:
        change = h1 - h2
    relative = partial(_relative, normalization=normalization, axis_name=axis_name)
    return _limit(relative(change, h1, h2), example_limit, limit_shape)


def _normalized(
    represent: Callable[[Array], PyTree], normalization: str, has_aux: bool
) -> Callable[[Array], tuple[Array, tuple[Array, PyTree]]]:
    """Returns `alpha -> (what changes, (h, aux))`: n(h), or h in at least float32."""

    def normalized(alpha: Array) -> tuple[Array, tuple[Array, PyTree]]:
        h, aux = represent(alpha) if has_aux else (represent(alpha), None)
        check_shape(
            "h of represent",
            h,
            (alpha.shape[0], None),
            expected="[B, D], one row per row of alpha",
        )
        (precise,) = promote(h=h)
        precise = l2_normalize(precise) if normalization == "l2" else precise
        return precise, (h, aux)

    return normalized


def _full_change(
    normalized: Callable[[Array], tuple[Array, PyTree]], r: Array, ends: Array
) -> Array:
    """Returns the change from r to that of the ends, `[K, B, D]`."""
    if ends.ndim == 2:
        return (normalized(ends)[0] - r)[None]
    return jax.vmap(lambda end: normalized(end)[0])(ends) - r[None]


def _relative(
    change: Array,
    *views: Array,
    signs: Array | None = None,
    normalization: str,
    axis_name: str | None,
) -> Array:
    """Returns the squared norms of changes, over the variance of the views if asked."""
    variance = jnp.ones((), change.dtype)
    if normalization == "batch":
        views = tuple(promote(h=h)[0] for h in views)
        change, variance = _in_units_of(change, *views, axis_name=axis_name)
    return safe_divide(_squared(change, signs), variance)


def _squared(change: Array, signs: Array | None) -> Array:
    """Returns the squared norm of the last axis, or its squared projection on signs."""
    if signs is None:
        return jnp.sum(jnp.square(change), axis=-1)
    if signs.shape not in (change.shape, change.shape[1:]):
        raise ValueError(
            f"signs must be [B, D] or [K, B, D] with [K, B, D] = {change.shape}; found "
            f"shape {signs.shape}."
        )
    (signs,) = promote(signs=signs)
    signs = signs.reshape(-1, *change.shape[1:]).astype(change.dtype)
    return jnp.square(jnp.sum(signs * change, axis=-1))


def _limit(squared: Array, limit: float | Array | None, shape: str) -> Array:
    """Returns the squared changes q, cut off at the limit c or slowed down by it."""
    if limit is None:
        return squared
    limit = jnp.asarray(limit, squared.dtype)
    if shape == "hard":
        return jnp.minimum(squared, limit)
    return limit * jnp.log1p(squared / limit)


def _in_units_of(
    change: Array, *views: Array, axis_name: str | None
) -> tuple[Array, Array]:
    """Returns a change and the total variance of views in one common unit.

    The variance is sum_d Var(h_d) over the batch of all replicas, with ddof 0, the mean
    over the views. In the unit of their largest entry no square leaves the range.
    """
    if len(views[0]) * num_replicas(axis_name=axis_name) == 1:
        raise ValueError(
            'normalization "batch" needs the variance over a batch of 2 or more '
            "examples; found 1."
        )

    mean = partial(batch_mean, keepdims=True, axis_name=axis_name)
    centred = jnp.concatenate([h - mean(h) for h in views], axis=1)
    unit = magnitude(centred, axis_name=axis_name)
    variance = jnp.sum(mean(jnp.square(centred / unit))) / len(views)
    return change / unit.reshape((1,) * change.ndim), variance


def _check_ends(alpha: Array, ends: Array, name: str = "alpha_other") -> None:
    if alpha.ndim != 2:
        raise ValueError(f"alpha must be [B, P]; found shape {alpha.shape}.")
    if ends.ndim not in (2, 3) or ends.shape[-2:] != alpha.shape:
        raise ValueError(
            f"{name} must be [B, P] or [K, B, P] with alpha {alpha.shape}; "
            f"found shape {ends.shape}."
        )
    if ends.ndim == 3 and ends.shape[0] == 0:
        raise ValueError(f"{name} [K, B, P] must hold K >= 1 directions; found 0.")


def _check_settings(
    normalization: str, example_limit: float | Array | None, limit_shape: str
) -> None:
    check_choice("normalization", normalization, NORMALIZATIONS)
    check_choice("limit_shape", limit_shape, LIMIT_SHAPES)
    if example_limit is not None:
        check_number("example_limit", example_limit, low=0, above=True)
