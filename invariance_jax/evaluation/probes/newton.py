"""Newton's method with conjugate gradients, for multinomial logistic regression.

The kernel is written as `basis coefficients`, in a basis in which the features have
about unit covariance: that changes the speed and neither the objective nor its minimum,
which are those of the features as given.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.evaluation.probes.linear import LinearProbe, exact_dot, predict
from invariance_jax.numerics import safe_divide
from invariance_jax.types import Array

_MAX_PRODUCTS = 200  # products with the Hessian for one Newton step
_MAX_HALVINGS = 30
_SUFFICIENT_DECREASE = 1e-4


class Problem(NamedTuple):
    """The objective in the coordinates of a basis.

    Attributes:
      h: `[B, D]`, centred features.
      basis: `[D, n]`, kernel = basis coefficients.
      targets: `[B, C]`, one-hot labels.
      l2: `[]`, weight of the penalty on the kernel.
      spread: `[n, 1]`, mean square of the features along the basis.
      length: `[n, 1]`, squared length of the vectors of the basis.
    """

    h: Array
    basis: Array
    targets: Array
    l2: Array
    spread: Array
    length: Array


class _State(NamedTuple):
    iteration: Array
    point: LinearProbe
    promised: Array


def make_problem(h: Array, labels: Array, l2: Array, *, num_classes: int) -> Problem:
    """Returns the problem in a basis in which the covariance is about the identity.

    With G the covariance of the features, `G + 2 C l2 I` becomes the identity: at the
    start, where all probabilities are 1 / C, it is C times the Hessian. It is scaled to
    a diagonal of 1 before its eigenvectors are taken, so that features of all sizes
    count. Rounding of the basis changes the speed only. With l2 = 0, directions whose
    variance rounding hides (scaled as above, 4 eps of the largest) are left out.

    Args:
      h: float `[B, D]`, centred features.
      labels: integer `[B]`, classes from 0 to C - 1.
      l2: `[]`, weight of the penalty on the kernel.
      num_classes: C.

    Returns:
      `Problem`, with n = D.

    Cost: `B D^2` for the covariance, `D^3` for its eigenvectors.
    """
    ridge = 2 * num_classes * l2
    gram = exact_dot(h.T, h) / h.shape[0]
    scale = _inverse_root(jnp.diagonal(gram) + ridge)[:, None]
    gram = gram + ridge * jnp.eye(h.shape[1], dtype=h.dtype)
    values, vectors = jnp.linalg.eigh(scale * gram * scale.T)
    # Small ones cannot be told from rounding: they are not blown up and, where no
    # penalty keeps their coefficients from drifting, left out.
    rounding = np.finfo(h.dtype).eps * jnp.max(values, initial=0)
    kept = (values > 4 * rounding) | (l2 > 0)
    values = jnp.maximum(values, values.shape[0] * rounding)
    basis = scale * vectors * jnp.where(kept, _inverse_root(values), 0)[None]
    length = jnp.sum(jnp.square(basis), axis=0)
    spread = jnp.maximum(1 - ridge * length, 0)
    targets = jax.nn.one_hot(labels, num_classes, dtype=h.dtype)
    return Problem(h, basis, targets, l2, spread[:, None], length[:, None])


def minimize(problem: Problem, *, max_iterations: int) -> LinearProbe:
    """Returns the coefficients and the bias of least objective.

    Each step solves the Newton system by conjugate gradients, the more exactly the
    smaller the gradient, and halves the step until the objective decreases. The last
    step is the first that promised a decrease below `eps log C`, eps of the dtype.

    Args:
      problem: the objective.
      max_iterations: Newton steps at most.

    Returns:
      `LinearProbe`, coefficients `[n, C]` in place of the kernel, and bias `[C]`.

    Cost: per product with the Hessian, two matrix products of `B D C`.
    """
    num_classes, dtype = problem.targets.shape[1], problem.h.dtype
    resolution = _resolution(problem)

    def is_running(state: _State) -> Array:
        # Features that are not numbers end it: the basis hands them to the kernel.
        return (state.iteration < max_iterations) & (state.promised > resolution)

    def advance(state: _State) -> _State:
        point = state.point
        logits = predict(_expand(problem, point), problem.h)
        direction, slope = _newton_direction(problem, point, logits)
        length = _step_length(problem, point, direction, logits, slope)
        # Not length * direction alone: a step of length 0 may have no finite direction.
        is_step = length > 0
        moved = jax.tree.map(
            lambda a, b: jnp.where(is_step, a + length * b, a), point, direction
        )
        promised = jnp.where(is_step, -slope, 0)
        return _State(state.iteration + 1, moved, promised)

    zeros = LinearProbe(
        jnp.zeros((problem.basis.shape[1], num_classes), dtype),
        jnp.zeros((num_classes,), dtype),
    )
    start = _State(jnp.zeros((), jnp.int32), zeros, jnp.full((), jnp.inf, dtype))
    return jax.lax.while_loop(is_running, advance, start).point


def _newton_direction(
    problem: Problem, point: LinearProbe, logits: Array
) -> tuple[LinearProbe, Array]:
    """Returns an inexact Newton direction, and the objective's slope along it."""
    batch_size = logits.shape[0]
    probability = jax.nn.softmax(logits, axis=1)
    residual = (probability - problem.targets) / batch_size
    gradient = _pull_back(problem, residual, _expand(problem, point).kernel)

    def hessian(direction: LinearProbe) -> LinearProbe:
        probe = _expand(problem, direction)
        change = probability * predict(probe, problem.h)
        change = change - probability * jnp.sum(change, axis=1, keepdims=True)
        return _pull_back(problem, change / batch_size, probe.kernel)

    variance = jnp.mean(probability * (1 - probability), axis=0, keepdims=True)
    of_kernel = problem.spread * variance + 2 * problem.l2 * problem.length
    diagonal = LinearProbe(of_kernel, variance[0])

    def precondition(residual: LinearProbe) -> LinearProbe:
        return jax.tree.map(safe_divide, residual, diagonal)

    # Features have unit covariance in this basis, so that 1 is a large gradient.
    tolerance = jnp.minimum(0.05, jnp.sqrt(_norm(gradient)))
    descent = jax.tree.map(jnp.negative, gradient)
    direction, _ = jax.scipy.sparse.linalg.cg(
        hessian, descent, tol=tolerance, maxiter=_MAX_PRODUCTS, M=precondition
    )
    return direction, _inner(gradient, direction)


def _step_length(
    problem: Problem,
    point: LinearProbe,
    direction: LinearProbe,
    logits: Array,
    slope: Array,
) -> Array:
    """Returns the first of 1, 1/2, 1/4, ... with a sufficient decrease, or 0."""
    kernel = _expand(problem, point).kernel
    change = _expand(problem, direction)
    logits_change = predict(change, problem.h)

    def objective(length: Array) -> Array:
        moved = logits + length * logits_change
        log_probability = jax.nn.log_softmax(moved, axis=1)
        loss = -jnp.mean(jnp.sum(problem.targets * log_probability, axis=1))
        squares = jnp.sum(jnp.square(kernel + length * change.kernel))
        return loss + problem.l2 * squares

    # With room for rounding, below which a decrease cannot be seen.
    start = objective(jnp.zeros_like(slope)) + 10 * _resolution(problem)

    def is_enough(length: Array, value: Array) -> Array:
        return value <= start + _SUFFICIENT_DECREASE * length * slope

    def is_too_long(carry: tuple[Array, Array]) -> Array:
        return ~is_enough(*carry) & (carry[0] > 2.0**-_MAX_HALVINGS)

    def halve(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return carry[0] / 2, objective(carry[0] / 2)

    one = jnp.ones_like(slope)
    length, value = jax.lax.while_loop(is_too_long, halve, (one, objective(one)))
    return jnp.where(is_enough(length, value), length, 0)


def _expand(problem: Problem, point: LinearProbe) -> LinearProbe:
    """Returns the probe of the features, from coefficients in the basis."""
    return LinearProbe(exact_dot(problem.basis, point.kernel), point.bias)


def _pull_back(problem: Problem, residual: Array, kernel: Array) -> LinearProbe:
    """Returns a gradient in the coordinates of the basis.

    Its parts are `[B, C]`, that of the loss in the logits, and the kernel, of which the
    penalty's is a multiple.
    """
    # In this order: XLA on CPU takes three times as long for h' times the residual.
    by_class = exact_dot(residual.T, problem.h) + 2 * problem.l2 * kernel.T
    coefficients = exact_dot(by_class, problem.basis).T
    return LinearProbe(coefficients, jnp.sum(residual, axis=0))


def _resolution(problem: Problem) -> float:
    """Returns what rounding hides of the objective, which starts at log C."""
    return float(np.finfo(problem.h.dtype).eps) * math.log(problem.targets.shape[1])


def _inverse_root(values: Array) -> Array:
    """Returns 1 / sqrt(values), 0 where those are 0."""
    return safe_divide(jnp.ones_like(values), jnp.sqrt(values))


def _inner(a: LinearProbe, b: LinearProbe) -> Array:
    return jnp.sum(a.kernel * b.kernel) + jnp.sum(a.bias * b.bias)


def _norm(a: LinearProbe) -> Array:
    return jnp.sqrt(_inner(a, a))
