"""Convolutions of images, fast on processors too.

XLA's convolutions are the fastest there are on accelerators; on processors those of 3x3
at stride 1 are replaced, when a program is lowered for its platform, by the products of
`models.winograd`. A convolution is linear in the image and in the kernel, so it and its
two transposes are the three derivatives of one trilinear form; each is an operation of
its own here, whose derivatives are the other two. Hence every mode and order of
differentiation is as fast as the operation itself.
"""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.typing import DTypeLike

from invariance_jax.models import winograd
from invariance_jax.types import Array

_CHANNELS, _TILES = 32, 64
"""Fewer than these, and the sums cost more than the products save."""

ROLES = ("image", "kernel", "output")
"""What the trilinear form takes; an operation takes two and returns the third."""


class Convolution(nn.Module):
    """A convolution of images with square kernels and without a bias.

    The parameter `kernel [size, size, C, features]` is that of `flax.linen.Conv`.

    Attributes:
      features: F, channels of the output.
      kernel_size: rows and columns of the kernel.
      strides: pixels from one output to the next, along both axes.
      padding: pixels of zeros on each of the four sides.
      kernel_init: initializer of the kernel.
      dtype: of the computation; None is that of image and kernel, promoted.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int = 0
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns the convolution of the images.

        Args:
          x: float `[B, H, W, C]`.

        Returns:
          `[B, H', W', F]`, with H' = (H + 2 padding - rows) // strides + 1.
        """
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x, kernel = promote_dtype(x, kernel, dtype=self.dtype)
        return convolve(x, kernel, strides=self.strides, padding=self.padding)


def convolve(x: Array, kernel: Array, *, strides: int, padding: int) -> Array:
    """Returns the convolution (in the sense of networks: the cross-correlation).

    Args:
      x: float `[B, H, W, C]`.
      kernel: `[rows, columns, C, F]`, of the same dtype.
      strides: pixels from one output to the next, along both axes.
      padding: pixels of zeros on each of the four sides.

    Returns:
      `[B, H', W', F]`, with H' = (H + 2 padding - rows) // strides + 1.

    Raises:
      ValueError: if the ranks or the channels of x and kernel do not fit.

    Gradients: with respect to both, of any order and mode.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(
            f"x has shape {x.shape} and kernel {kernel.shape}; expected [B, H, W, C] "
            "and [rows, columns, C, F]."
        )
    if kernel.shape[:2] == (3, 3) and (strides, padding) == (1, 1) and x.size:
        return _bind("output", {"image": x, "kernel": kernel})
    return _by_xla(x, kernel, strides, padding)


def _by_xla(x: Array, kernel: Array, strides: int = 1, padding: int = 1) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


# The operation that returns `role`, from the other two in the order of ROLES.
_operation = Primitive("convolution_3x3")


def _bind(role: str, given: dict[str, Array]) -> Array:
    arguments = [given[name] for name in _others(role)]
    result: Array = _operation.bind(*arguments, role=role)
    return result


def _others(role: str) -> list[str]:
    return [name for name in ROLES if name != role]


def _abstract(one: Any, two: Any, *, role: str) -> Any:
    shapes = dict(zip(_others(role), (one.shape, two.shape), strict=True))
    shape = {
        "output": lambda: (*shapes["image"][:3], shapes["kernel"][3]),
        "image": lambda: (*shapes["output"][:3], shapes["kernel"][2]),
        "kernel": lambda: (3, 3, shapes["image"][3], shapes["output"][3]),
    }[role]()
    return one.update(shape=shape)


def _transpose(index: int, cotangent: Array, one: Any, two: Any, *, role: str) -> Array:
    """Returns the cotangent of the argument at index."""
    names = _others(role)
    known = {names[1 - index]: (one, two)[1 - index], role: cotangent}
    return _bind(names[index], known)


_operation.def_abstract_eval(_abstract)
ad.defbilinear(_operation, partial(_transpose, 0), partial(_transpose, 1))


def _batch(
    arguments: tuple[Array, Array], axes: tuple[int | None, int | None], *, role: str
) -> tuple[Array, int]:
    """Maps over an axis: as more examples where the kernel is the same for all."""
    given = dict(zip(_others(role), arguments, strict=True))
    mapped = {
        name: jnp.moveaxis(given[name], axis, 0)
        for name, axis in zip(_others(role), axes, strict=True)
        if axis is not None
    }
    if role != "kernel" and "kernel" not in mapped:
        ((name, x),) = mapped.items()
        y = _bind(role, {**given, name: x.reshape(-1, *x.shape[2:])})
        return y.reshape(*x.shape[:2], *y.shape[1:]), 0
    return jax.lax.map(lambda own: _bind(role, {**given, **own}), mapped), 0


batching.primitive_batchers[_operation] = _batch


def _on_accelerators(one: Array, two: Array, *, role: str) -> Array:
    if role == "output":
        return _by_xla(one, two)
    if role == "image":
        shape = (*two.shape[:3], one.shape[2])
        transposed = jax.linear_transpose(
            lambda x: _by_xla(x, one), jax.ShapeDtypeStruct(shape, two.dtype)
        )
    else:
        shape = (3, 3, one.shape[3], two.shape[3])
        transposed = jax.linear_transpose(
            lambda kernel: _by_xla(one, kernel), jax.ShapeDtypeStruct(shape, one.dtype)
        )
    (result,) = transposed(two)
    return result


def _on_processors(one: Array, two: Array, *, role: str) -> Array:
    given = dict(zip(_others(role), (one, two), strict=True))
    if not _pays(given):
        return _on_accelerators(one, two, role=role)
    if role == "kernel":
        return winograd.kernel_gradient(one, two)
    if role == "output":
        return winograd.convolve(one, two)
    turned = given["kernel"][::-1, ::-1].swapaxes(2, 3)
    return winograd.convolve(given["output"], turned)


def _pays(given: dict[str, Array]) -> bool:
    """Returns whether the products saved are worth the sums."""
    pixels = given.get("image", given.get("output"))
    assert pixels is not None
    tiles = pixels.size // pixels.shape[-1] // 4
    channels = min(
        size
        for name, x in given.items()
        for size in x.shape[2 if name == "kernel" else 3 :]
    )
    wide = pixels.dtype.itemsize >= 4  # sums of bfloat16 would lose what it has
    return wide and channels >= _CHANNELS and tiles >= _TILES


mlir.register_lowering(
    _operation, mlir.lower_fun(_on_accelerators, multiple_results=False)
)
mlir.register_lowering(
    _operation, mlir.lower_fun(_on_processors, multiple_results=False), platform="cpu"
)


@cache
def _compiled(role: str) -> Any:
    return jax.jit(partial(_operation.bind, role=role))


def _eager(one: Array, two: Array, *, role: str) -> Array:
    result: Array = _compiled(role)(one, two)
    return result


_operation.def_impl(_eager)
