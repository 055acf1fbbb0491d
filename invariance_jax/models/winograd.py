"""3x3 convolutions of stride 1 with few multiplications, for CPUs.

Winograd's minimal filtering, Lavin and Gray (2016). F(2x2, 3x3) cuts an image d into
tiles of 4x4 pixels at stride 2 and transforms each tile into 16 sums of its pixels, the
kernel g into 16 matrices. Then 2x2 outputs are sums of 16 products, where a plain
convolution has 36. With the matrices of the paper, `Y = A^T ((G g G^T) * (B^T d B)) A`;
the gradient with respect to the kernel is the transpose, `G^T (sum over tiles of
(B^T d B)^T (A dY A^T)) G`. All is computed in the dtype of the input; in float32 the
error is as small as that of a plain convolution (1e-6 of the largest entry). The
kernel's gradient uses F(4x4, 3x3) for images that are large enough: 36 products instead
of 144, but of larger sums (error 1e-5); for outputs and image gradients these sums cost
more than they save.

Images are `[B, H, W, C]`, kernels `[3, 3, C, D]`; images are padded by one pixel of
zeros on each side. Examples are processed in parts whose sums fit in the CPU cache.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.models.parts import map_parts, sum_parts
from invariance_jax.types import Array


def _filtering(*points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns B^T, G and A^T of the transposed Toom-Cook algorithm.

    It interpolates at the given points and at infinity. B^T holds whole numbers.
    """

    def values(length: int) -> np.ndarray:
        return np.vstack([np.vander(points, length, True), np.eye(length)[-1]])

    differences = [[p - q for q in points if q != p] for p in points]
    scale = np.array([*map(np.prod, differences), 1.0])[:, None]
    size = len(scale)
    inverse = np.linalg.inv(values(size)).T
    return np.rint(scale * inverse), values(3) / scale, values(size - 2).T


TWO, FOUR = _filtering(0, 1, -1), _filtering(0, 1, -1, 2, -2)
"""B^T, G and A^T of F(2x2, 3x3) and of F(4x4, 3x3)."""


def convolve(x: Array, kernel: Array) -> Array:
    """Returns the convolution `[B, H, W, D]` of x with a kernel `[3, 3, C, D]`."""
    return _products(x, kernel, "src,scf->srf", kernel.shape[3])


def image_gradient(kernel: Array, cotangent: Array) -> Array:
    """Returns the gradient of `sum(cotangent * convolve(x, kernel))` in x.

    This is the convolution of the cotangent with the rotated kernel, its channel axes
    swapped. The contraction swaps them: a transpose would double the time at 4x4x512.
    """
    rotated = kernel[::-1, ::-1]
    return _products(cotangent, rotated, "srf,scf->src", kernel.shape[2])


def _products(x: Array, kernel: Array, contraction: str, channels: int) -> Array:
    """Returns images from the tile-wise products of x and the kernel."""
    input_matrix, kernel_matrix, output_matrix = TWO
    kernels = _combine(_combine(kernel, kernel_matrix, 0, 0), kernel_matrix, 1, 1)
    kernels = kernels.reshape(16, *kernel.shape[2:])

    def convolve_part(x: Array) -> Array:
        tiles = _tile_sums(x, input_matrix, stride=2, pad_before=1)
        products = jnp.einsum(contraction, tiles, kernels)
        return _outputs(products, output_matrix, (*x.shape[:3], channels))

    return map_parts(convolve_part, x)


def kernel_gradient(x: Array, cotangent: Array) -> Array:
    """Returns the gradient of `sum(cotangent * convolve(x, kernel))` in the kernel."""
    input_matrix, kernel_matrix, output_matrix = FOUR if min(x.shape[1:3]) >= 8 else TWO
    stride, size = output_matrix.shape

    def differentiate_part(x: Array, cotangent: Array) -> Array:
        x_sums = _tile_sums(x, input_matrix, stride=stride, pad_before=1)
        dy_sums = _tile_sums(cotangent, output_matrix.T, stride=stride, pad_before=0)
        return jnp.einsum("src,srf->scf", x_sums, dy_sums)

    products = sum_parts(differentiate_part, x, cotangent)
    products = products.reshape(size, size, x.shape[-1], cotangent.shape[-1])
    return _combine(_combine(products, kernel_matrix.T, 0, 0), kernel_matrix.T, 1, 1)


def _combine(x: Array, matrix: np.ndarray, axis: int, new_axis: int) -> Array:
    """Returns the matrix times the entries along `axis`, stacked along `new_axis`."""
    return _stack(matrix, jnp.moveaxis(x, axis, 0), new_axis)


def _stack(matrix: np.ndarray, entries: Iterable[Array], axis: int) -> Array:
    """Returns the matrix times the entries, stacked; skips products with 0."""
    entries = list(entries)
    rows = [zip(row.tolist(), entries, strict=True) for row in matrix]
    sums = [sum(factor * entry for factor, entry in row if factor) for row in rows]
    # Without the barrier XLA recomputes the entries for each row of the next product.
    return jax.lax.optimization_barrier(jnp.stack(sums, axis))


def _tile_sums(x: Array, matrix: np.ndarray, *, stride: int, pad_before: int) -> Array:
    """Returns `T X T^T` of each tile X and the matrix T, `[len(T)^2, B * tiles, C]`.

    The tiles cover the image with the given stride, after it is padded with zeros:
    `pad_before` rows above and columns left of it, and as many after it as are needed.
    """
    size = matrix.shape[1]
    tiles = [-(-length // stride) for length in x.shape[1:3]]
    padding = [
        (pad_before, stride * (n - 1) + size - length - pad_before)
        for n, length in zip(tiles, x.shape[1:3], strict=True)
    ]
    channels, x = x.shape[-1], jnp.pad(x, ((0, 0), *padding, (0, 0)))
    for number, axis in enumerate((1, 3)):  # each product puts a new axis before B
        end = stride * (tiles[number] - 1) + 1
        pixels = [
            jax.lax.slice_in_dim(x, i, i + end, stride, axis) for i in range(size)
        ]
        x = _stack(matrix, pixels, number)
    return x.reshape(len(matrix) ** 2, -1, channels)


def _outputs(products: Array, matrix: np.ndarray, shape: tuple[int, ...]) -> Array:
    """Returns the images `[B, H, W, D]` from the products `[16, B * tiles, D]`."""
    examples, height, width, features = shape
    rows, columns = -(-height // 2), -(-width // 2)
    products = products.reshape(4, 4, examples, rows, columns, features)
    y = _combine(_combine(products, matrix, 1, 4), matrix, 0, 2)
    y = y.reshape(examples, 2 * rows, 2 * columns, features)
    return y[:, :height, :width]
