"""Feature averaging: `h_M(x) = (1/M) sum_m f(t(x; alpha_m))` for every M of a sweep.

Section 4 of Foster, Pukdee, Rainforth (ICLR 2021). The draw of a view depends only on
the key, the number of the view and the index of its example, not on batch size, order
or devices: a data set may be passed in batches of any size, each with its `indices`.
The encoder must treat each example on its own (BatchNorm with running statistics does).

The functions are not compiled here, as an encoder's weights would become constants:
wrap the call in `jax.jit` with the weights and `indices` as arguments, and one
compilation serves all batches of one size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_integer, check_shape
from invariance_jax.transforms import Transformation
from invariance_jax.types import Array, Key, PyTree

_MAX_INDEX = 2**32 - 1
"""Largest index of an example or a view: `jax.random.fold_in` takes 32 bits."""


def sample_view(
    key: Key,
    transformation: Transformation,
    indices: Array,
    *,
    view: int | Array,
    x: PyTree = None,
) -> PyTree:
    """Returns the random parameters of one view of each example.

    Example i gets `transformation.sample(fold_in(fold_in(key, view), i), 1)`.

    Args:
      key: PRNG key, the same for all batches of a data set.
      transformation: has `sample(key, batch_size)`.
      indices: integer `[B]`, the index i of each example in the data set, from 0 to
        2^32 - 1.
      view: the number of the view, from 0 to 2^32 - 1; may be traced.
      x: the examples, leaves with leading axis B. If given, and the transformation has
        `draw(key, x)`, whose draws depend on image sizes, it is called, not `sample`.

    Returns:
      A pytree as `transformation.sample` returns it for B examples.

    Raises:
      ValueError: if indices is not a vector of integers, or if an index or the view is
        out of range (not checked where traced).
    """
    _check_indices(indices)
    if not isinstance(view, jax.core.Tracer):
        view = check_integer("view", view, least=0, most=_MAX_INDEX)
    view_key = jax.random.fold_in(key, view)

    def sample_one(index: Array, example: PyTree) -> PyTree:
        own_key = jax.random.fold_in(view_key, index)
        if example is None or not hasattr(transformation, "draw"):
            drawn = transformation.sample(own_key, 1)
        else:
            batch = jax.tree.map(lambda leaf: leaf[None], example)
            drawn = transformation.draw(own_key, batch)
        return jax.tree.map(lambda leaf: jnp.squeeze(leaf, axis=0), drawn)

    if str(jax.random.key_impl(key)) == "threefry2x32":
        return jax.vmap(sample_one)(indices, x)
    # With other generators, vmap would draw from the first example's key for all.
    return jax.lax.map(lambda example: sample_one(*example), (indices, x))


def average_features(
    key: Key,
    encode: Callable[[Array], Array],
    transformation: Transformation,
    x: PyTree,
    *,
    num_views: tuple[int, ...],
    indices: Array | None = None,
) -> Array:
    """Returns the mean representation over the first M views, for each M in num_views.

    Computes `h_M = (1/M) sum_{m < M} encode(t(x; alpha_m))` as running means in one
    pass over max(num_views) views.

    Args:
      key: PRNG key, the same for all batches of a data set.
      encode: frozen encoder, `images [B, H, W, 3] -> h [B, D]`.
      transformation: has `sample(key, batch_size)` and `apply(x, view)`.
      x: examples, an array or pytree whose leaves have leading axis B.
      num_views: the numbers of views M, strictly increasing, 1 or more.
      indices: integer `[B]`, the index of each example in the data set, from 0 to
        2^32 - 1; None for 0 .. B - 1.

    Returns:
      `[len(num_views), B, D]`, representation units, the dtype of h, at least float32.

    Raises:
      ValueError: if num_views is not a strictly increasing tuple of positive integers,
        if the leading axes of x disagree, if indices do not fit x or are out of range,
        or if encode does not return float `[B, D]`.

    Gradients: with respect to x and what encode closes over, if it allows them; reverse
      mode keeps all views in memory.
    Cost: max(num_views) forward passes over the batch; memory of one pass and of the
      result, whatever the number of views.
    """
    num_views = _check_num_views(num_views)
    encode_view, h = _view_encoder(key, encode, transformation, x, indices)
    dtype = jnp.promote_types(h.dtype, jnp.float32)
    counts = np.arange(1, num_views[-1] + 1)
    # Each count writes to the slot of the next M; the last write to it is that of M.
    slots = np.searchsorted(np.asarray(num_views), counts)

    def accumulate(
        carry: tuple[Array, Array], step: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        total, means = carry
        count, slot = step
        total = total + encode_view(count - 1).astype(dtype)
        mean = total / count.astype(dtype)
        return (total, jax.lax.dynamic_update_index_in_dim(means, mean, slot, 0)), None

    start = jnp.zeros(h.shape, dtype), jnp.zeros((len(num_views), *h.shape), dtype)
    steps = jnp.asarray(counts, jnp.uint32), jnp.asarray(slots, jnp.int32)
    (_, means), _ = jax.lax.scan(accumulate, start, steps)
    return means


def encode_views(
    key: Key,
    encode: Callable[[Array], Array],
    transformation: Transformation,
    x: PyTree,
    *,
    num_views: int,
    indices: Array | None = None,
) -> Array:
    """Returns the representations of the first M views, drawn as in `average_features`.

    Args:
      key: PRNG key, the same for all batches of a data set.
      encode: frozen encoder, `images [B, H, W, 3] -> h [B, D]`.
      transformation: has `sample(key, batch_size)` and `apply(x, view)`.
      x: examples, an array or pytree whose leaves have leading axis B.
      num_views: the number of views M, 1 or more.
      indices: integer `[B]`, the index of each example in the data set, from 0 to
        2^32 - 1; None for 0 .. B - 1.

    Returns:
      `[M, B, D]`, the dtype of h.

    Raises:
      ValueError: if num_views is not a positive integer, if the leading axes of x
        disagree, if indices do not fit x or are out of range, or if encode does not
        return float `[B, D]`.

    Gradients: with respect to x and what encode closes over, if it allows them.
    Cost: num_views forward passes over the batch, one at a time.
    """
    num_views = check_integer("num_views", num_views)
    encode_view, _ = _view_encoder(key, encode, transformation, x, indices)
    h: Array = jax.lax.map(encode_view, jnp.arange(num_views, dtype=jnp.uint32))
    return h


def _view_encoder(
    key: Key,
    encode: Callable[[Array], Array],
    transformation: Transformation,
    x: PyTree,
    indices: Array | None,
) -> tuple[Callable[[Array], Array], jax.ShapeDtypeStruct]:
    """Returns a function from the number of a view to h, and the shape of h."""
    batch_size = _batch_size(x)
    if indices is None:
        indices = jnp.arange(batch_size, dtype=jnp.uint32)
    _check_indices(indices)
    if indices.shape[0] != batch_size:
        raise ValueError(
            f"indices must have one entry for each of the {batch_size} examples of x, "
            f"but has {indices.shape[0]}."
        )

    def encode_view(view: Array) -> Array:
        drawn = sample_view(key, transformation, indices, view=view, x=x)
        return encode(transformation.apply(x, drawn))

    h = jax.eval_shape(encode_view, jnp.zeros((), jnp.uint32))
    if len(h.shape) != 2 or h.shape[0] != batch_size:
        raise ValueError(
            f"encode must return [B, D] with B = {batch_size}; found {h.shape}."
        )
    if not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(f"encode must return a float dtype; found {h.dtype}.")
    return encode_view, h


def _batch_size(x: PyTree) -> int:
    """Returns the size of the common leading axis of the leaves of x."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x)]
    sizes = {shape[0] if shape else None for shape in shapes}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            "x must be an array or pytree whose leaves share one leading axis B, but "
            f"its leaves have the shapes {shapes}."
        )
    return int(shapes[0][0])


def _check_indices(indices: Array) -> None:
    check_shape("indices", indices, (None,), expected="[B], an integer per example")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"indices must have an integer dtype, not {indices.dtype}.")
    if isinstance(indices, jax.core.Tracer) or not indices.size:
        return
    host = np.asarray(indices)
    least, most = host.min(), host.max()
    if least < 0 or most > _MAX_INDEX:
        raise ValueError(
            f"indices must be from 0 to {_MAX_INDEX}, as a key takes 32 bits; found "
            f"{least} to {most}."
        )


def _check_num_views(num_views: tuple[int, ...]) -> tuple[int, ...]:
    entries = num_views if isinstance(num_views, tuple) else ()
    try:
        counts = [check_integer("num_views", count) for count in entries]
    except ValueError:
        counts = []
    if not counts or counts != sorted({*counts}):
        raise ValueError(
            "num_views must be a strictly increasing tuple of integers of 1 or more, "
            f"such as (1, 8), not {num_views!r}."
        )
    return tuple(counts)
