"""Convolutions in forms that XLA computes fast on CPUs.

Two things slow `lax.conv` down there. In a loop, the body of which is our step, XLA
computes the gradient in the kernel 50 to 100 times as slowly as outside
(https://github.com/jax-ml/jax/issues/12868): here it is a matrix product for each
position of the kernel. And kernels of 3 x 3 at stride 1 take the method of Winograd:
Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016), F(2 x 2, 3 x
3), for 4/9 of the multiplications, a few images at a time so that they stay in the
cache. Milliseconds for 64 images of 32 x 32 x 64 on two cores, of the result, its
transpose in the images and that in the kernel: `lax.conv` 50, 50, 57 outside of a loop;
this 19, 19, 33; PyTorch 23, 23, 26.

The convolution is a primitive that is linear in both arguments, as that of lax is: so
its transposes, too, have these forms.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from invariance_jax.types import Array

Sizes = tuple[int, int]
Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]

_AROUND = ((1, 1), (1, 1))
_LAYOUT = ("NHWC", "HWIO", "NHWC")

_CHUNK_BYTES = 2**21
"""What a few images may take: about a core's second cache."""

_FEWEST_CHANNELS = 32
_FEWEST_PIXELS = 8  # per side; smaller images are faster as they are

_KERNEL_TRANSFORM = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2


def convolve(
    images: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """Returns `jax.lax.conv_general_dilated` of the same arguments, on CPUs faster.

    For `flax.linen.Conv(conv_general_dilated=convolve)`, with channels last.

    Args:
      images: `[B, H, W, C]`.
      kernel: `[h, w, C, D]`.
      strides: of both axes of the images.
      padding: pixels before and after, of both axes.
      **options: further arguments of `jax.lax.conv_general_dilated`.

    Returns:
      `[B, H', W', D]`.

    Gradients: of any order and mode, in images and kernel.
    """
    if jax.default_backend() != "cpu" or not _is_plain(options):
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)
    (top, bottom), (left, right) = padding
    result: Array = _convolve.bind(
        images,
        kernel,
        strides=tuple(strides),
        padding=((top, bottom), (left, right)),
    )
    return result


def _is_plain(options: dict[str, Any]) -> bool:
    """Returns whether there is neither dilation nor a group of features."""
    neutral = [options.get(f"{side}_dilation") or (1,) for side in ("lhs", "rhs")]
    groups = [options.get(f"{what}_group_count", 1) for what in ("feature", "batch")]
    return all(math.prod(sizes) == 1 for sizes in (*neutral, groups))


def _suits(images: Any, kernel: Any, strides: Strides, padding: Padding) -> bool:
    """Returns whether the method of Winograd computes the convolution, and faster."""
    height, width = images.shape[1:3]
    return (
        images.dtype == kernel.dtype == jnp.float32
        and kernel.shape[:2] == (3, 3)
        and strides == (1, 1)
        and padding == _AROUND
        and height % 2 == width % 2 == 0
        and min(height, width) >= _FEWEST_PIXELS
        and min(kernel.shape[2:]) >= _FEWEST_CHANNELS
    )


def _forward(
    images: Array, kernel: Array, *, strides: Strides, padding: Padding
) -> Array:
    if _suits(images, kernel, strides, padding):
        return _winograd(images, kernel)
    return jax.lax.conv_general_dilated(
        images, kernel, strides, padding, dimension_numbers=_LAYOUT
    )


def _transpose_in_images(
    g: Array, images: Any, kernel: Array, *, strides: Strides, padding: Padding
) -> Array:
    """Returns the transpose of the convolution in the images, which are unknown."""
    images = getattr(images, "aval", images)
    if _suits(images, kernel, strides, padding):
        turned = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
        result: Array = _convolve.bind(g, turned, strides=strides, padding=padding)
        return result
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)

    def forward(images: Array) -> Array:
        return _forward(images, kernel, strides=strides, padding=padding)

    (result,) = jax.linear_transpose(forward, shape)(g)
    return result


def _kernel_gradient(
    images: Array, g: Array, *, size: Sizes, strides: Strides, padding: Padding
) -> Array:
    """Returns the transpose of the convolution in the kernel, `[*size, C, F]`."""
    channels, features = images.shape[-1], g.shape[-1]
    kernel = jax.ShapeDtypeStruct((*size, channels, features), images.dtype)
    if _suits(images, kernel, strides, padding):
        return _winograd_gradient(images, g)
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    by_feature = g.reshape(-1, features).T

    def product(top: int, left: int) -> Array:
        seen = padded
        for axis, start in ((1, top), (2, left)):
            stride = strides[axis - 1]
            stop = start + stride * (g.shape[axis] - 1) + 1
            seen = jax.lax.slice_in_dim(seen, start, stop, stride, axis)
        return (by_feature @ seen.reshape(-1, channels)).T

    products = [product(top, left) for top in range(size[0]) for left in range(size[1])]
    return jnp.stack(products).reshape(kernel.shape)


def _in_chunks(images: Array) -> Array:
    """Returns `[n, B / n, ...]`, as many images together as the cache holds."""
    size = 4 * math.prod(images.shape[1:])
    most = max(1, _CHUNK_BYTES // size)
    batch = images.shape[0]
    together = max(n for n in range(1, min(most, batch) + 1) if batch % n == 0)
    return images.reshape(-1, together, *images.shape[1:])


def _tiles(images: Array) -> list[Array]:
    """Returns the transformed tiles, 16 arrays `[B H W / 4, C]`."""
    padded = jnp.pad(images, ((0, 0), *_AROUND, (0, 0)))

    def transform(parts: list[Array]) -> list[Array]:
        a, b, c, d = parts
        return [a - c, b + c, c - b, b - d]

    rows = transform([_every_second(padded, i, axis=1) for i in range(4)])
    tiles = (
        transform([_every_second(row, i, axis=2) for i in range(4)]) for row in rows
    )
    channels = images.shape[-1]
    return [tile.reshape(-1, channels) for row in tiles for tile in row]


def _every_second(padded: Array, start: int, *, axis: int) -> Array:
    stop = padded.shape[axis] - 3 + start
    return jax.lax.slice_in_dim(padded, start, stop, 2, axis)


def _untransform(parts: Sequence[Array]) -> list[Array]:
    """Returns the two results of a row of four products."""
    a, b, c, d = parts
    return [a + b + c, b - c - d]


def _untransform_transposed(parts: Sequence[Array]) -> list[Array]:
    a, b = parts
    return [a, a + b, a - b, -b]


def _winograd(images: Array, kernel: Array) -> Array:
    """Returns the convolution with a kernel of 3 x 3, of stride 1 and padding 1."""
    transform = jnp.asarray(_KERNEL_TRANSFORM, kernel.dtype)
    kernels = jnp.einsum("ip,jq,pqcf->ijcf", transform, transform, kernel)
    kernels = kernels.reshape(16, *kernel.shape[2:])

    def few(images: Array) -> Array:
        batch, height, width, _ = images.shape
        shape = (batch, height // 2, width // 2, kernel.shape[-1])
        products = [
            (tile @ kernels[n]).reshape(shape) for n, tile in enumerate(_tiles(images))
        ]
        rows = [_untransform(products[n : n + 4]) for n in range(0, 16, 4)]
        columns = [_untransform(column) for column in zip(*rows, strict=True)]
        pixels = [jnp.stack(row, axis=3) for row in zip(*columns, strict=True)]
        return jnp.stack(pixels, axis=2).reshape(batch, height, width, -1)

    results = jax.lax.map(few, _in_chunks(images))
    return results.reshape(*images.shape[:3], -1)


def _winograd_gradient(images: Array, cotangents: Array) -> Array:
    """Returns its transpose in the kernel, `[3, 3, C, F]`."""

    def add(total: Array, few: tuple[Array, Array]) -> tuple[Array, None]:
        images, cotangents = few
        rows = _untransform_transposed([cotangents[:, p::2] for p in range(2)])
        parts = [
            part.reshape(-1, part.shape[-1])
            for row in rows
            for part in _untransform_transposed([row[:, :, q::2] for q in range(2)])
        ]
        products = [
            part.T @ tile for part, tile in zip(parts, _tiles(images), strict=True)
        ]
        return total + jnp.stack(products), None

    chunks = _in_chunks(images)
    others = cotangents.reshape(*chunks.shape[:2], *cotangents.shape[1:])
    shape = (16, cotangents.shape[-1], images.shape[-1])
    total, _ = jax.lax.scan(add, jnp.zeros(shape, images.dtype), (chunks, others))
    transform = jnp.asarray(_KERNEL_TRANSFORM, images.dtype)
    total = total.reshape(4, 4, *shape[1:])
    return jnp.einsum("ip,jq,ijfc->pqcf", transform, transform, total)


def _primitive(name: str, function: Any) -> Primitive:
    """Returns a primitive of two arrays that is computed by a function of them."""
    primitive = Primitive(name)

    def run(*inputs: Array, **form: Any) -> Array:
        result: Array = jax.jit(partial(function, **form))(*inputs)
        return result

    def shape_of(*inputs: Any, **form: Any) -> Any:
        shapes = [jax.ShapeDtypeStruct(i.shape, i.dtype) for i in inputs]
        found = jax.eval_shape(partial(function, **form), *shapes)
        return jax.core.ShapedArray(found.shape, found.dtype)

    def batch(
        inputs: Sequence[Array], axes: Sequence[int | None], **form: Any
    ) -> tuple[Array, int]:
        pairs = list(zip(inputs, axes, strict=True))
        (size, *_) = (x.shape[axis] for x, axis in pairs if axis is not None)
        moved = tuple(
            jnp.broadcast_to(x, (size, *x.shape))
            if axis is None
            else jnp.moveaxis(x, axis, 0)
            for x, axis in pairs
        )
        return jax.lax.map(lambda pair: primitive.bind(*pair, **form), moved), 0

    primitive.def_impl(run)
    primitive.def_abstract_eval(shape_of)
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    batching.primitive_batchers[primitive] = batch
    return primitive


_convolve = _primitive("convolve", _forward)
_differentiate = _primitive("kernel_gradient", _kernel_gradient)

ad.defbilinear(
    _convolve,
    _transpose_in_images,
    lambda g, images, kernel, **form: _differentiate.bind(
        images, g, size=kernel.aval.shape[:2], **form
    ),
)
ad.defbilinear(
    _differentiate,
    lambda kernel, images, g, *, size, **form: _transpose_in_images(
        g, images.aval, kernel, **form
    ),
    lambda kernel, images, g, *, size, **form: _convolve.bind(images, kernel, **form),
)
