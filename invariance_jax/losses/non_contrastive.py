"""Losses without negatives: Barlow Twins, VICReg, EMP-SSL, cosine of SimSiam and BYOL.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins: Self-Supervised Learning via Redundancy
Reduction (ICML 2021). Bardes, Ponce, LeCun: VICReg: Variance-Invariance-Covariance
Regularization for Self-Supervised Learning (ICLR 2022). Chen, He: Exploring Simple
Siamese Representation Learning (CVPR 2021). Grill et al.: Bootstrap Your Own Latent
(NeurIPS 2020). Tong, Chen, Ma, LeCun: EMP-SSL: Towards Self-Supervised Learning in One
Training Epoch (2023).

Terms that are statistics of the batch are part of every example's loss, so the mean
over the examples is the loss of the paper. With `axis_name` the statistics are taken
over all replicas. The gradients of the local means, averaged over replicas, give the
gradient of the mean over the joined batch. In `jax.shard_map`, set `check_vma=False`,
or take the gradient outside of it.
"""

from functools import partial

import jax
import jax.numpy as jnp

from invariance_jax.arguments import check_number, check_shape, promote, promote_pair
from invariance_jax.numerics import (
    batch_mean,
    l2_normalize,
    magnitude,
    num_replicas,
    safe_divide,
    safe_sqrt,
)
from invariance_jax.types import Array

_VARIANCE_EPSILON = 1e-4


def barlow_twins(
    z1: Array,
    z2: Array,
    *,
    off_diagonal_weight: float | Array,
    axis_name: str | None = None,
) -> Array:
    """Returns the loss of Barlow Twins, the same value for each example.

    Computes `sum_i (1 - c_ii)^2 + w sum_{i != j} c_ij^2`, c being the correlations over
    the batch between the features of z1 and those of z2, Zbontar et al. (2021). A
    constant feature has correlation 0. Deviation: their code adds 1e-5, the epsilon of
    BatchNorm, to the variances.

    Args:
      z1: `[B, D]`, projections of the first views.
      z2: `[B, D]`, projections of the second views, in the same order.
      off_diagonal_weight: w, 0 or more; 0.005 in the paper.
      axis_name: the mapped axis over which the batch is spread. None: one replica.

    Returns:
      `[B]`, non-negative, without a unit, at least float32.

    Raises:
      ValueError: if z1 and z2 are not two matrices of one shape, the batch holds one
        example, or the weight is not a number of 0 or more.

    Gradients: with respect to both projections.
    Cost: one product of `[D, B]` with `[B, D]`, and one array `[D, D]`.
    """
    check_number("off_diagonal_weight", off_diagonal_weight, low=0)
    z1, z2 = _check_pair(z1, z2, axis_name)
    mean = partial(batch_mean, keepdims=True, axis_name=axis_name)
    standardized = []
    for z in (z1, z2):
        centred = z - mean(z)
        centred = centred / magnitude(centred, axis=0, axis_name=axis_name)
        deviation = safe_sqrt(mean(jnp.square(centred)))
        standardized.append(safe_divide(centred, deviation))
    first, second = standardized
    correlation = _mean_product(first, second, axis_name)
    on_diagonal = jnp.sum(jnp.square(1 - jnp.diagonal(correlation)))
    loss = on_diagonal + off_diagonal_weight * _off_diagonal(correlation)
    return jnp.full(len(z1), loss.astype(z1.dtype))


def vicreg(
    z1: Array,
    z2: Array,
    *,
    invariance_weight: float | Array,
    variance_weight: float | Array,
    covariance_weight: float | Array,
    axis_name: str | None = None,
) -> Array:
    """Returns the loss of VICReg of each example.

    Computes `w_i mean_d (z1 - z2)^2 + w_v (v(z1) + v(z2)) / 2 + w_c (c(z1) + c(z2))`
    with `v(z) = mean_d max(0, 1 - sqrt(Var(z_d) + 1e-4))` and `c(z) = sum_{d != e}
    Cov(z_d, z_e)^2 / D`, variances and covariances over the batch with ddof 1. This is
    the code of Bardes et al. (2022); their text has no factor 1/2 before the variance.

    Args:
      z1: `[B, D]`, projections of the first views.
      z2: `[B, D]`, projections of the second views, in the same order.
      invariance_weight: w_i, 0 or more; 25 in the paper.
      variance_weight: w_v, 0 or more; 25 in the paper.
      covariance_weight: w_c, 0 or more; 1 in the paper.
      axis_name: the mapped axis over which the batch is spread. None: one replica.

    Returns:
      `[B]`, non-negative, at least float32.

    Raises:
      ValueError: if z1 and z2 are not two matrices of one shape, the batch holds one
        example, or a weight is not a number of 0 or more.

    Gradients: with respect to both projections.
    Cost: two products of `[D, B]` with `[B, D]`, and two arrays `[D, D]`.
    """
    check_number("invariance_weight", invariance_weight, low=0)
    check_number("variance_weight", variance_weight, low=0)
    check_number("covariance_weight", covariance_weight, low=0)
    z1, z2 = _check_pair(z1, z2, axis_name)
    num_examples = len(z1) * num_replicas(axis_name=axis_name)
    variance, covariance = jnp.zeros((2,), z1.dtype)
    for z in (z1, z2):
        centred = z - batch_mean(z, keepdims=True, axis_name=axis_name)
        matrix = _mean_product(centred, centred, axis_name)
        matrix = matrix * (num_examples / (num_examples - 1))
        deviation = jnp.sqrt(jnp.diagonal(matrix) + _VARIANCE_EPSILON)
        variance += jnp.mean(jax.nn.relu(1 - deviation)) / 2
        covariance += _off_diagonal(matrix) / z.shape[1]
    invariance = jnp.mean(jnp.square(z1 - z2), axis=1)
    of_batch = variance_weight * variance + covariance_weight * covariance
    return (invariance_weight * invariance + of_batch).astype(z1.dtype)


def emp_ssl(
    z: Array,
    *,
    invariance_weight: float | Array,
    distortion: float,
    axis_name: str | None = None,
) -> Array:
    """Returns the loss of EMP-SSL of each example, from any number of its patches.

    Computes `-mean_i (R(n(z_i)) + w cos(n(z_i), a))`, a being the mean of n(z_i) over
    the M patches and `R(Z) = log det(I + D / (B e) Z^T Z) / 2` the coding rate of the
    rows of Z `[B, D]`, Tong et al. (2023), equation 3.

    Args:
      z: `[M, B, D]`, projections of the patches, M of 2 or more.
      invariance_weight: w, 0 or more; 200 in the paper.
      distortion: e, the paper's epsilon squared, above 0; 0.2 in the paper.
      axis_name: the mapped axis over which the batch is spread. None: one replica.

    Returns:
      `[B]`, without a unit, at least float32. All examples share the coding rate.

    Raises:
      ValueError: if z is not of rank 3 with 2 or more patches, the weight is negative,
        or the distortion is not positive.

    Gradients: with respect to z; 0 where a projection is 0.
    Cost: M products of `[D, B]` with `[B, D]`, and M determinants of `[D, D]`.
    """
    check_number("invariance_weight", invariance_weight, low=0)
    check_number("distortion", distortion, low=0, above=True)
    check_shape("z", z, (None, None, None), expected="[M, B, D]")
    if len(z) < 2:
        raise ValueError(f"z must hold 2 or more patches; found {len(z)}.")
    (z,) = promote(z=z)
    z = l2_normalize(z)
    similarity = jnp.sum(z * l2_normalize(jnp.mean(z, axis=0))[None], axis=2)
    moments = jnp.stack([_mean_product(rows, rows, axis_name) for rows in z])
    scale = z.shape[2] / distortion
    identity = jnp.eye(z.shape[2], dtype=z.dtype)
    rate = jnp.linalg.slogdet(identity[None] + scale * moments).logabsdet / 2
    return -jnp.mean(rate) - invariance_weight * jnp.mean(similarity, axis=0)


def negative_cosine(p: Array, z: Array) -> Array:
    """Returns minus the cosine similarity of a prediction and its target.

    Computes `-n(p) . n(z)`, D(p, z) of SimSiam, Chen and He (2021); BYOL's loss is `2 +
    2 D`. Both stop the gradient of the target: pass `jax.lax.stop_gradient(z)`.

    Args:
      p: `[B, D]`, predictions from one view.
      z: `[B, D]`, projections of the other view, in the same order.

    Returns:
      `[B]`, in [-1, 1], 0 where one of the two is zero; at least float32.

    Raises:
      ValueError: if p and z are not two matrices of one shape.

    Gradients: with respect to both.
    """
    p, z = promote_pair(p=p, z=z)
    return -jnp.sum(l2_normalize(p) * l2_normalize(z), axis=1)


def _check_pair(z1: Array, z2: Array, axis_name: str | None) -> list[Array]:
    pair = promote_pair(z1=z1, z2=z2)
    if len(z1) * num_replicas(axis_name=axis_name) < 2:
        raise ValueError(
            f"z1 and z2 must hold 2 or more examples, for statistics over them; found "
            f"{len(z1)}."
        )
    return pair


def _mean_product(a: Array, b: Array, axis_name: str | None) -> Array:
    """Returns `[D, D]`, the mean of a_i b_j over the examples of all replicas."""
    # "highest": accelerators otherwise round float32 factors to 8 or 11 bits.
    product = jnp.matmul(a.T, b, precision="highest") / len(a)
    return product if axis_name is None else jax.lax.pmean(product, axis_name)


def _off_diagonal(matrix: Array) -> Array:
    """Returns the sum of squares of the off-diagonal entries."""
    is_off_diagonal = ~jnp.eye(len(matrix), dtype=bool)
    return jnp.sum(jnp.square(jnp.where(is_off_diagonal, matrix, 0)))
