"""k nearest neighbours (kNN), a classifier without fitted parameters.

Similarity is the cosine; the weights `exp(similarity / temperature)` are those of Wu et
al. (2018), *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*.
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

# Entries of the largest array for one chunk of test examples, 64 MB in float32.
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
    """Returns the share of test examples that their nearest neighbours classify right.

    The k training examples of largest cosine similarity vote, with weight 1 or
    `exp(similarity / temperature)`. The class with the largest sum of weights is the
    prediction. If classes tie, the one with the nearest neighbour wins; if neighbours
    tie, the one first in h is nearer. The zero vector has similarity 0 to all.

    Args:
      h: float `[B, D]`, representations of the training examples.
      labels: integer `[B]`, classes of the training examples, any values of int64.
      h_test: float `[B, D]`, representations of the test examples; their B may differ.
      labels_test: integer `[B]`, classes of the test examples.
      k: number of neighbours, from 1 to the number of training examples.
      temperature: temperature of the weights, above 0, usually 0.07; may be traced.
        None: all weights are 1.
      block_size: training examples on the device at a time (at least k are), for a
        NumPy h that is too large for the device. None: all of them.

    Returns:
      `[]`, in [0, 1], the common dtype of h and h_test, at least float32; NaN if a
      representation holds NaN.

    Raises:
      ValueError: if shapes or dtypes disagree, if k is not an integer in range, or if
        the temperature is not a number or not above 0 (not checked where traced).

    Gradients: none, as the result is piecewise constant.
    Cost: one matrix product of the two sets. Test examples are processed in chunks, so
      memory beside h and h_test does not grow with their number.
    """
    _check_sets(h, labels, h_test, labels_test)
    k = check_integer("k", k, most=h.shape[0])
    if temperature is not None:
        check_number("temperature", temperature, low=0, above=True)
    labels, labels_test = _renumber_classes(labels, labels_test)
    if block_size is None:
        h, h_test = promote(h=h, h_test=h_test)
        block_size = h.shape[0]
    block_size = max(check_integer("block_size", block_size), k)
    chunk_size = max(1, _CHUNK_ENTRIES // max(block_size, k * k))
    correct = []
    for first in range(0, len(h_test), chunk_size):
        chunk = slice(first, first + chunk_size)
        sums = jnp.zeros(len(h_test[chunk]), jnp.float32)
        values = jnp.full((len(sums), k), -jnp.inf, jnp.float32)
        best = values, jnp.zeros(values.shape, labels.dtype), sums
        for start in range(0, len(h), block_size):
            block = slice(start, start + block_size)
            queries, candidates = promote(h_test=h_test[chunk], h=h[block])
            best = _update_nearest(best, queries, candidates, labels[block], k=k)
        correct.append(_is_correct(best, labels_test[chunk], temperature))
    return jnp.mean(jnp.concatenate(correct))


def _renumber_classes(labels: Array, labels_test: Array) -> tuple[Array, Array]:
    """Returns the classes numbered from 0 in int32, as JAX would truncate int64."""
    if any(isinstance(array, jax.core.Tracer) for array in (labels, labels_test)):
        return labels, labels_test
    both = [np.asarray(array) for array in (labels, labels_test)]
    if max(array.max() for array in both) > np.iinfo(np.int64).max:
        raise ValueError("labels and labels_test must fit in int64; found larger ones.")
    joined = np.concatenate([array.astype(np.int64) for array in both])
    numbers = np.unique(joined, return_inverse=True)[1].astype(np.int32)
    train, test = np.split(numbers, [len(labels)])
    return jnp.asarray(train), jnp.asarray(test)


@partial(jax.jit, static_argnames="k")
def _update_nearest(
    best: tuple[Array, Array, Array], queries: Array, h: Array, labels: Array, *, k: int
) -> tuple[Array, Array, Array]:
    """Returns the k nearest neighbours of each query in earlier blocks and in h.

    Returned are their similarities and classes, `[len(queries), k]` with the nearest
    first, and the sum of all similarities, NaN if a representation holds NaN.
    """
    similarity = exact_dot(l2_normalize(queries), l2_normalize(h).T)
    nearest, indices = jax.lax.top_k(similarity, min(k, len(h)))
    # top_k prefers the first of a tie, so neighbours of earlier blocks come first.
    nearest = jnp.concatenate([best[0], nearest], axis=1)
    classes = jnp.concatenate([best[1], labels[indices]], axis=1)
    nearest, indices = jax.lax.top_k(nearest, k)
    classes = jnp.take_along_axis(classes, indices, axis=1)
    return nearest, classes, best[2] + jnp.sum(similarity, axis=1)


@jax.jit
def _is_correct(
    best: tuple[Array, Array, Array], labels: Array, temperature: float | Array | None
) -> Array:
    """Returns 1 for each query whose predicted class is right, else 0, or NaN."""

    def vote(similarity: Array, classes: Array) -> Array:
        weight = jnp.ones_like(similarity)
        if temperature is not None:
            # Relative to the nearest, as weights would overflow at a low temperature.
            divisor = jnp.asarray(temperature, similarity.dtype)
            weight = jnp.exp((similarity - similarity[:1]) / divisor)
        is_same = classes[:, None] == classes[None, :]
        # One sum per neighbour, not per class: the number of classes is not needed, and
        # argmax returns the first of a tie, which is the nearest.
        votes = jnp.sum(jnp.where(is_same, weight[None, :], 0), axis=1)
        return classes[jnp.argmax(votes)]

    similarity, classes, total = best
    correct = jax.vmap(vote)(similarity, classes) == labels
    return jnp.where(jnp.isnan(total), jnp.nan, correct.astype(similarity.dtype))


def _check_sets(h: Array, labels: Array, h_test: Array, labels_test: Array) -> None:
    for rows, classes, suffix in ((h, labels, ""), (h_test, labels_test, "_test")):
        check_matrix(f"h{suffix}", rows, expected="[B, D], representations")
        check_labels(f"labels{suffix}", classes, num_examples=rows.shape[0])
    if h.shape[1] != h_test.shape[1]:
        raise ValueError(
            "h and h_test must have the same number of features; found "
            f"{h.shape[1]} and {h_test.shape[1]}."
        )
