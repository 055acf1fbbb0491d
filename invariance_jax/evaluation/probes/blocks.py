"""Multinomial logistic regression of features that no device holds, block by block.

The objective is that of `fit_logistic`, and so is its minimum; each step of L-BFGS
passes over all features once, in coordinates in which their covariance is about the
identity. Features may lie in a memory-mapped file.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_integer, check_labels, check_number
from invariance_jax.evaluation.probes.linear import LinearProbe, exact_dot
from invariance_jax.types import Array

_RESOLUTION = float(np.finfo(np.float32).eps)

_STOPPING = {"maxcor": 20, "ftol": 1e-3 * _RESOLUTION, "gtol": 0}
"""Pairs that stand for the Hessian; the decrease of a step that is the last one."""


def fit_logistic_in_blocks(
    h: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    l2: float,
    block_size: int = 65_536,
    max_iterations: int = 200,
) -> LinearProbe:
    """Returns the linear probe of `fit_logistic`, of features of any number.

    Args:
      h: float `[B, D]`, representations, an array of NumPy.
      labels: integer `[B]`, classes from 0 to C - 1.
      num_classes: C, 2 or more.
      l2: weight of the penalty on the kernel, 0 or more.
      block_size: examples that are on the device at a time.
      max_iterations: passes over the features at most, those of line searches aside.

    Returns:
      `LinearProbe`, kernel `[D, C]` and bias `[C]`, float32, each with sum 0 over the
      classes.

    Raises:
      ValueError: if labels are not one integer below C per example, a number is too
        small, or l2 is negative.

    Gradients: none.
    Cost: `B D^2 + D^3` once and `B D C` for each pass; memory of a block and of a few
      `D^2` and `D C`.
    """
    import scipy.optimize  # here, since most users of the probes do not need it

    num_classes = check_integer("num_classes", num_classes, least=2)
    block_size = check_integer("block_size", block_size)
    check_number("l2", l2, low=0)
    classes = jnp.asarray(labels)
    check_labels("labels", classes, num_examples=len(h), num_classes=num_classes)

    def blocks() -> Iterator[tuple[Array, Array]]:
        for start in range(0, len(h), block_size):
            part = slice(start, start + block_size)
            yield jnp.asarray(h[part], jnp.float32), classes[part]

    mean = sum(np.asarray(jnp.sum(x, axis=0), np.float64) for x, _ in blocks()) / len(h)
    middle = jnp.asarray(mean, jnp.float32)[None]
    gram = sum(np.asarray(_gram(x, middle), np.float64) for x, _ in blocks()) / len(h)
    basis = _basis(np.asarray(gram), 2 * num_classes * l2, l2 > 0)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point = flat.reshape(-1, num_classes)
        kernel, bias = basis @ point[:-1], point[-1]
        probe = LinearProbe(*(jnp.asarray(a, jnp.float32) for a in (kernel, bias)))
        value, of_kernel = l2 * np.sum(kernel**2), 2 * l2 * kernel
        of_bias = np.zeros(num_classes)
        for x, y in blocks():
            found = (np.asarray(a, np.float64) for a in _block(probe, x, middle, y))
            loss, product, total = (a / len(h) for a in found)
            value, of_kernel = value + loss, of_kernel + product
            of_bias = of_bias + total
        gradient = np.concatenate([basis.T @ of_kernel, of_bias[None]])
        return float(value), gradient.ravel()

    found = scipy.optimize.minimize(
        objective,
        np.zeros((len(basis) + 1) * num_classes),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, **_STOPPING},
    )
    point = found.x.reshape(-1, num_classes)
    kernel = basis @ point[:-1]
    bias = point[-1] - mean @ kernel
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    return LinearProbe(
        *(jnp.asarray(a, jnp.float32) for a in (kernel, bias - bias.mean()))
    )


@jax.jit
def _gram(x: Array, mean: Array) -> Array:
    return exact_dot((x - mean).T, x - mean)


@jax.jit
def _block(
    probe: LinearProbe, x: Array, mean: Array, labels: Array
) -> tuple[Array, Array, Array]:
    """Returns sums over a block: the loss, its gradient in kernel and in bias."""
    centred = x - mean
    logits = exact_dot(centred, probe.kernel) + probe.bias[None]
    log_probability = jax.nn.log_softmax(logits, axis=1)
    target = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    residual = jnp.exp(log_probability) - target
    loss = -jnp.sum(target * log_probability)
    return loss, exact_dot(centred.T, residual), jnp.sum(residual, axis=0)


def _basis(gram: np.ndarray, ridge: float, keep_all: bool) -> np.ndarray:
    """Returns `[D, D]`, directions of about unit variance; rounding is left out."""
    diagonal = np.diag(gram) + ridge
    scale = np.where(diagonal > 0, 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1)), 0)
    values, vectors = np.linalg.eigh(
        scale[:, None] * (gram + ridge * np.eye(len(gram))) * scale
    )
    rounding = _RESOLUTION * max(values.max(), 1e-300)
    kept = (values > 4 * rounding) | keep_all
    inverse = np.where(kept, 1 / np.sqrt(np.maximum(values, rounding)), 0)
    basis: np.ndarray = scale[:, None] * vectors * inverse
    return basis
