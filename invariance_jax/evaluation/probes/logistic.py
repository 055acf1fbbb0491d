"""Multinomial logistic regression on representations, to the minimum, by L-BFGS.

L-BFGS is preconditioned: it optimizes coefficients c of `kernel = basis c`, in a basis
in which the features have about unit covariance. This changes the speed, not the
objective or its minimum, which are those of the features as given.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import (
    check_integer,
    check_labels,
    check_matrix,
    check_number,
    promote,
)
from invariance_jax.evaluation.probes.linear import LinearProbe, exact_dot, predict
from invariance_jax.evaluation.probes.metrics import cross_entropy
from invariance_jax.numerics import magnitude, safe_divide, safe_norm
from invariance_jax.types import Array, PyTree

_MEMORY = 20
"""Number of past steps from which L-BFGS approximates the Hessian."""


class LogisticObjective(NamedTuple):
    """The logistic objective at a probe and its gradient norm, two scalars.

    Attributes:
      value: mean cross-entropy plus the penalty, nats.
      gradient_norm: Euclidean norm of the gradient with respect to kernel and bias
        together; 0 at the minimum.
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
    kernel and bias, with the features as given and no penalty on the bias. L-BFGS stops
    at the first step after which the computed objective is not lower, or after
    max_iterations steps; `logistic_objective` returns the objective reached.

    With l2 = 0 and separable classes there is no minimum: the kernel grows until the
    objective no longer decreases within rounding. In the same way the bias of a class
    without examples falls until its probability is about eps. With l2 = 0 and collinear
    features there are many minima: directions whose variance is not above rounding
    error get coefficient 0.

    Args:
      h: float `[B, D]`, representations.
      labels: integer `[B]`, classes from 0 to C - 1.
      num_classes: C, 2 or more.
      l2: weight of the penalty on the kernel, 0 or more; may be traced.
      max_iterations: largest number of steps, 1 or more. 20 to 200 steps are usual; the
        limit is reached where the penalty is close to 0.

    Returns:
      `LinearProbe`, kernel `[D, C]` and bias `[C]`, each with sum 0 over the classes,
      the dtype of h, at least float32.

    Raises:
      ValueError: if h is not a matrix of real numbers, if labels are not one integer
        from 0 to C - 1 per example, if num_classes or max_iterations is too small, or
        if l2 is not a number or is negative. The values of traced labels and of a
        traced l2 are not checked.

    Gradients: not intended.
    Cost: `B D^2 + D^3` once, for the basis, and `(2 B + 2 D) D C` per evaluation of the
      objective in a line search; most steps need one. Memory: a copy of h, a few arrays
      of `D^2` and `B C`, and 43 of `D C`.
    """
    check_matrix("h", h, expected="[B, D], representations")
    check_number("l2", l2, low=0)
    num_classes = check_integer("num_classes", num_classes, least=2)
    max_iterations = check_integer("max_iterations", max_iterations)
    check_labels("labels", labels, num_examples=h.shape[0], num_classes=num_classes)
    (h,) = promote(h=h)
    probe: LinearProbe = _fit(
        h,
        jnp.asarray(labels).astype(jnp.int32),
        jnp.asarray(l2, h.dtype),
        num_classes=num_classes,
        max_iterations=max_iterations,
    )
    return probe


def logistic_objective(
    probe: LinearProbe, h: Array, labels: Array, *, l2: float | Array
) -> LogisticObjective:
    """Returns the objective of `fit_logistic` at a probe, and its gradient norm.

    Args:
      probe: kernel `[D, C]`, bias `[C]`.
      h: float `[B, D]`, representations.
      labels: integer `[B]`, classes from 0 to C - 1.
      l2: weight of the penalty on the kernel, 0 or more; may be traced.

    Returns:
      `LogisticObjective`, two scalars, at least float32.

    Raises:
      ValueError: if shapes or dtypes disagree, if a label is not from 0 to C - 1, or if
        l2 is not a number or is negative. The values of traced labels and of a traced
        l2 are not checked.

    Gradients: with respect to probe and h; those of the norm are zero where it is 0.
    """
    check_number("l2", l2, low=0)
    h, kernel, bias = promote(h=h, kernel=probe.kernel, bias=probe.bias)
    probe, l2 = LinearProbe(kernel, bias), jnp.asarray(l2, h.dtype)

    def objective(probe: LinearProbe) -> Array:
        loss = cross_entropy(predict(probe, h), labels)
        return loss + l2 * jnp.sum(jnp.square(probe.kernel))

    value, gradient = jax.value_and_grad(objective)(probe)
    leaves = [jnp.ravel(leaf) for leaf in gradient]
    return LogisticObjective(value, safe_norm(jnp.concatenate(leaves)))


def fit_logistic_in_blocks(
    h: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    l2: float,
    block_size: int = 65_536,
    max_iterations: int = 200,
) -> LinearProbe:
    """Returns the probe of `fit_logistic` for features too large for the device.

    The objective and its minimum are the same. Each evaluation of the objective passes
    over all features once; they may be in a memory-mapped file.

    Args:
      h: float NumPy array `[B, D]`, representations.
      labels: integer `[B]`, classes from 0 to C - 1.
      num_classes: C, 2 or more.
      l2: weight of the penalty on the kernel, 0 or more.
      block_size: examples on the device at a time, 1 or more.
      max_iterations: largest number of L-BFGS steps. Most evaluate the objective once.

    Returns:
      `LinearProbe`, kernel `[D, C]` and bias `[C]`, float32, each with sum 0 over the
      classes.

    Raises:
      ValueError: as `fit_logistic`, or if block_size is too small.

    Gradients: none.
    Cost: `B D^2 + D^3` once and `B D C` per pass; memory for one block and a few arrays
      of `D^2` and `D C`.
    """
    import scipy.optimize  # here, since most users of the probes do not need it

    check_matrix("h", h, expected="[B, D], representations")
    check_number("l2", l2, low=0)
    num_classes = check_integer("num_classes", num_classes, least=2)
    block_size = check_integer("block_size", block_size)
    max_iterations = check_integer("max_iterations", max_iterations)
    check_labels("labels", labels, num_examples=len(h), num_classes=num_classes)
    promote(h=h[:1])  # checks the dtype
    classes = jnp.asarray(labels).astype(jnp.int32)

    mean = np.mean(h, axis=0, dtype=np.float64)
    # A common scale, as in `_fit`: a power of two, by which division is exact.
    ends = np.stack([np.max(h, axis=0) - mean, mean - np.min(h, axis=0)])
    scale = max(float(magnitude(jnp.asarray(ends, jnp.float32))[0, 0]), 2.0**-50)
    l2 = float(l2) / scale**2

    def blocks() -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(h), block_size):
            rows = slice(start, start + block_size)
            x = jnp.asarray(h[rows], jnp.float32) - jnp.asarray(mean, jnp.float32)[None]
            yield x / scale, classes[rows]

    gram = sum(np.asarray(_gram(x), np.float64) for x, _ in blocks()) / len(h)
    basis = np.asarray(_basis(jnp.asarray(gram, jnp.float32), 2 * num_classes * l2))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = flat.reshape(-1, num_classes)
        kernel, bias = basis @ point[:-1], point[-1]
        probe = LinearProbe(*(jnp.asarray(a, jnp.float32) for a in (kernel, bias)))
        sums = [l2 * np.sum(kernel**2), 2 * l2 * kernel, np.zeros(num_classes)]
        for x, y in blocks():
            loss, gradients = _summed_loss(probe, x, y)
            for i, term in enumerate((loss, *gradients)):
                sums[i] = sums[i] + np.asarray(term, np.float64) / len(h)
        value, kernel_gradient, bias_gradient = sums
        gradient = np.concatenate([basis.T @ kernel_gradient, bias_gradient[None]])
        return float(value), gradient.ravel()

    # Relative decrease of the objective at which SciPy stops.
    ftol = 1e-3 * float(np.finfo(np.float32).eps)
    minimum = scipy.optimize.minimize(
        objective,
        np.zeros((len(basis) + 1) * num_classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "maxcor": _MEMORY, "ftol": ftol, "gtol": 0},
    )
    point = minimum.x.reshape(-1, num_classes)
    kernel = basis @ point[:-1] / scale
    bias = point[-1] - mean @ kernel
    arrays = (_sum_to_zero(array) for array in (kernel, bias))
    return LinearProbe(*(jnp.asarray(array, jnp.float32) for array in arrays))


@jax.jit
def _gram(h: Array) -> Array:
    return exact_dot(h.T, h)


@jax.jit
@jax.value_and_grad
def _summed_loss(probe: LinearProbe, h: Array, labels: Array) -> Array:
    return cross_entropy(predict(probe, h), labels) * len(h)


@partial(jax.jit, static_argnames=("num_classes", "max_iterations"))
def _fit(
    h: Array, labels: Array, l2: Array, *, num_classes: int, max_iterations: int
) -> LinearProbe:
    # Subtract the first row first: then a constant feature is exactly 0.
    first = h[:1]
    rest = jnp.mean(h - first, axis=0, keepdims=True)
    centred = (h - first) - rest
    # A common scale keeps the squares of tiny or huge features inside the float range;
    # its lower limit does the same for l2 / scale^2.
    scale = jnp.maximum(jnp.max(jnp.abs(centred), initial=0), 2.0**-50)
    h, l2 = centred / scale, (l2 / scale) / scale
    basis = _basis(_gram(h) / h.shape[0], 2 * num_classes * l2)
    targets = jax.nn.one_hot(labels, num_classes, dtype=h.dtype)
    kernel, bias = _minimize(h, basis, targets, l2, max_iterations=max_iterations)
    # An offset common to all classes changes no probability, but adds to the penalty.
    kernel = _sum_to_zero(kernel / scale)
    bias = bias[None] - exact_dot(first, kernel) - exact_dot(rest, kernel)
    return LinearProbe(kernel, _sum_to_zero(bias)[0])


@jax.jit
def _basis(gram: Array, ridge: Array | float) -> Array:
    """Returns a basis `[D, D]` in which `gram + ridge I` is about the identity.

    With the covariance as gram and ridge = `2 C l2`, this sum is C times the Hessian at
    the start, where all probabilities are 1 / C. It is scaled to a diagonal of 1 before
    its eigendecomposition, so that features of all scales count. Rounding errors of the
    basis change only the speed.
    """
    scale = _inverse_root(jnp.diagonal(gram) + ridge)[:, None]
    gram = gram + ridge * jnp.eye(len(gram), dtype=gram.dtype)
    values, vectors = jnp.linalg.eigh(scale * gram * scale.T)
    # Small eigenvalues cannot be told from rounding error. They are bounded below and,
    # if no penalty keeps their coefficients from drifting, their directions left out.
    rounding = np.finfo(gram.dtype).eps * jnp.max(values, initial=0)
    is_kept = (values > 4 * rounding) | (ridge > 0)
    values = jnp.maximum(values, len(values) * rounding)
    return scale * vectors * jnp.where(is_kept, _inverse_root(values), 0)[None]


def _inverse_root(values: Array) -> Array:
    """Returns 1 / sqrt(values), or 0 where a value is 0."""
    return safe_divide(jnp.ones_like(values), jnp.sqrt(values))


def _minimize(
    h: Array, basis: Array, targets: Array, l2: Array, *, max_iterations: int
) -> LinearProbe:
    """Returns the probe that minimizes the objective on centred h, one-hot targets."""
    import optax  # here, since most users of the probes do not need it

    def objective(point: LinearProbe) -> Array:
        kernel = exact_dot(basis, point.kernel)
        logits = predict(LinearProbe(kernel, point.bias), h)
        log_probability = jax.nn.log_softmax(logits, axis=1)
        loss = -jnp.mean(jnp.sum(targets * log_probability, axis=1))
        return loss + l2 * jnp.sum(jnp.square(kernel))

    optimizer = optax.lbfgs(memory_size=_MEMORY)
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def is_running(carry: tuple[Array, LinearProbe, PyTree, Array]) -> Array:
        iteration, _, _, decrease = carry
        return (iteration < max_iterations) & (decrease > 0)

    def advance(carry: tuple[Array, LinearProbe, PyTree, Array]) -> PyTree:
        iteration, point, state, _ = carry
        value, gradient = value_and_gradient(point, state=state)
        step, state = optimizer.update(
            gradient, state, point, value=value, grad=gradient, value_fn=objective
        )
        reached = optax.tree.get(state, "value")
        # NaN in the features ends the loop; through the basis the kernel becomes NaN.
        return iteration + 1, optax.apply_updates(point, step), state, value - reached

    num_classes = targets.shape[1]
    start = LinearProbe(
        jnp.zeros((len(basis), num_classes), h.dtype), jnp.zeros(num_classes, h.dtype)
    )
    decrease = jnp.full((), jnp.inf, h.dtype)
    carry = jnp.zeros((), jnp.int32), start, optimizer.init(start), decrease
    minimum = jax.lax.while_loop(is_running, advance, carry)[1]
    return LinearProbe(exact_dot(basis, minimum.kernel), minimum.bias)


def _sum_to_zero(x: PyTree) -> PyTree:
    return x - x.mean(axis=-1, keepdims=True)
