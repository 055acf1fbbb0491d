"""Checks of the arguments of functions, and promotion to the dtype they compute in.

Each error names the argument, the value found and what was expected. A number may have
any Python or NumPy type: only its value counts. Of a traced array only the shape and
the dtype are checked, of a traced number only the shape.
"""

import contextlib
import difflib
import math
import operator
from collections.abc import Iterable, Sequence
from typing import SupportsFloat

import chex
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.types import Array


def promote(**arrays: Array | np.ndarray) -> list[Array]:
    """Returns arrays in one dtype: float64 if any of them is float64, else float32.

    This avoids computation in half precision and integer overflow.
    """
    inputs = {
        name: array if isinstance(array, jax.Array) else np.asarray(array)
        for name, array in arrays.items()
    }
    dtypes = [_real_dtype(name, array) for name, array in inputs.items()]
    dtype = np.float64 if np.dtype(np.float64) in dtypes else np.float32
    # NumPy integers are cast before `jnp.asarray`, which truncates 64 bits to 32.
    return [
        jnp.asarray(
            array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.integer) else array
        ).astype(dtype)
        for array in inputs.values()
    ]


def promote_pair(**pair: Array) -> list[Array]:
    """Returns two matrices `[B, D]` of equal shape, promoted to one dtype."""
    check_matrix(*next(iter(pair.items())), expected="[B, D]")
    check_same_shape(**pair)
    return promote(**pair)


def promote_images(images: Array, *, channels: int | None = None) -> Array:
    """Returns images `[B, H, W, C]` in at least float32; rejects integer images."""
    expected = f"[B, H, W, {channels or 'C'}]"
    check_shape("images", images, (None, None, None, channels), expected=expected)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating, with values in [0, 1]; found {images.dtype}: "
            "divide 8-bit images by 255."
        )
    return promote(images=images)[0]


def check_images(images: Array) -> None:
    """Checks that images are floating, `[B, H, W, C]`, and not empty."""
    check_shape("images", images, (None,) * 4, expected="[B, H, W, C]")
    if 0 in images.shape:
        raise ValueError(f"images must not be empty; found {list(images.shape)}.")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating, as transformations return them; found "
            f"{images.dtype}: `Transformation.plain` normalizes 8-bit images."
        )


def promote_rows(
    images: Array,
    name: str,
    values: Array,
    columns: Sequence[str] = (),
    *,
    channels: int | None = None,
) -> list[Array]:
    """Returns images, and values `[B]` or `[B, len(columns)]`, in one dtype."""
    images = promote_images(images, channels=channels)
    expected = (images.shape[0], *([len(columns)] if columns else []))
    order = f", columns {', '.join(columns)}" if columns else ""
    check_shape(
        name, values, expected, expected=f"{list(expected)}, a row per image{order}"
    )
    return promote(images=images, **{name: values})


def _real_dtype(name: str, array: Array | np.ndarray) -> np.dtype:
    """Returns the dtype that a real array has in JAX; rejects other dtypes."""
    dtype = array.dtype
    if not (jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)):
        raise ValueError(
            f"{name} must hold real numbers, floating or integer; found {dtype}."
        )
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def check_array(name: str, array: object, *, expected: str = "an array") -> None:
    """Checks that a value is an array of JAX or NumPy, traced or not."""
    if not hasattr(array, "shape"):
        found = type(array).__name__
        raise ValueError(f"{name} must be {expected}; found a {found}.")


def check_shape(
    name: str,
    array: Array | np.ndarray,
    shape: tuple[int | None, ...],
    *,
    expected: str,
) -> None:
    """Checks the shape of an array; None in `shape` allows any length."""
    check_array(name, array, expected=f"{expected}, an array")
    chex.assert_shape(
        array,
        shape,
        custom_message=f"{name} must be {expected}; found {list(np.shape(array))}.",
        exception_type=ValueError,
    )


def check_same_shape(**arrays: Array) -> None:
    """Checks that arrays have equal shapes."""
    for name, array in arrays.items():
        check_array(name, array)
    shapes = " and ".join(str(list(np.shape(array))) for array in arrays.values())
    chex.assert_equal_shape(
        list(arrays.values()),
        custom_message=f"{' and '.join(arrays)} must be of one shape; found {shapes}.",
        exception_type=ValueError,
    )


def check_integer(
    name: str, value: object, *, least: int = 1, most: int | None = None
) -> int:
    """Returns a value of any integer type as an int, if it is in [least, most]."""
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
    """Checks that a finite number is in [low, high], or in (low, high] if `above`.

    With `above`, a number that float32 rounds to low is rejected.
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
    value: float | tuple[float, float] | list[float] | np.ndarray,
    *,
    low: float,
    high: float,
) -> tuple[float, float]:
    """Returns two numbers in [low, high]; a single number is returned twice."""
    if np.shape(value) not in ((), (2,)):
        raise ValueError(f"{name} must be one number or two; found {value!r}.")
    if isinstance(value, np.ndarray):
        value = value.tolist()
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    for number in pair:
        check_number(name, number, low=low, high=high)
    return float(pair[0]), float(pair[1])


def check_range(name: str, ends: Sequence[float], *, most: float = math.inf) -> None:
    """Checks a pair (least, greatest): positive, finite, ordered and at most `most`."""
    values = np.asarray(ends)
    is_pair = values.shape == (2,) and values.dtype.kind in "iuf"
    if not (is_pair and 0 < ends[0] <= ends[1] <= most and ends[1] < math.inf):
        raise ValueError(
            f"{name} must be (least, greatest), positive, ordered and at most {most}; "
            f"found {ends}."
        )


def closest(name: str, names: Iterable[str]) -> str:
    """Returns a hint for a misspelt name, "the closest is NAME" if one is close."""
    matches = difflib.get_close_matches(name, [*names], n=1, cutoff=0.4)
    return f"the closest is {matches[0]}" if matches else "no name is close to it"


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Checks that a value is one of the choices."""
    if value not in (names := tuple(choices)):
        hint = closest(str(value), names)
        raise ValueError(f"{name} must be one of {names}; found {value!r}: {hint}.")


def check_matrix(name: str, array: Array | np.ndarray, *, expected: str) -> None:
    """Checks that an array is a matrix."""
    check_shape(name, array, (None, None), expected=expected)


def check_labels(
    name: str,
    labels: Array | np.ndarray,
    *,
    num_examples: int,
    num_classes: int | None = None,
) -> None:
    """Checks class labels: one integer per example, at least one example.

    The labels must be in [0, num_classes) unless num_classes is None. The range of
    traced labels is not checked.
    """
    if np.shape(labels) != (num_examples,) or num_examples == 0:
        raise ValueError(
            f"{name} must have one entry for each of {num_examples} examples, at least "
            f"one; found shape {list(np.shape(labels))}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"{name} must have an integer dtype, not {labels.dtype}.")
    if num_classes is None or isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    if values.min() < 0 or values.max() >= num_classes:
        raise ValueError(
            f"{name} must be from 0 to {num_classes - 1} for {num_classes} classes, "
            f"but are from {values.min()} to {values.max()}."
        )
