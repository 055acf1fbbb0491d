"""3x3 convolutions of stride 1 as few matrix products, for processors.

Winograd's minimal filtering F(2x2, 3x3), as Lavin and Gray (2016) use it: tiles of 4x4
pixels, 2 apart, become 16 sums of theirs, the kernel 16 matrices, and 2x2 outputs are
sums of 16 products, where the convolution itself has 36. With the matrices of the
paper, `Y = A^T ((G g G^T) * (B^T d B)) A`; the gradient of the kernel is the transpose,
`G^T (sum over tiles of (B^T d B)^T (A dY A^T)) G`. Computed in the dtype of the input;
in float32 the error is that of the sum it replaces (1e-6 of the largest entry).

Images are `[B, H, W, C]`, kernels `[3, 3, C, D]`, one pixel of zeros on each side. The
examples are taken some at a time, so that all 16 sums stay in the cache. At 2 cores,
batch 64, float32 (XLA's convolution in brackets): 32x32x64 forward 17 ms (50), gradient
of the kernel 31 (58); 4x4x512 14 (24) and 15 (25).
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from invariance_jax.models.parts import map_parts, sum_parts
from invariance_jax.types import Array

Sums = Callable[[list[Array]], list[Array]]


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
    matrices = _combine(_combine(kernel, _kernel_sums, 0, 0), _kernel_sums, 1, 1)
    matrices = matrices.reshape(16, *kernel.shape[2:])

    def part(x: Array) -> Array:
        tiles = _tile_sums(x, 4, 1, _input_sums)
        products = jnp.einsum(contraction, tiles, matrices)
        return _outputs(products, (*x.shape[:3], channels))

    return map_parts(part, x)


def kernel_gradient(x: Array, cotangent: Array) -> Array:
    """Returns the gradient of `sum(cotangent * convolve(x, kernel))` in the kernel."""
    shape = (x.shape[-1], cotangent.shape[-1])

    def differentiate_part(x: Array, cotangent: Array) -> Array:
        sums = _tile_sums(x, 4, 1, _input_sums)
        of_cotangent = _tile_sums(cotangent, 2, 0, _cotangent_sums)
        return jnp.einsum("src,srf->scf", sums, of_cotangent)

    products = sum_parts(differentiate_part, x, cotangent).reshape(4, 4, *shape)
    gradient = _combine(products, _kernel_sums_transposed, 0, 0)
    return _combine(gradient, _kernel_sums_transposed, 1, 1)


def _combine(x: Array, sums: Sums, axis: int, new_axis: int) -> Array:
    """Returns sums of the entries along an axis, stacked along one of the result."""
    return _stack(sums, jnp.moveaxis(x, axis, 0), new_axis)


def _stack(sums: Sums, entries: Iterable[Array], axis: int) -> Array:
    # Without the barrier XLA computes the entries again for each sum of the other axis.
    stacked: Array = jax.lax.optimization_barrier(jnp.stack(sums(list(entries)), axis))
    return stacked


def _tile_sums(x: Array, size: int, before: int, sums: Sums) -> Array:
    """Returns `T X T^T` of each tile X, where sums is T.

    Args:
      x: `[B, H, W, C]`.
      size: pixels per side of a tile; tiles lie 2 apart and cover the image.
      before: rows and columns of zeros before the first.
      sums: four sums of the pixels of a row.

    Returns:
      `[16, B * tiles, C]`.
    """
    tiles = [-(-length // 2) for length in x.shape[1:3]]
    padding = [
        (before, 2 * (n - 1) + size - length - before)
        for n, length in zip(tiles, x.shape[1:3], strict=True)
    ]
    channels, x = x.shape[-1], jnp.pad(x, ((0, 0), *padding, (0, 0)))
    for number, axis in enumerate((1, 3)):  # the first sums stand before the examples
        length = 2 * tiles[number] - 1
        places = [jax.lax.slice_in_dim(x, i, i + length, 2, axis) for i in range(size)]
        x = _stack(sums, places, number)
    return x.reshape(16, -1, channels)


def _outputs(products: Array, shape: tuple[int, ...]) -> Array:
    """Returns the images `[B, H, W, D]` from the products `[16, B * tiles, D]`."""
    examples, height, width, features = shape
    rows, columns = -(-height // 2), -(-width // 2)
    products = products.reshape(4, 4, examples, rows, columns, features)
    y = _combine(products, _output_sums, 1, 4)
    y = _combine(y, _output_sums, 0, 2)
    y = y.reshape(examples, 2 * rows, 2 * columns, features)
    return y[:, :height, :width]


# B^T, A, A^T, G and G^T of the paper, applied to a list of arrays.


def _input_sums(d: list[Array]) -> list[Array]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _cotangent_sums(y: list[Array]) -> list[Array]:
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _output_sums(m: list[Array]) -> list[Array]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _kernel_sums(g: list[Array]) -> list[Array]:
    outer, middle = (g[0] + g[2]) / 2, g[1] / 2
    return [g[0], outer + middle, outer - middle, g[2]]


def _kernel_sums_transposed(u: list[Array]) -> list[Array]:
    outer, middle = (u[1] + u[2]) / 2, (u[1] - u[2]) / 2
    return [u[0] + outer, middle, outer + u[3]]
