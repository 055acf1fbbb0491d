"""Checks of what functions are given, and the dtype in which they compute.

Each error names the argument, what was found and what was expected. Numbers are taken
by their value, whatever Python or NumPy type they have; those that are traced are
checked by their shape alone.
"""

import contextlib
import math
import operator
from collections.abc import Sequence
from typing import SupportsFloat

import chex
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.types import Array


def promote(**arrays: Array) -> list[Array]:
    """Returns arrays in one dtype: float64 where one of them is, else float32.

    So nothing is computed in half precision, and integers do not wrap.
    """
    found = {
        name: array if isinstance(array, jax.Array) else np.asarray(array)
        for name, array in arrays.items()
    }
    dtypes = [_real_dtype(name, array) for name, array in found.items()]
    dtype = np.float64 if np.dtype(np.float64) in dtypes else np.float32
    # Integers of the host go first: JAX would cut those of 64 bits.
    return [
        jnp.asarray(
            array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.integer) else array
        ).astype(dtype)
        for array in found.values()
    ]


def promote_pair(**pair: Array) -> list[Array]:
    """Returns two matrices `[B, D]` of one shape in one dtype."""
    check_matrix(*next(iter(pair.items())), expected="[B, D]")
    check_same_shape(**pair)
    return promote(**pair)


def promote_images(images: Array, *, channels: int | None = None) -> Array:
    """Returns images `[B, H, W, C]` in at least float32; integers are refused."""
    expected = f"[B, H, W, {channels or 'C'}]"
    check_shape("images", images, (None, None, None, channels), expected=expected)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating, with values in [0, 1]; found {images.dtype}: "
            "divide 8-bit images by 255."
        )
    return promote(images=images)[0]


def promote_rows(
    images: Array,
    name: str,
    values: Array,
    columns: Sequence[str] = (),
    *,
    channels: int | None = None,
) -> list[Array]:
    """Returns images and values, `[B]` or with columns `[B, columns]`, in one dtype."""
    images = promote_images(images, channels=channels)
    expected = (images.shape[0], *([len(columns)] if columns else []))
    order = f", columns {', '.join(columns)}" if columns else ""
    check_shape(
        name, values, expected, expected=f"{list(expected)}, a row per image{order}"
    )
    return promote(images=images, **{name: values})


def _real_dtype(name: str, array: Array | np.ndarray) -> np.dtype:
    """Returns the dtype that JAX gives to an array of real numbers."""
    dtype = array.dtype
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)):
        raise ValueError(
            f"{name} must hold real numbers, floating or integer; found {dtype}."
        )
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def check_shape(
    name: str, array: Array, shape: tuple[int | None, ...], *, expected: str
) -> None:
    """Checks the shape of an array; None in the shape leaves a length open."""
    chex.assert_shape(
        array,
        shape,
        custom_message=f"{name} must be {expected}; found {list(np.shape(array))}.",
        exception_type=ValueError,
    )


def check_same_shape(**arrays: Array) -> None:
    """Checks that arrays have one shape."""
    shapes = " and ".join(str(list(np.shape(array))) for array in arrays.values())
    chex.assert_equal_shape(
        list(arrays.values()),
        custom_message=f"{' and '.join(arrays)} must be of one shape; found {shapes}.",
        exception_type=ValueError,
    )


def check_integer(
    name: str, value: object, *, least: int = 1, most: int | None = None
) -> int:
    """Returns a whole number as an int, whatever integer type it has."""
    number = None
    with contextlib.suppress(TypeError):
        if not isinstance(value, bool | np.bool_):
            number = operator.index(value)  # type: ignore[arg-type]
    if number is None or number < least or (most is not None and number > most):
        ends = f"of {least} or more" if most is None else f"from {least} to {most}"
        found = repr(value) if number is None else number
        raise ValueError(f"{name} must be an integer {ends}; found {found}.")
    return number


def check_number(
    name: str,
    value: SupportsFloat | Array,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    unit: str = "",
) -> None:
    """Checks that a finite number is in [low, high], or with above in (low, high].

    A number that float32 rounds to low is not above it.
    """
    shape = getattr(value, "shape", ())
    if shape != ():
        raise ValueError(
            f"{name} must be a number; found an array of shape {list(shape)}."
        )
    if isinstance(value, jax.core.Tracer):
        return
    try:
        if np.asarray(value).dtype in (bool, object) or isinstance(value, str):
            raise TypeError
        number = float(value)
    except TypeError:
        raise ValueError(f"{name} must be a number; found {value!r}.") from None
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number))
    is_inside = low <= number <= high and math.isfinite(rounded)
    if not is_inside or (above and not rounded > low):
        if high < math.inf:
            expected = f"in {'(' if above else '['}{low:.6g}, {high:.6g}]"
        else:
            expected = f"above {low:g}" if above else f"{low:g} or more"
        raise ValueError(
            f"{name} must be {expected}{unit and ', ' + unit}; found {value}."
        )


def check_pair(
    name: str,
    value: float | tuple[float, float] | list[float],
    *,
    low: float,
    high: float,
) -> tuple[float, float]:
    """Returns two numbers in [low, high], twice the same where one is given."""
    if np.shape(value) not in ((), (2,)):
        raise ValueError(f"{name} must be one number or two; found {value!r}.")
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    for number in pair:
        check_number(name, number, low=low, high=high)
    return float(pair[0]), float(pair[1])


def check_range(name: str, ends: Sequence[float], *, most: float = math.inf) -> None:
    """Checks the ends of a range of positive numbers."""
    if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= most or ends[1] == math.inf:
        raise ValueError(
            f"{name} must be (least, greatest), positive, ordered and at most {most}; "
            f"found {tuple(ends)}."
        )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Checks that a name is one of those there are."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}; found {value!r}.")


def check_matrix(name: str, array: Array, *, expected: str) -> None:
    """Checks that an array is a matrix."""
    check_shape(name, array, (None, None), expected=expected)


def check_labels(
    name: str, labels: Array, *, num_examples: int, num_classes: int | None = None
) -> None:
    """Checks class labels: one integer in range for each of one or more examples.

    Without the number of classes the range is open; that of traced labels is not
    checked.
    """
    if np.shape(labels) != (num_examples,) or num_examples == 0:
        raise ValueError(
            f"{name} must have one entry for each example, of which there are "
            f"{num_examples}, at least one; found shape {list(np.shape(labels))}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} must have an integer dtype, not {labels.dtype}.")
    if num_classes is None or isinstance(labels, jax.core.Tracer):
        return
    found = np.asarray(labels)
    if found.min() < 0 or found.max() >= num_classes:
        raise ValueError(
            f"{name} must be from 0 to {num_classes - 1} for {num_classes} classes, "
            f"but are from {found.min()} to {found.max()}."
        )
