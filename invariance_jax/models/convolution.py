"""Convolutions of images, fast on processors too.

XLA's convolutions are the fastest there are on accelerators; on processors they are
replaced, when a program is lowered for its platform, by matrix products: those of
`models.winograd` for 3x3 kernels at stride 1, else those of `models.patches`. A
convolution is linear in the image and in the kernel, so it and its two transposes are
the three derivatives of one trilinear form; each is an operation of its own here, whose
derivatives are the other two. Hence every mode and order of differentiation is as fast
as the operation itself.
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

_CHANNELS, _TILES = 32, 64
"""Fewer than these, and Winograd's sums cost more than the products they save."""

ROLES = ("image", "kernel", "output")
"""What the trilinear form takes; an operation takes two and returns the third."""


class Geometry(NamedTuple):
    """What the shapes of two of the three do not tell of the third."""

    image: tuple[int, ...]  # rows and columns
    size: int  # rows and columns of the kernel, an odd number
    strides: int  # pixels from one output to the next, along both axes


class Convolution(nn.Module):
    """A convolution with a square kernel, without a bias, that pads by half the kernel.

    Its parameter is that of `flax.linen.Conv`.
    """

    features: int
    kernel_size: int
    strides: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None  # None: that of image and kernel, promoted

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the convolution of images, `[B, H, W, C] -> [B, H', W', D]`."""
        size = self.kernel_size
        shape = (size, size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return convolve(x, kernel, strides=self.strides)


def convolve(x: Array, kernel: Array, *, strides: int) -> Array:
    """Returns the convolution (in the sense of networks: the cross-correlation).

    Of x `[B, H, W, C]` with a kernel `[size, size, C, D]` of an odd size and the same
    dtype: `[B, H / strides, W / strides, D]`, rounded up.
    """
    fits = x.ndim == kernel.ndim == 4 and x.shape[-1] == kernel.shape[2]
    if not fits or kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(
            f"x has shape {x.shape} and kernel {kernel.shape}; expected [B, H, W, C] "
            "and [size, size, C, D], of an odd size."
        )
    geometry = Geometry(x.shape[1:3], len(kernel), strides)
    return _bind("output", {"image": x, "kernel": kernel}, geometry)


# The operation that returns `role`, from the other two in the order of ROLES.
_operation = Primitive("convolution_of_images")


def _bind(role: str, given: dict[str, Array], geometry: Geometry) -> Array:
    arguments = [given[name] for name in _others(role)]
    return _operation.bind(*arguments, role=role, geometry=geometry)


def _others(role: str) -> list[str]:
    return [name for name in ROLES if name != role]


def _abstract(one: Any, two: Any, *, role: str, geometry: Geometry) -> Any:
    if role == "output":
        rows, columns = (-(-n // geometry.strides) for n in geometry.image)
        shape = (one.shape[0], rows, columns, two.shape[3])
    elif role == "image":
        shape = (two.shape[0], *geometry.image, one.shape[2])
    else:
        shape = (geometry.size, geometry.size, one.shape[3], two.shape[3])
    return one.update(shape=shape)


def _transpose(
    index: int, cotangent: Array, one: Any, two: Any, *, role: str, geometry: Geometry
) -> Array:
    """Returns the cotangent of the argument at index."""
    names = _others(role)
    known = {names[1 - index]: (one, two)[1 - index], role: cotangent}
    return _bind(names[index], known, geometry)


def _batch(
    arguments: tuple[Array, Array],
    axes: tuple[int | None, int | None],
    *,
    role: str,
    geometry: Geometry,
) -> tuple[Array, int]:
    """Maps over an axis: as more examples where the kernel is the same for all."""
    given = dict(zip(_others(role), arguments, strict=True))
    mapped = {
        name: jnp.moveaxis(given[name], axis, 0)
        for name, axis in zip(given, axes, strict=True)
        if axis is not None
    }
    if role != "kernel" and "kernel" not in mapped:
        ((name, x),) = mapped.items()
        y = _bind(role, given | {name: x.reshape(-1, *x.shape[2:])}, geometry)
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    return jax.lax.map(lambda own: _bind(role, given | own, geometry), mapped), 0


def by_xla(one: Array, two: Array, *, role: str, geometry: Geometry) -> Array:
    """Returns the image, kernel or output of a role from the other two, by XLA."""
    if role == "output":
        strides, side = geometry.strides, geometry.size // 2
        padding, order = [(side, side)] * 2, ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            one, two, (strides, strides), padding, dimension_numbers=order
        )
    convolution = partial(by_xla, role="output", geometry=geometry)
    shape = _abstract(jax.typeof(one), jax.typeof(two), role=role, geometry=geometry)
    if role == "image":
        transposed = jax.linear_transpose(lambda x: convolution(x, one), shape)
    else:
        transposed = jax.linear_transpose(lambda k: convolution(one, k), shape)
    return transposed(two)[0]


def by_products(one: Array, two: Array, *, role: str, geometry: Geometry) -> Array:
    """Returns what `by_xla` does, as products of matrices."""
    image, size, strides = geometry
    filtering = _pays(one, two, role, geometry)
    if role == "output":
        if filtering:
            return winograd.convolve(one, two)
        return patches.convolve(one, two, strides=strides)
    if role == "kernel":
        if filtering:
            return winograd.kernel_gradient(one, two)
        return patches.kernel_gradient(one, two, size=size, strides=strides)
    if filtering:
        return winograd.image_gradient(one, two)
    return patches.image_gradient(one, two, image=image, strides=strides)


def _pays(one: Array, two: Array, role: str, geometry: Geometry) -> bool:
    """Returns whether Winograd's way is possible, and faster."""
    if geometry[1:] != (3, 1) or one.dtype.itemsize < 4:
        return False  # sums of bfloat16 would lose what it has
    images = two if role == "image" else one
    tiles = images.size // images.shape[-1] // 4
    kernel = {"image": one, "output": two}.get(role)
    channels = (one.shape[3], two.shape[3]) if kernel is None else kernel.shape[2:]
    return tiles >= _TILES and min(channels) >= _CHANNELS


_operation.def_impl(jax.jit(_operation.bind, static_argnames=("role", "geometry")))
_operation.def_abstract_eval(_abstract)
ad.defbilinear(_operation, partial(_transpose, 0), partial(_transpose, 1))
batching.primitive_batchers[_operation] = _batch
mlir.register_lowering(_operation, mlir.lower_fun(by_xla, multiple_results=False))
mlir.register_lowering(
    _operation, mlir.lower_fun(by_products, multiple_results=False), platform="cpu"
)
