"""The invariance penalties: how much a representation changes along a transformation.

`invariance_penalty` is the gradient penalty of Foster, Pukdee, Rainforth (ICLR 2021),
section 3: the first-order estimate of twice the conditional variance of the
representation under alpha ~ p(alpha). `consistency` estimates the same from two views,
without a derivative. `total_effect` estimates, from two views that differ in one
parameter, the variance due to this parameter. Deviation: the paper averages
reverse-mode derivatives of random sign projections; one forward-mode derivative gives
their expectation exactly.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from invariance_jax.arguments import (
    check_array,
    check_choice,
    check_matrix,
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
"""How the squared change of the representation is normalized."""

LIMIT_SHAPES = ("hard", "log")
"""How a limit c changes a squared change q: to `min(q, c)` or `c log(1 + q / c)`."""


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
    directions alpha'. With signs e it computes the paper's `(e . d n(h)/d alpha .
    (alpha' - alpha))^2`, which has the same expectation over e. The batch statistics of
    an encoder couple examples and add cross terms. These vanish in expectation if
    alpha_other is `alpha + s (alpha' - alpha)` with an independent random sign s per
    example.

    Args:
      represent: `alpha [B, P] -> h [B, D]`, or `(h, aux)` with has_aux: any function
        that JAX can differentiate. It closes over its other inputs.
      alpha: `[B, P]`, the point at which the derivative is taken.
      alpha_other: `[B, P]` or `[K, B, P]`, end points alpha' of the directions. K
        directions share one linearization.
      alpha_redrawn: of the shape of alpha_other. Adds the squared full change `|| n(h)
        at alpha_redrawn - n(h) at alpha ||^2`, for parameters along which derivatives
        do not predict the change; alpha_other then equals alpha in these. None: adds 0.
      signs: `[B, D]`, shared by the directions, or `[K, B, D]`: independent random
        signs e, +1 or -1, onto which the derivative is projected. None: takes its norm.
      normalization: "l2" differentiates n(h) = h / ||h|| (the paper), "none" h itself.
        "batch" divides the squared change of h by the total variance over the batch,
        sum_d Var(h_d), which is constant along alpha but not in the parameters.
      example_limit: c, positive, limits the squared change q of each example and
        direction. None: no limit.
      limit_shape: "hard" is `min(q, c)`, whose gradient is zero above c; "log" is
        `c log(1 + q / c)`, which grows slowly above c with a gradient everywhere.
      has_aux: whether represent returns `(h, aux)`.
      axis_name: the mapped axis over which the variance of "batch" is taken. In
        `jax.shard_map`, set `check_vma=False`, or take the gradient outside of it.

    Returns:
      `(penalty [B], h [B, D])`, with has_aux `(penalty, h, aux)`. The penalty is
      non-negative, dimensionless for "l2" and "batch", squared units of h for "none",
      and at least float32; h is as represent gave it.

    Raises:
      ValueError: if the shapes of the alphas and signs disagree, represent does not
        return [B, D], normalization or limit_shape is unknown, the limit is not
        positive, or "batch" is to normalize a batch of one example.

    Gradients: with respect to everything that represent closes over and every alpha.
    Cost: one forward-mode pass (about two more forward passes) for one direction, one
    linearization for K; one forward pass for each alpha_redrawn.
    """
    _check_ends(alpha, alpha_other)
    _check_settings(normalization, example_limit, limit_shape)
    ends = {"alpha_other": alpha_other}
    if alpha_redrawn is not None:
        ends["alpha_redrawn"] = alpha_redrawn
        check_same_shape(**ends)
    alpha, alpha_other, *redrawn = promote(alpha=alpha, **ends)
    normalized = _normalized(represent, normalization, has_aux)
    if alpha_other.ndim == 2:
        r, change, (h, aux) = jax.jvp(
            normalized, (alpha,), (alpha_other - alpha,), has_aux=True
        )
        change = change[None]
    else:
        r, derivative, (h, aux) = jax.linearize(normalized, alpha, has_aux=True)
        change = jax.vmap(derivative)(alpha_other - alpha[None])
    relative = partial(_relative, normalization=normalization, axis_name=axis_name)
    squared = relative(change, h, signs=signs)
    for end in redrawn:
        squared += relative(_full_change(normalized, r, end), h)
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

    Computes `1/2 || n(h) at alpha_redrawn - n(h) at alpha ||^2` per example. If the two
    differ in one redrawn parameter, this is the unbiased estimator of Jansen (1999) of
    the parameter's total effect: the variance that remains if all other parameters are
    known. It needs no derivative. Not in Foster et al. (2021).

    Args:
      represent: as in `invariance_penalty`.
      alpha: `[B, P]`, parameters that do not depend on each other.
      alpha_redrawn: `[B, P]`, or `[K, B, P]` for the mean over K: alpha with one
        parameter of each example redrawn.
      normalization: as in `invariance_penalty`.
      example_limit: as in `invariance_penalty`, for each half squared change.
      limit_shape: as in `invariance_penalty`.
      has_aux: as in `invariance_penalty`.
      axis_name: as in `invariance_penalty`.

    Returns:
      `(penalty [B], h [B, D])`, with has_aux `(penalty, h, aux)`, as
      `invariance_penalty`.

    Raises:
      ValueError: as `invariance_penalty`.

    Gradients: with respect to everything that represent closes over and both alphas.
    Cost: one more forward pass, or K.
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

    Computes `|| n(h1) - n(h2) ||^2` per example. Its expectation over independent views
    is twice the conditional variance, which `invariance_penalty` estimates to first
    order. Not in Foster et al. (2021).

    Args:
      h1: `[B, D]`, representations of the first views.
      h2: `[B, D]`, representations of the second views, in the same order.
      normalization: as in `invariance_penalty`; "batch" takes the mean of the variances
        of both views.
      example_limit: as in `invariance_penalty`, for each example.
      limit_shape: as in `invariance_penalty`.
      axis_name: the mapped axis over which the variance of "batch" is taken.

    Returns:
      `[B]`, non-negative; dimensionless for "l2" and "batch", squared units of h for
      "none"; at least float32.

    Raises:
      ValueError: if h1 and h2 are not two matrices of one shape, normalization or
        limit_shape is unknown, the limit is not positive, or "batch" is to normalize a
        batch of one example.

    Gradients: with respect to h1 and h2.
    """
    _check_settings(normalization, example_limit, limit_shape)
    h1, h2 = promote_pair(h1=h1, h2=h2)
    change = l2_normalize(h1) - l2_normalize(h2) if normalization == "l2" else h1 - h2
    relative = partial(_relative, normalization=normalization, axis_name=axis_name)
    return _limit(relative(change, h1, h2), example_limit, limit_shape)


def _normalized(
    represent: Callable[[Array], PyTree], normalization: str, has_aux: bool
) -> Callable[[Array], tuple[Array, tuple[Array, PyTree]]]:
    """Returns `alpha -> (r, (h, aux))`; r is n(h) or h, in at least float32."""

    def normalized(alpha: Array) -> tuple[Array, tuple[Array, PyTree]]:
        h, aux = represent(alpha) if has_aux else (represent(alpha), None)
        if isinstance(h, tuple):
            raise ValueError(
                "represent must return h [B, D]; found a tuple: set has_aux=True if it "
                "returns (h, aux)."
            )
        expected = "[B, D], one row per row of alpha"
        check_shape("h of represent", h, (len(alpha), None), expected=expected)
        (r,) = promote(h=h)
        r = l2_normalize(r) if normalization == "l2" else r
        return r, (h, aux)

    return normalized


def _full_change(
    normalized: Callable[[Array], tuple[Array, PyTree]], r: Array, ends: Array
) -> Array:
    """Returns the changes from r to its values at the end points, `[K, B, D]`."""
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
    """Returns the squared norms of changes; "batch" divides by the views' variance."""
    variance = jnp.ones((), change.dtype)
    if normalization == "batch":
        views = tuple(promote(h=h)[0] for h in views)
        change, variance = _in_units_of(change, *views, axis_name=axis_name)
    return safe_divide(_squared(change, signs), variance)


def _squared(change: Array, signs: Array | None) -> Array:
    """Returns squared norms along the last axis, or squared projections on signs."""
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
    """Returns the squared changes q after the limit c is applied."""
    if limit is None:
        return squared
    limit = jnp.asarray(limit, squared.dtype)
    if shape == "hard":
        return jnp.minimum(squared, limit)
    return limit * jnp.log1p(squared / limit)


def _in_units_of(
    change: Array, *views: Array, axis_name: str | None
) -> tuple[Array, Array]:
    """Returns a change and the total variance of the views, in a common unit.

    The variance is sum_d Var(h_d) over the batch of all replicas, ddof 0, averaged over
    the views. The unit is near their largest deviation, so squares stay in range.
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
    check_matrix("alpha", alpha, expected="[B, P]")
    check_array(name, ends)
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
