"""Convolutions of images that are fast on CPUs too.

Accelerators run XLA's convolutions. On CPUs some are slow, so lowering for the CPU
replaces all by matrix products: `models.winograd` for 3x3 kernels at stride 1, else
`models.patches`. A convolution is linear in the image and in the kernel, so the
convolution and its two transposes are the derivatives of one trilinear form. Each of
the three is an operation of its own here, whose derivatives are the other two. Hence
every mode and order of differentiation is as fast as the operation itself.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

from invariance_jax.models import patches, winograd
from invariance_jax.types import Array

_MIN_CHANNELS, _MIN_TILES = 32, 64
"""With fewer than these, Winograd's sums cost more than the products they save."""

ROLES = ("image", "kernel", "output")
"""Operands of the trilinear form; an operation maps two of them to the third."""

_WINOGRAD = {
    "image": winograd.image_gradient,
    "kernel": winograd.kernel_gradient,
    "output": winograd.convolve,
}


class Geometry(NamedTuple):
    """Static geometry of a convolution, which the shapes of two operands leave open."""

    image: tuple[int, ...]  # rows and columns
    size: int  # rows and columns of the kernel, an odd number
    strides: int  # pixels from one output to the next, along both axes
    precision: str | None = None  # of XLA's convolution; None: its default


class Convolution(nn.Module):
    """A convolution with a square kernel, no bias, and half the kernel as padding.

    Its parameter `kernel` is that of `flax.linen.Conv`.
    """

    features: int
    kernel_size: int
    strides: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None  # None: the promoted dtype of image and kernel

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the convolution of images, `[B, H, W, C] -> [B, H', W', D]`."""
        size = self.kernel_size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return convolve(x, kernel, strides=self.strides)


def convolve(x: Array, kernel: Array, *, strides: int) -> Array:
    """Returns the convolution of neural networks, which is a cross-correlation.

    x is `[B, H, W, C]`, the kernel `[size, size, C, D]` of odd size and the same dtype.
    The result is `[B, H / strides, W / strides, D]`, sides rounded up.
    """
    shapes_fit = x.ndim == kernel.ndim == 4 and x.shape[-1] == kernel.shape[2]
    if not shapes_fit or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(
            f"x has shape {x.shape} and kernel {kernel.shape}; expected [B, H, W, C] "
            "and [size, size, C, D] of an odd size."
        )
    # Read here: when the operation is lowered, `jax.default_matmul_precision` is over.
    precision = jax.default_matmul_precision.value
    geometry = Geometry(x.shape[1:3], len(kernel), strides, precision)
    # Inside `jax.shard_map` both must vary along the same axes of the mesh.
    varying = [jax.typeof(array).manual_axis_type.varying for array in (x, kernel)]
    x, kernel = (
        jax.lax.pcast(array, tuple(frozenset.union(*varying) - own), to="varying")
        for array, own in zip((x, kernel), varying, strict=True)
    )
    return _bind("output", {"image": x, "kernel": kernel}, geometry)


# Returns the operand `role`; a and b are the other two, in the order of ROLES.
_operation = Primitive("convolution_of_images")


def _bind(role: str, operands: dict[str, Array], geometry: Geometry) -> Array:
    arguments = [operands[name] for name in _operand_names(role)]
    return _operation.bind(*arguments, role=role, geometry=geometry)


def _operand_names(role: str) -> list[str]:
    return [name for name in ROLES if name != role]


def _abstract(a: Any, b: Any, *, role: str, geometry: Geometry) -> Any:
    """Returns the shape and dtype of the operand `role`."""
    if role == "output":
        rows, columns = (-(-n // geometry.strides) for n in geometry.image)
        shape = (a.shape[0], rows, columns, b.shape[3])
    elif role == "image":
        shape = (b.shape[0], *geometry.image, a.shape[2])
    else:
        shape = (geometry.size, geometry.size, a.shape[3], b.shape[3])
    return a.update(shape=shape)


def _transpose(
    index: int, cotangent: Array, a: Any, b: Any, *, role: str, geometry: Geometry
) -> Array:
    """Returns the cotangent of the argument at `index`."""
    names = _operand_names(role)
    operands = {names[1 - index]: (a, b)[1 - index], role: cotangent}
    return _bind(names[index], operands, geometry)


def _batch(
    arguments: tuple[Array, Array],
    axes: tuple[int | None, int | None],
    *,
    role: str,
    geometry: Geometry,
) -> tuple[Array, int]:
    """Maps over an axis: as one larger batch if all share a kernel, else in a loop."""
    operands = dict(zip(_operand_names(role), arguments, strict=True))
    mapped = {
        name: jnp.moveaxis(operands[name], axis, 0)
        for name, axis in zip(operands, axes, strict=True)
        if axis is not None
    }
    if role != "kernel" and "kernel" not in mapped:
        ((name, x),) = mapped.items()
        y = _bind(role, operands | {name: x.reshape(-1, *x.shape[2:])}, geometry)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    return jax.lax.map(lambda own: _bind(role, operands | own, geometry), mapped), 0


def by_xla(a: Array, b: Array, *, role: str, geometry: Geometry) -> Array:
    """Returns the operand `role` from the other two, by XLA's convolution."""
    if role == "output":
        strides, side = geometry.strides, geometry.size // 2
        padding, order = [(side, side)] * 2, ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            a,
            b,
            (strides, strides),
            padding,
            dimension_numbers=order,
            precision=geometry.precision,
        )
    convolution = partial(by_xla, role="output", geometry=geometry)
    shape = _abstract(jax.typeof(a), jax.typeof(b), role=role, geometry=geometry)
    if role == "image":
        transposed = jax.linear_transpose(lambda x: convolution(x, a), shape)
    else:
        transposed = jax.linear_transpose(lambda k: convolution(a, k), shape)
    return transposed(b)[0]


def by_products(a: Array, b: Array, *, role: str, geometry: Geometry) -> Array:
    """Returns the same as `by_xla`, by matrix products."""
    image, size, strides, _ = geometry
    if _prefers_winograd(a, b, role, geometry):
        return _WINOGRAD[role](a, b)
    if role == "output":
        return patches.convolve(a, b, strides=strides)
    if role == "kernel":
        return patches.kernel_gradient(a, b, size=size, strides=strides)
    return patches.image_gradient(a, b, image=image, strides=strides)


def _prefers_winograd(a: Array, b: Array, role: str, geometry: Geometry) -> bool:
    """Returns whether Winograd's filtering is possible, and faster than patches."""
    if geometry[1:3] != (3, 1) or a.dtype.itemsize < 4:
        return False  # Winograd's sums would lose most digits of bfloat16
    images = b if role == "image" else a
    tiles = images.size // images.shape[-1] // 4
    kernel = {"image": a, "output": b}.get(role)
    channels = (a.shape[3], b.shape[3]) if kernel is None else kernel.shape[2:]
    return tiles >= _MIN_TILES and min(channels) >= _MIN_CHANNELS


_operation.def_impl(jax.jit(_operation.bind, static_argnames=("role", "geometry")))
_operation.def_abstract_eval(_abstract)
ad.defbilinear(_operation, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[_operation] = _batch
mlir.register_lowering(_operation, mlir.lower_fun(by_xla, multiple_results=False))
mlir.register_lowering(
    _operation, mlir.lower_fun(by_products, multiple_results=False), platform="cpu"
)
