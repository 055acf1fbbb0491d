"""Multinomial logistic regression on representations, to the minimum."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from invariance_jax.arguments import (
    check_integer,
    check_labels,
    check_matrix,
    check_number,
    promote,
)
from invariance_jax.evaluation.probes.lbfgs import make_problem, minimize
from invariance_jax.evaluation.probes.linear import LinearProbe, exact_dot, predict
from invariance_jax.evaluation.probes.metrics import cross_entropy
from invariance_jax.numerics import safe_norm
from invariance_jax.types import Array


class LogisticObjective(NamedTuple):
    """How well a probe minimizes the logistic objective, two scalars.

    Attributes:
      value: mean cross-entropy plus the penalty, nats.
      gradient_norm: Euclidean norm of the gradient in the kernel and the bias together;
        0 at the minimum.
    """

    value: Array
    gradient_norm: Array


def fit_logistic(
    h: Array,
    labels: Array,
    *,
    num_classes: int,
    l2: float | Array,
    max_iterations: int = 500,
) -> LinearProbe:
    """Returns the linear probe of least penalized cross-entropy.

    Minimizes `-mean_b log softmax(h_b kernel + bias)[label_b] + l2 sum(kernel^2)` over
    kernel and bias, the features as given and the bias free. L-BFGS stops at the first
    step after which rounding hides that the objective decreases, or after
    max_iterations of them; `logistic_objective` tells where that is.

    With l2 = 0 and separable classes there is no minimum: the kernel grows until
    rounding hides what is left of the objective. In the same way the bias of a class
    without examples falls until its probability is about eps. With l2 = 0 and collinear
    features there are many minima: directions whose variance rounding hides get
    coefficient 0.

    Args:
      h: float `[B, D]`, representations.
      labels: integer `[B]`, classes from 0 to C - 1.
      num_classes: C, 2 or more.
      l2: weight of the penalty on the kernel, 0 or more; may be traced.
      max_iterations: steps at most, 1 or more; 20 to 200 are usual, the limit is met
        where there is next to no penalty.

    Returns:
      `LinearProbe`, kernel `[D, C]` and bias `[C]`, each with sum 0 over the classes,
      the dtype of h, at least float32.

    Raises:
      ValueError: if h is not a matrix of real numbers, if labels are not one integer
        per example or, unless traced, not below C, if num_classes or max_iterations is
        too small, or if l2 is not a number or, unless traced, is negative.

    Gradients: not meant for them.
    Cost: `B D^2 + D^3` once, to precondition, and `(2 B + 2 D) D C` for each trial of a
      step's length, of which most steps need one. Memory: a copy of h, a few `D^2` and
      `B C`, and 43 `D C`.
    """
    check_matrix("h", h, expected="[B, D], representations")
    check_number("l2", l2, low=0)
    num_classes = check_integer("num_classes", num_classes, least=2)
    max_iterations = check_integer("max_iterations", max_iterations)
    check_labels("labels", labels, num_examples=h.shape[0], num_classes=num_classes)
    (h,) = promote(h=h)
    fitted = _fit(
        h,
        jnp.asarray(labels).astype(jnp.int32),
        jnp.asarray(l2, h.dtype),
        num_classes=num_classes,
        max_iterations=max_iterations,
    )
    return LinearProbe(*fitted)


def logistic_objective(
    probe: LinearProbe, h: Array, labels: Array, *, l2: float | Array
) -> LogisticObjective:
    """Returns the objective of `fit_logistic` at a probe, and its gradient's norm.

    Args:
      probe: kernel `[D, C]`, bias `[C]`.
      h: float `[B, D]`, representations.
      labels: integer `[B]`, classes from 0 to C - 1.
      l2: weight of the penalty on the kernel, 0 or more; may be traced.

    Returns:
      `LogisticObjective`, value and gradient_norm, at least float32.

    Raises:
      ValueError: if shapes or dtypes disagree, if a label is, unless traced, not below
        C, or if l2 is not a number or, unless traced, is negative.

    Gradients: with respect to probe and h; those of the norm are zero where it is 0.
    """
    check_matrix("h", h, expected="[B, D], representations")
    check_number("l2", l2, low=0)
    h, kernel, bias = promote(h=h, kernel=probe.kernel, bias=probe.bias)
    probe, l2 = LinearProbe(kernel, bias), jnp.asarray(l2, h.dtype)

    def objective(probe: LinearProbe) -> Array:
        loss = cross_entropy(predict(probe, h), labels)
        return loss + l2 * jnp.sum(jnp.square(probe.kernel))

    value, gradient = jax.value_and_grad(objective)(probe)
    leaves = [jnp.ravel(leaf) for leaf in gradient]
    return LogisticObjective(value, safe_norm(jnp.concatenate(leaves)))


@partial(jax.jit, static_argnames=("num_classes", "max_iterations"))
def _fit(
    h: Array, labels: Array, l2: Array, *, num_classes: int, max_iterations: int
) -> LinearProbe:
    # The first row goes first: then a constant feature is exactly 0.
    first = h[:1]
    rest = jnp.mean(h - first, axis=0, keepdims=True)
    centred = (h - first) - rest
    # A common scale keeps the squares of tiny or huge features inside the float range,
    # and its own limit keeps l2 / scale^2 there.
    scale = jnp.maximum(jnp.max(jnp.abs(centred), initial=0), 2.0**-50)
    scaled_l2 = (l2 / scale) / scale
    problem = make_problem(centred / scale, labels, scaled_l2, num_classes=num_classes)
    coefficients, bias = minimize(problem, max_iterations=max_iterations)
    # A common offset of the classes changes no probability and only costs penalty.
    kernel = _sum_to_zero(exact_dot(problem.basis, coefficients) / scale)
    bias = bias[None] - exact_dot(first, kernel) - exact_dot(rest, kernel)
    return LinearProbe(kernel, _sum_to_zero(bias)[0])


def _sum_to_zero(rows: Array) -> Array:
    return rows - jnp.mean(rows, axis=1, keepdims=True)
