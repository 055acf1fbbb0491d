"""L-BFGS for multinomial logistic regression.

The kernel is written as `basis coefficients`, in a basis in which the features have
about unit covariance: that changes the speed and neither the objective nor its minimum,
which are those of the features as given.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.evaluation.probes.linear import LinearProbe, exact_dot, predict
from invariance_jax.numerics import safe_divide
from invariance_jax.types import Array, PyTree

_PAIRS = 20
"""Steps whose changes of the gradient stand for the Hessian."""


class Problem(NamedTuple):
    """The objective in the coordinates of a basis.

    Attributes:
      h: `[B, D]`, centred features.
      basis: `[D, n]`, kernel = basis coefficients.
      targets: `[B, C]`, one-hot labels.
      l2: `[]`, weight of the penalty on the kernel.
    """

    h: Array
    basis: Array
    targets: Array
    l2: Array


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
    targets = jax.nn.one_hot(labels, num_classes, dtype=h.dtype)
    return Problem(h, basis, targets, l2)


def minimize(problem: Problem, *, max_iterations: int) -> LinearProbe:
    """Returns the coefficients and the bias of least objective.

    The last step is the first after which rounding hides that the objective decreases.

    Args:
      problem: the objective.
      max_iterations: steps at most.

    Returns:
      `LinearProbe`, coefficients `[n, C]` in place of the kernel, and bias `[C]`.

    Cost: for each trial of a step's length two products of `B D C` and two of `D^2 C`.
    """
    import optax  # here, since most users of the probes do not need it

    num_classes, dtype = problem.targets.shape[1], problem.h.dtype

    def objective(point: LinearProbe) -> Array:
        kernel = exact_dot(problem.basis, point.kernel)
        logits = predict(LinearProbe(kernel, point.bias), problem.h)
        log_probability = jax.nn.log_softmax(logits, axis=1)
        loss = -jnp.mean(jnp.sum(problem.targets * log_probability, axis=1))
        return loss + problem.l2 * jnp.sum(jnp.square(kernel))

    optimizer = optax.lbfgs(memory_size=_PAIRS)
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
        # Features that are not numbers end it: the basis hands them to the kernel.
        return iteration + 1, optax.apply_updates(point, step), state, value - reached

    start = LinearProbe(
        jnp.zeros((problem.basis.shape[1], num_classes), dtype),
        jnp.zeros((num_classes,), dtype),
    )
    first = jnp.zeros((), jnp.int32), start, optimizer.init(start)
    infinity = jnp.full((), jnp.inf, dtype)
    return jax.lax.while_loop(is_running, advance, (*first, infinity))[1]


def _inverse_root(values: Array) -> Array:
    """Returns 1 / sqrt(values), 0 where those are 0."""
    return safe_divide(jnp.ones_like(values), jnp.sqrt(values))
