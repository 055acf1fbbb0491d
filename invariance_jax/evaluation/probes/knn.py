"""Nearest neighbours: how well similar representations share a class, nothing fitted.

Cosine similarity; the weights `exp(similarity / temperature)` are those of Wu et al.
(2018), *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*.
"""

from functools import partial

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
from invariance_jax.evaluation.probes.linear import exact_dot
from invariance_jax.numerics import l2_normalize
from invariance_jax.types import Array

# Entries of the largest array of one chunk of test examples, 64 MB in float32.
_CHUNK_ENTRIES = 2**24


def knn_accuracy(
    h: Array,
    labels: Array,
    h_test: Array,
    labels_test: Array,
    *,
    k: int,
    temperature: float | Array | None = None,
    block_size: int | None = None,
) -> Array:
    """Returns the share of test examples that the vote of their neighbours classifies.

    The k training examples of largest cosine similarity vote, with weight 1 or
    `exp(similarity / temperature)`. The class with the largest sum is the prediction;
    of classes that tie, the one with the nearest neighbour; of neighbours that tie, the
    one that comes first. A representation of length 0 has similarity 0 to all.

    Args:
      h: float `[B, D]`, representations of the training examples.
      labels: integer `[B]`, their classes, of any values of up to 64 bits.
      h_test: float `[B, D]`, representations of the test examples, B their own number.
      labels_test: integer `[B]`, their classes.
      k: neighbours, from 1 to the number of training examples.
      temperature: of the weights, above 0, usually 0.07; None for weights of 1; may be
        traced.
      block_size: training examples that are on the device at a time, where h is an
        array of NumPy that no device holds; None: all of them.

    Returns:
      `[]`, in [0, 1], the common dtype of h and h_test, at least float32; NaN where a
      representation is.

    Raises:
      ValueError: if shapes or dtypes disagree, if k is not an integer in range, or if
        the temperature is not a number or, unless traced, not above 0.

    Gradients: none, it is constant between ties.
    Cost: one matrix product of the two sets; test examples are taken in chunks, so
      that memory beside h and h_test does not grow with their number.
    """
    _check_sets(h, labels, h_test, labels_test)
    k = check_integer("k", k, most=h.shape[0])
    if temperature is not None:
        check_number("temperature", temperature, low=0, above=True)
    labels, labels_test = _number_classes(labels, labels_test)
    if block_size is None:
        h, h_test = promote(h=h, h_test=h_test)
        block_size = h.shape[0]
    block_size = max(check_integer("block_size", block_size), k)
    count = max(1, _CHUNK_ENTRIES // max(block_size, k * k))
    shares = []
    for first in range(0, len(h_test), count):
        chunk = slice(first, first + count)
        sums = jnp.zeros(len(h_test[chunk]), jnp.float32)
        values = jnp.full((len(sums), k), -jnp.inf, jnp.float32)
        best = values, jnp.zeros(values.shape, labels.dtype), sums
        for start in range(0, len(h), block_size):
            block = slice(start, start + block_size)
            rows, others = promote(h_test=h_test[chunk], h=h[block])
            best = _nearer(best, rows, others, labels[block], k=k)
        shares.append(_are_correct(best, labels_test[chunk], temperature))
    return jnp.mean(jnp.concatenate(shares))


def _number_classes(labels: Array, labels_test: Array) -> tuple[Array, Array]:
    """Returns the classes as numbers from 0, so that JAX need not cut 64 bits."""
    if any(isinstance(array, jax.core.Tracer) for array in (labels, labels_test)):
        return labels, labels_test
    both = [np.asarray(array) for array in (labels, labels_test)]
    if max(array.max() for array in both) > np.iinfo(np.int64).max:
        raise ValueError("labels and labels_test must fit in int64; found larger ones.")
    joined = np.concatenate([array.astype(np.int64) for array in both])
    numbers = np.unique(joined, return_inverse=True)[1].astype(np.int32)
    first, second = np.split(numbers, [len(labels)])
    return jnp.asarray(first), jnp.asarray(second)


@partial(jax.jit, static_argnames="k")
def _nearer(
    best: tuple[Array, Array, Array], rows: Array, h: Array, labels: Array, *, k: int
) -> tuple[Array, Array, Array]:
    """Returns the k nearest to each row, those found before among them.

    Similarities and classes `[rows, k]`, the nearest first, and the sum of all
    similarities, which is NaN where a representation is.
    """
    similarity = exact_dot(l2_normalize(rows), l2_normalize(h).T)
    nearest, indices = jax.lax.top_k(similarity, min(k, len(h)))
    # Of those that tie, the first: what was found before stands in front.
    nearest = jnp.concatenate([best[0], nearest], axis=1)
    classes = jnp.concatenate([best[1], labels[indices]], axis=1)
    nearest, indices = jax.lax.top_k(nearest, k)
    classes = jnp.take_along_axis(classes, indices, axis=1)
    return nearest, classes, best[2] + jnp.sum(similarity, axis=1)


@jax.jit
def _are_correct(
    best: tuple[Array, Array, Array],
    labels: Array,
    temperature: float | Array | None,
) -> Array:
    """Returns 1 for each row whose neighbours vote for its class, 0 or NaN else."""

    def vote(similarity: Array, classes: Array) -> Array:
        weight = jnp.ones_like(similarity)
        if temperature is not None:
            # Relative to the nearest: the weights of a low temperature overflow.
            divisor = jnp.asarray(temperature, similarity.dtype)
            weight = jnp.exp((similarity - similarity[:1]) / divisor)
        same = classes[:, None] == classes[None, :]
        # Per neighbour, not per class: needs no number of classes, and argmax takes the
        # first, which is the nearest.
        votes = jnp.sum(jnp.where(same, weight[None, :], 0), axis=1)
        return classes[jnp.argmax(votes)]

    nearest, classes, total = best
    correct = jax.vmap(vote)(nearest, classes) == labels
    return jnp.where(jnp.isnan(total), jnp.nan, correct.astype(nearest.dtype))


def _check_sets(h: Array, labels: Array, h_test: Array, labels_test: Array) -> None:
    for rows, classes, suffix in ((h, labels, ""), (h_test, labels_test, "_test")):
        check_matrix(f"h{suffix}", rows, expected="[B, D], representations")
        check_labels(f"labels{suffix}", classes, num_examples=rows.shape[0])
    if h.shape[1] != h_test.shape[1]:
        raise ValueError(
            f"h and h_test must have the same features, but have {h.shape[1]} and "
            f"{h_test.shape[1]}."
        )
