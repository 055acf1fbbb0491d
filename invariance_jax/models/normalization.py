"""Batch normalization over groups of examples, on any number of replicas.

Ioffe and Szegedy (2015), with two features that flax's module lacks. Batch statistics
are computed over groups of `group_size` consecutive examples of the *global* batch, so
the number of devices does not change them (Foster et al. (2021) use groups of 64 images
in the encoder). And the tangent of the statistics can be stopped in the innermost
forward-mode derivative, so that the invariance penalty treats each example on its own.

Conventions: the first axis holds the examples, the last the channels; replica r of n
holds examples `r b` to `(r + 1) b` of a global batch of `n b`. Variances are biased
(ddof 0), also the running variance, as in flax; PyTorch's running variance is unbiased.
Mean and variance are computed in one pass, in at least float32, from deviations from
one of the values: then the difference of mean square and squared mean loses few digits.
For bfloat16 the deviations are from 0: the input has lost these digits already.
Memory bandwidth limits this module on accelerators. So arrays as large as the input are
summed over the positions of each example, and multiplied, only once: derivatives of any
order read them as rarely as possible. All other arrays have the size of a few rows.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from invariance_jax.arguments import check_choice, check_integer
from invariance_jax.numerics import hold_in_first_derivative, num_replicas
from invariance_jax.types import Array

TANGENTS = ("coupled", "example")


class Moments(NamedTuple):
    """Mean and biased variance of each channel, one row per group of this replica.

    Attributes:
      mean: `[G, C]`, units of the input.
      variance: `[G, C]`, squared units of the input, non-negative.
    """

    mean: Array
    variance: Array


def group_moments(
    x: Array, *, group_size: int, axis_name: str | None = None
) -> Moments:
    """Returns the moments of the groups to which this replica's examples belong.

    Groups are consecutive examples of the global batch: one or more within a replica,
    or one that spans several whole replicas. Moments are taken over the examples of a
    group and all axes between the first and the last, in at least float32.

    Args:
      x: float `[B, ..., C]`, the examples of this replica.
      group_size: examples per group; 0 is the global batch.
      axis_name: the mapped axis of replicas; None means one replica.

    Returns:
      `Moments`, `[G, C]` each: group g holds rows `g B / G` to `(g + 1) B / G` of x.

    Raises:
      ValueError: if x has no channel axis or is not floating, or if groups of this
        size neither divide the replica's batch nor consist of whole replicas.

    Gradients: with respect to x, of any order and mode, through other replicas too.
    """
    _check_features(x)
    groups, span = _layout(x.shape[0], group_size, axis_name)
    rows = _flatten_positions(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    # Deviations from one of the values, so that the difference below cancels little.
    pivot = _constant_shift(rows[:: len(x) // groups, 0], x.dtype)
    shifted = rows - _repeat_per_example(pivot, len(x))
    # Concatenated, since an accelerator launches one kernel per sum. The division comes
    # after the split, as it would be one more kernel before it.
    sums = [jnp.sum(values, axis=1) for values in (shifted, jnp.square(shifted))]
    both = jnp.concatenate(sums, axis=-1).reshape(groups, -1, 2 * x.shape[-1])
    count = x.size // (groups * x.shape[-1])
    totals = jnp.split(jnp.sum(both, axis=1), 2, axis=-1)
    shift, square = (total / count for total in totals)
    variance = jnp.maximum(square - jnp.square(shift), 0)
    mean = pivot + shift
    if span == 1:
        return Moments(mean, variance)
    # Both in one collective: on many devices, normalization costs mostly its latency.
    means, variances = _gather_group(jnp.stack([mean, variance]), span, axis_name)
    mean = jnp.mean(means, axis=0, keepdims=True)
    spread = variances + jnp.square(means - mean)
    return Moments(mean[0], jnp.mean(spread, axis=0))


class BatchNorm(nn.Module):
    """Batch normalization with groups of the global batch and a choice of tangent.

    Variables: `params` (`scale`, `bias`: float32 `[C]`) and `batch_stats` (`mean`,
    `var`: `[C]`, at least float32, initially 0 and 1), the running statistics. In
    training mode they move towards the mean over all groups and replicas, so they are
    the same on each replica; they do not change unless the caller makes `batch_stats`
    mutable. Initialization ignores groups and replicas, so a dummy batch of one example
    is enough.

    Attributes:
      momentum: the weight of the old running statistics in the new ones, as in flax
        (PyTorch's momentum is 1 minus this).
      epsilon: added to the variance, squared units of the input.
      use_scale: whether a learnt scale multiplies the normalized input.
      use_bias: whether a learnt bias is added.
      group_size: examples of the global batch per group; 0 is all of them.
      tangent: "coupled", the exact derivative: in training mode the statistics couple
        the examples; or "example", the innermost derivative, and no other, treats the
        statistics as constants. "example" is only for the function that
        `invariance_penalty` differentiates: in a plain `jax.grad` it would drop the
        gradient through the statistics.
      axis_name: the mapped axis of replicas; None means one replica.
      dtype: of the output; None: the dtype of the input.
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
          train: True normalizes by batch statistics and updates the running statistics;
            False normalizes by the running statistics.

        Returns:
          The shape of x. In training mode, before scale and bias, each channel has mean
          0 and variance 1 over a group, or is 0 where it is constant.

        Raises:
          ValueError: if x has no channel axis or is not floating, `tangent` is unknown,
            or `group_size` does not fit the batch.

        Gradients: with respect to x and the parameters, reverse over forward mode
          included; finite for a constant channel.
        """
        _check_features(x)
        check_choice("tangent", self.tangent, TANGENTS)
        moments = self._moments(x, train)
        # The mean is subtracted as a constant, so that large means lose no digits.
        centre = _constant_shift(moments.mean, x.dtype)
        factor = jax.lax.rsqrt(moments.variance + self.epsilon)
        if self.use_scale:
            factor = factor * self._parameter("scale", nn.initializers.ones, x)
        offset = (centre - moments.mean) * factor
        if self.use_bias:
            offset = offset + self._parameter("bias", nn.initializers.zeros, x)
        both = _repeat_per_example(jnp.concatenate([factor, offset], axis=-1), len(x))
        rows = _flatten_positions(x)
        # Broadcast first, so that cotangents are added up before they are reduced.
        factor, offset = (
            jnp.broadcast_to(half, rows.shape) for half in jnp.split(both, 2, axis=-1)
        )
        y = (rows - _repeat_per_example(centre, len(x))) * factor + offset
        return y.reshape(x.shape).astype(self.dtype or x.dtype)

    def _parameter(
        self, name: str, init: nn.initializers.Initializer, x: Array
    ) -> Array:
        return self.param(name, init, x.shape[-1:], jnp.float32)[None]

    def _moments(self, x: Array, train: bool) -> Moments:
        """Returns the moments to normalize by; updates the running statistics."""
        channels = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not train:
            return Moments(mean.value[None], var.value[None])
        if self.is_initializing():
            return group_moments(x, group_size=0)
        moments = group_moments(x, group_size=self.group_size, axis_name=self.axis_name)
        if self.is_mutable_collection("batch_stats"):
            # One group over all replicas has the same moments on each of them already.
            means = jnp.mean(jnp.stack(moments), axis=1)
            if self.axis_name is not None and self.group_size:
                means = jax.lax.pmean(means, self.axis_name)
            for average, new in zip((mean, var), means, strict=True):
                new = self.momentum * average.value + (1 - self.momentum) * new
                average.value = new.astype(average.value.dtype)
        if self.tangent == "example":
            moments = Moments(*map(hold_in_first_derivative, moments))
        return moments


def _flatten_positions(x: Array) -> Array:
    """Returns x with all positions of an example in one axis, `[B, N, C]`."""
    return x.reshape(len(x), -1, x.shape[-1])


def _repeat_per_example(moment: Array, examples: int) -> Array:
    """Returns moments `[G, C]` repeated for the examples of each group, `[B, 1, C]`."""
    return jnp.repeat(moment, examples // len(moment), axis=0)[:, None]


def _constant_shift(shift: Array, dtype: DTypeLike) -> Array:
    """Returns the shift as a constant to derivatives; 0 for inputs of dtype bfloat16.

    bfloat16 has lost more digits than large means would cost in float32, and the shift
    would take time.
    """
    shift = jax.lax.stop_gradient(shift)
    return jnp.zeros_like(shift) if dtype == jnp.bfloat16 else shift


def _check_features(x: Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"x has shape {x.shape}, expected [B, ..., C]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}, expected a floating one")


def _layout(batch: int, group_size: int, axis_name: str | None) -> tuple[int, int]:
    """Returns the number of groups in a replica, and of replicas that a group spans."""
    replicas = num_replicas(axis_name=axis_name)
    size = check_integer("group_size", group_size, least=0) or batch * replicas
    if size > 0 and batch % size == 0:
        return batch // size, 1
    if size > 0 and size % batch == 0 and replicas % (size // batch) == 0:
        return 1, size // batch
    raise ValueError(
        f"group_size is {group_size}, expected 0, a divisor of the {batch} examples of "
        f"a replica, or {batch} times a divisor of the {replicas} replicas"
    )


def _gather_group(moments: Array, span: int, axis_name: str | None) -> Array:
    """Returns moments `[2, G, C]` of all replicas of this group, `[2, span, G, C]`."""
    # vmap has no axis_index_groups: gather from all replicas, then select the group.
    gathered = jax.lax.all_gather(moments, axis_name, axis=1)
    start = jax.lax.axis_index(axis_name) // span * span
    return jax.lax.dynamic_slice_in_dim(gathered, start, span, axis=1)
