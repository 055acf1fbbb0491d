"""Batch normalization over groups of examples, on any number of replicas.

Ioffe and Szegedy (2015), with two things that flax's module lacks. The statistics are
those of groups of `group_size` consecutive examples of the *global* batch, so that the
number of devices does not change them (Foster et al. (2021) take 64 images per group in
the encoder). And the tangent of the statistics may be stopped in the innermost forward
derivative, so that the invariance penalty sees each example on its own.

Conventions: the last axis holds the channels, the first the examples; replica r of n
holds examples `r b` to `(r + 1) b` of a global batch of `n b`. Variances are biased
(ddof 0), in the running average too, as flax's; PyTorch's running variance is unbiased.
Mean and variance take one pass, in at least float32: deviations from one of the values,
whose square mean and mean square differ by little more than the variance (from 0 where
the input is bfloat16 and has lost those digits already).
Accelerators wait for memory here: what is as large as the input is summed over the
places of each example and multiplied once, so that a derivative of any order passes
over it as rarely as can be; all else is of the size of a few rows.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from invariance_jax.arguments import check_choice
from invariance_jax.numerics import hold_in_first_derivative, num_replicas
from invariance_jax.types import Array

TANGENTS = ("coupled", "example")


class Moments(NamedTuple):
    """Mean and biased variance of the channels, one row for each group held here.

    Attributes:
      mean: `[G, C]`, units of the input.
      variance: `[G, C]`, squared units of the input, non-negative.
    """

    mean: Array
    variance: Array


def group_moments(
    x: Array, *, group_size: int, axis_name: str | None = None
) -> Moments:
    """Returns the moments of the groups that the examples of this replica belong to.

    Groups are consecutive examples of the global batch: several within a replica, or
    one that spans several whole replicas. Moments are over the examples of a group and
    all axes between the first and the last, in at least float32.

    Args:
      x: float `[B, ..., C]`, the examples of this replica.
      group_size: examples per group; 0 is the global batch.
      axis_name: the mapped axis of replicas; None means one replica.

    Returns:
      Moments `[G, C]`: G groups of `B / G` consecutive rows of x each.

    Raises:
      ValueError: if x has no channel axis or is not floating, or if groups of this
        size neither divide the replica's batch nor consist of whole replicas.

    Gradients: with respect to x, of any order and mode, through the other replicas.
    """
    _check_features(x)
    groups, span = _layout(x.shape[0], group_size, axis_name)
    rows = _rows(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    # About one of the values, so that the difference below cancels little.
    pivot = _constant(rows[:: len(x) // groups, 0], x.dtype)
    shifted = rows - _of_examples(pivot, len(x))
    # Next to each other, since each sum by itself is a program of an accelerator; the
    # division comes after they are parted, or it would be one too.
    sums = [jnp.sum(part, axis=1) for part in (shifted, jnp.square(shifted))]
    both = jnp.concatenate(sums, axis=-1).reshape(groups, -1, 2 * x.shape[-1])
    count = x.size // (groups * x.shape[-1])
    total = jnp.split(jnp.sum(both, axis=1), 2, axis=-1)
    shift, square = (each / count for each in total)
    variance = jnp.maximum(square - jnp.square(shift), 0)
    mean = pivot + shift
    if span == 1:
        return Moments(mean, variance)
    # Both in one exchange: at many devices, its latency is what normalization costs.
    means, variances = _of_replicas(jnp.stack([mean, variance]), span, axis_name)
    mean = jnp.mean(means, axis=0, keepdims=True)
    spread = variances + jnp.square(means - mean)
    return Moments(mean[0], jnp.mean(spread, axis=0))


class BatchNorm(nn.Module):
    """Batch normalization with groups of the global batch and a choice of tangent.

    Variables: `params` (`scale`, `bias`: float32 `[C]`) and `batch_stats` (`mean`,
    `var`: `[C]`, at least float32, started at 0 and 1). In training mode the running
    averages move to the mean over all groups and replicas, so they are the same on
    each replica; they are left alone where the caller has not made `batch_stats`
    mutable. While the variables are initialized there are neither groups nor
    replicas, so a dummy batch of one example will do.

    Attributes:
      momentum: the weight of the old running average in the new, flax's sense (PyTorch
        calls 1 minus this the momentum).
      epsilon: added to the variance, squared units of the input.
      use_scale: whether a learnt scale multiplies the normalized input.
      use_bias: whether a learnt bias is added.
      group_size: examples of the global batch per group; 0 is all of them.
      tangent: "coupled", the derivative as it is: in training mode examples act on
        each other through the statistics; or "example", statistics are constants to
        the innermost derivative and to no other. "example" is only for the function
        that `invariance_penalty` differentiates: in a plain `jax.grad` it would drop
        the gradient through the statistics.
      axis_name: the mapped axis of replicas; None means one replica.
      dtype: of the output; None is that of the input.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    group_size: int = 0
    tangent: str = "coupled"
    axis_name: str | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Returns x with each channel normalized, then scaled and shifted.

        Args:
          x: float `[B, ..., C]`, the examples of this replica.
          train: True normalizes by the statistics of the groups and updates the
            running averages, False normalizes by the running averages.

        Returns:
          The shape of x; per channel of a group mean 0 and variance 1 before scale and
          bias, 0 where a channel is constant.

        Raises:
          ValueError: if x has no channel axis or is not floating, `tangent` is unknown,
            or `group_size` does not fit the batch.

        Gradients: with respect to x and the parameters, reverse over forward mode
          included; finite for a constant channel.
        """
        _check_features(x)
        check_choice("tangent", self.tangent, TANGENTS)
        moments = self._moments(x, train)
        # About the mean as a constant, so that large means lose no digits.
        centre = _constant(moments.mean, x.dtype)
        factor = jax.lax.rsqrt(moments.variance + self.epsilon)
        if self.use_scale:
            factor = factor * self._parameter("scale", nn.initializers.ones, x)
        offset = (centre - moments.mean) * factor
        if self.use_bias:
            offset = offset + self._parameter("bias", nn.initializers.zeros, x)
        both = _of_examples(jnp.concatenate([factor, offset], axis=-1), len(x))
        rows = _rows(x)
        # Of the shape of x, so that derivatives are added up before they are summed.
        factor, offset = (
            jnp.broadcast_to(each, rows.shape) for each in jnp.split(both, 2, axis=-1)
        )
        y = (rows - _of_examples(centre, len(x))) * factor + offset
        return y.reshape(x.shape).astype(self.dtype or x.dtype)

    def _parameter(
        self, name: str, init: nn.initializers.Initializer, x: Array
    ) -> Array:
        return self.param(name, init, x.shape[-1:], jnp.float32)[None]

    def _moments(self, x: Array, train: bool) -> Moments:
        """Returns the moments to normalize by; updates the running averages."""
        channels = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            return Moments(mean.value[None], var.value[None])
        if self.is_initializing():
            return group_moments(x, group_size=0)
        moments = group_moments(x, group_size=self.group_size, axis_name=self.axis_name)
        if self.is_mutable_collection("batch_stats"):
            # one group over all replicas is the same on each of them already
            means = jnp.mean(jnp.stack(moments), axis=1)
            if self.axis_name is not None and self.group_size:
                means = jax.lax.pmean(means, self.axis_name)
            for average, new in zip((mean, var), means, strict=True):
                new = self.momentum * average.value + (1 - self.momentum) * new
                average.value = new.astype(average.value.dtype)
        if self.tangent == "example":
            moments = Moments(*map(hold_in_first_derivative, moments))
        return moments


def _rows(x: Array) -> Array:
    """Returns the places of each example in one axis, `[B, N, C]`."""
    return x.reshape(len(x), -1, x.shape[-1])


def _of_examples(moment: Array, examples: int) -> Array:
    """Returns what each example takes of moments `[G, C]`, `[B, 1, C]`."""
    return jnp.repeat(moment, examples // len(moment), axis=0)[:, None]


def _constant(shift: Array, dtype: DTypeLike) -> Array:
    """Returns what to shift values of a dtype by, a constant to derivatives.

    0 for bfloat16: it has lost more digits than large means would cost in float32, and
    the shift would take time.
    """
    shift = jax.lax.stop_gradient(shift)
    return jnp.zeros_like(shift) if dtype == jnp.bfloat16 else shift


def _check_features(x: Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, expected [B, ..., C]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}, expected a floating one")


def _layout(batch: int, group_size: int, axis_name: str | None) -> tuple[int, int]:
    """Returns the groups within a replica, and the replicas that one group spans."""
    replicas = num_replicas(axis_name=axis_name)
    size = group_size or batch * replicas
    if size > 0 and batch % size == 0:
        return batch // size, 1
    if size > 0 and size % batch == 0 and replicas % (size // batch) == 0:
        return 1, size // batch
    raise ValueError(
        f"group_size is {group_size}, expected 0 or a divisor of the {batch} examples "
        f"of a replica, or whole replicas that divide the {replicas} there are"
    )


def _of_replicas(moments: Array, span: int, axis_name: str | None) -> Array:
    """Returns the `[2, G, C]` of the own consecutive replicas, `[2, span, G, C]`."""
    # vmap has no axis_index_groups, so every replica gathers and takes its own part.
    everywhere = jax.lax.all_gather(moments, axis_name, axis=1)
    start = jax.lax.axis_index(axis_name) // span * span
    return jax.lax.dynamic_slice_in_dim(everywhere, start, span, axis=1)
