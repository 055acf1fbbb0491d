"""3x3 convolutions of stride 1 as few matrix products, for processors.

Winograd's minimal filtering, as Lavin and Gray (2016) use it. F(2x2, 3x3): tiles of 4x4
pixels, 2 apart, become 16 sums of theirs, the kernel 16 matrices, and 2x2 outputs are
sums of 16 products, where the convolution itself has 36. With the matrices of the
paper, `Y = A^T ((G g G^T) * (B^T d B)) A`; the gradient of the kernel is the transpose,
`G^T (sum over tiles of (B^T d B)^T (A dY A^T)) G`. Computed in the dtype of the input;
in float32 the error is that of the sum it replaces (1e-6 of the largest entry). The
gradient of the kernel takes F(4x4, 3x3) where the images have room for it: 36 products
for 144, of larger sums (error 1e-5); for images these cost more than they save.

Images are `[B, H, W, C]`, kernels `[3, 3, C, D]`, one pixel of zeros on each side. The
examples are taken some at a time, so that all sums stay in the cache.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.models.parts import map_parts, sum_parts
from invariance_jax.types import Array


def _filtering(*points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns B^T, G and A^T: products of polynomials, by values at points, transposed.

    The last of the points is infinity. B^T holds whole numbers.
    """

    def values(length: int) -> np.ndarray:
        return np.vstack([np.vander(points, length, True), np.eye(length)[-1]])

    differences = [[p - q for q in points if q != p] for p in points]
    scale = np.array([*map(np.prod, differences), 1.0])[:, None]
    size = len(scale)
    inverse = np.linalg.inv(values(size)).T
    return np.rint(scale * inverse), values(3) / scale, values(size - 2).T


TWO, FOUR = _filtering(0, 1, -1), _filtering(0, 1, -1, 2, -2)
"""F(2x2, 3x3) and F(4x4, 3x3)."""


def convolve(x: Array, kernel: Array) -> Array:
    """Returns the convolution `[B, H, W, D]` of x with a kernel `[3, 3, C, D]`."""
    return _products(x, kernel, "src,scf->srf", kernel.shape[3])


def image_gradient(kernel: Array, cotangent: Array) -> Array:
    """Returns the gradient of `sum(cotangent * convolve(x, kernel))` in x.

    The convolution with the kernel turned, whose matrices are not transposed for it:
    at 4x4x512 that would take as long as all else.
    """
    turned = kernel[::-1, ::-1]
    return _products(cotangent, turned, "srf,scf->src", kernel.shape[2])


def _products(x: Array, kernel: Array, contraction: str, channels: int) -> Array:
    """Returns the images whose tiles are products of those of x and of the kernel."""
    input_sums, kernel_sums, output_sums = TWO
    matrices = _combine(_combine(kernel, kernel_sums, 0, 0), kernel_sums, 1, 1)
    matrices = matrices.reshape(16, *kernel.shape[2:])

    def part(x: Array) -> Array:
        tiles = _tile_sums(x, input_sums, apart=2, before=1)
        products = jnp.einsum(contraction, tiles, matrices)
        return _outputs(products, output_sums, (*x.shape[:3], channels))

    return map_parts(part, x)


def kernel_gradient(x: Array, cotangent: Array) -> Array:
    """Returns the gradient of `sum(cotangent * convolve(x, kernel))` in the kernel."""
    input_sums, kernel_sums, output_sums = FOUR if min(x.shape[1:3]) >= 8 else TWO
    apart, size = output_sums.shape

    def differentiate_part(x: Array, cotangent: Array) -> Array:
        sums = _tile_sums(x, input_sums, apart=apart, before=1)
        of_cotangent = _tile_sums(cotangent, output_sums.T, apart=apart, before=0)
        return jnp.einsum("src,srf->scf", sums, of_cotangent)

    products = sum_parts(differentiate_part, x, cotangent)
    products = products.reshape(size, size, x.shape[-1], cotangent.shape[-1])
    return _combine(_combine(products, kernel_sums.T, 0, 0), kernel_sums.T, 1, 1)


def _combine(x: Array, sums: np.ndarray, axis: int, new_axis: int) -> Array:
    """Returns sums of the entries along an axis, stacked along one of the result."""
    return _stack(sums, jnp.moveaxis(x, axis, 0), new_axis)


def _stack(sums: np.ndarray, entries: Iterable[Array], axis: int) -> Array:
    """Returns the product of a matrix and entries, without those it multiplies by 0."""
    entries = list(entries)
    rows = [zip(row.tolist(), entries, strict=True) for row in sums]
    made = [sum(factor * entry for factor, entry in row if factor) for row in rows]
    # Without the barrier XLA computes the entries again for each sum of the other axis.
    return jax.lax.optimization_barrier(jnp.stack(made, axis))


def _tile_sums(x: Array, sums: np.ndarray, *, apart: int, before: int) -> Array:
    """Returns `T X T^T` of each tile X, where sums is T, `[len(T)^2, B * tiles, C]`.

    Tiles lie so many pixels apart and cover the image, with some rows and columns of
    zeros before the first.
    """
    size = sums.shape[1]
    tiles = [-(-length // apart) for length in x.shape[1:3]]
    padding = [
        (before, apart * (n - 1) + size - length - before)
        for n, length in zip(tiles, x.shape[1:3], strict=True)
    ]
    channels, x = x.shape[-1], jnp.pad(x, ((0, 0), *padding, (0, 0)))
    for number, axis in enumerate((1, 3)):  # the first sums stand before the examples
        end = apart * (tiles[number] - 1) + 1
        places = [jax.lax.slice_in_dim(x, i, i + end, apart, axis) for i in range(size)]
        x = _stack(sums, places, number)
    return x.reshape(len(sums) ** 2, -1, channels)


def _outputs(products: Array, sums: np.ndarray, shape: tuple[int, ...]) -> Array:
    """Returns the images `[B, H, W, D]` from the products `[16, B * tiles, D]`."""
    examples, height, width, features = shape
    rows, columns = -(-height // 2), -(-width // 2)
    products = products.reshape(4, 4, examples, rows, columns, features)
    y = _combine(_combine(products, sums, 1, 4), sums, 0, 2)
    y = y.reshape(examples, 2 * rows, 2 * columns, features)
    return y[:, :height, :width]
