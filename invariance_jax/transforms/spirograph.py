"""The differentiable Spirograph renderer, its parameters and its transformation.

Foster, Pukdee, Rainforth (ICLR 2021), section 5 and the released generator. Conventions
of the whole file: parameter vectors have ten columns in the order of `PARAMETERS`;
image rows follow the x coordinate of the curve, image columns follow y.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from invariance_jax.arguments import (
    check_array,
    check_choice,
    check_integer,
    check_number,
    check_shape,
    promote,
)
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.transforms.color import COLORIZE_NAMES
from invariance_jax.types import Array, Key

PARAMETERS = ("m", "b", "h", "sigma", *COLORIZE_NAMES)
"""Names of the ten parameters: three of the curve, line width, then colours."""

BOUNDS = np.array(
    [[2.0, 5.0], [0.1, 1.1], [0.5, 2.5], [0.25, 1.0]] + 3 * [[0.4, 1.0], [0.0, 0.6]]
)
"""`[10, 2]`, lower and upper end of the uniform distribution of each parameter."""

NORMALIZATIONS = ("row", "image")
"""The region whose maximum intensity becomes 1."""

_INTENSITY_EPSILON = 1e-8


def render(
    parameters: Array,
    *,
    image_size: int = 32,
    num_points: int = 40,
    extent: float = 6.0,
    normalization: str = "row",
) -> Array:
    """Returns the images of the Spirograph curves with the given parameters.

    A hypotrochoid with `a - b = m - h` is sampled at equally spaced angles on [0, 2
    pi], both ends included. The intensity of a pixel is the mean over the points of
    `exp(-squared distance / sigma)`, divided by its maximum, and mixes the foreground
    with the background colour. The Gaussian is a product of a function of x and one of
    y, so the intensity is a matrix product per image.

    Args:
      parameters: `[..., 10]`, columns in the order of `PARAMETERS`; b and sigma above
        0; colours in [0, 1], lengths in the unit of extent.
      image_size: S, pixels per side.
      num_points: points on the curve.
      extent: half the side of the square that the image shows.
      normalization: "row" divides by the maximum of the pixel's own row, as the
        released code does; "image" by the maximum of the image, a different and harder
        data set.

    Returns:
      `[..., S, S, 3]`, at least float32, values in the range of the colours.

    Raises:
      ValueError: if parameters are not real numbers or their last dimension is not 10,
        a size is not positive, or the normalization is unknown.

    Gradients: with respect to all parameters, of any order; where pixels tie for the
    maximum, its derivative is the mean of theirs.
    """
    check_array("parameters", parameters)
    if parameters.ndim < 1 or parameters.shape[-1] != len(PARAMETERS):
        raise ValueError(
            f"parameters must be [..., {len(PARAMETERS)}], columns in the order of "
            f"PARAMETERS; found shape {parameters.shape}."
        )
    (parameters,) = promote(parameters=parameters)
    image_size, num_points = _check_settings(
        image_size, num_points, extent, normalization
    )
    m, b, h, sigma, *colors = jnp.split(parameters, len(PARAMETERS), axis=-1)
    curve_x, curve_y = _curve(m, b, h, num_points)
    grid = jnp.linspace(-extent, extent, image_size, dtype=parameters.dtype)
    along_x = _gaussian(grid, curve_x, sigma)
    along_y = _gaussian(grid, curve_y, sigma)
    # "highest": accelerators otherwise round float32 factors to 8 or 11 bits.
    intensity = jnp.einsum("...sp,...tp->...st", along_x, along_y, precision="highest")
    intensity = intensity / num_points
    region = -1 if normalization == "row" else (-2, -1)
    peak = jnp.max(intensity, axis=region, keepdims=True)
    intensity = (intensity / (peak + _INTENSITY_EPSILON))[..., None]
    fore = jnp.concatenate(colors[0::2], axis=-1)[..., None, None, :]
    back = jnp.concatenate(colors[1::2], axis=-1)[..., None, None, :]
    return intensity * fore + (1 - intensity) * back


def _curve(m: Array, b: Array, h: Array, num_points: int) -> tuple[Array, Array]:
    """Returns x and y of the curve, each `[..., points]`: the sum of two rotating arms.

    The arms have lengths m - h and h and rotate at speeds 1 and -(m - h) / b. The sum
    is an einsum because XLA on CPU does not fuse across it: otherwise a derivative of
    the image computes these sines and cosines again for every pixel.
    """
    angle = jnp.linspace(0, 2 * math.pi, num_points, dtype=m.dtype)
    speed = jnp.concatenate([jnp.ones_like(m), (h - m) / b], axis=-1)[..., None]
    turn = speed * angle.reshape((1,) * m.ndim + (num_points,))
    length = jnp.concatenate([m - h, h], axis=-1)
    x = jnp.einsum("...a,...ap->...p", length, jnp.cos(turn), precision="highest")
    y = jnp.einsum("...a,...ap->...p", length, jnp.sin(turn), precision="highest")
    return x, y


def _gaussian(grid: Array, position: Array, sigma: Array) -> Array:
    """Returns exp(-(grid - position)^2 / sigma), `[..., S, points]`."""
    grid = grid.reshape((1,) * (position.ndim - 1) + (-1, 1))
    return jnp.exp(-jnp.square(grid - position[..., None, :]) / sigma[..., None])


def make_transformation(
    *,
    targets: Sequence[str] = ("m", "b", "sigma", "rfore"),
    bounds: ArrayLike = BOUNDS,
    image_size: int = 32,
    num_points: int = 40,
    extent: float = 6.0,
    normalization: str = "row",
) -> Transformation:
    """Returns the transformation whose alpha is every parameter that is not a target.

    Args:
      targets: names of the parameters of an example: x is `[B, T]`, columns in this
        order. The other parameters are the nuisance, alpha, in the order of PARAMETERS.
      bounds: `[10, 2]`, ends of the uniform distribution of each parameter.
      image_size: see `render`.
      num_points: see `render`.
      extent: see `render`.
      normalization: see `render`.

    Returns:
      A `Transformation` with P = 10 - T. Its `plain` is None, since every image needs
      its nuisance.

    Raises:
      ValueError: if a target is unknown or named twice; if none or all parameters are
        targets; if bounds have another shape, are not finite or not ordered, let b or
        sigma reach 0, or let a colour leave [0, 1].
    """
    targets = tuple(targets)
    bounds = _check_bounds(bounds)
    _check_targets(targets)
    _check_settings(image_size, num_points, extent, normalization)
    names = tuple(name for name in PARAMETERS if name not in targets)
    nuisance_bounds = bounds[[PARAMETERS.index(name) for name in names]]
    columns = [(targets + names).index(name) for name in PARAMETERS]

    def sample(key: Key, batch_size: int) -> View:
        low, high = jnp.asarray(nuisance_bounds.T, jnp.float32)[:, None]
        shape = (batch_size, len(names))
        return View(low + (high - low) * jax.random.uniform(key, shape))

    def apply(x: Array, view: View) -> Array:
        x, alpha = promote(x=x, alpha=view.alpha)
        check_shape("x", x, (None, len(targets)), expected=f"[B, {len(targets)}]")
        shape = len(x), len(names)
        check_shape("alpha", alpha, shape, expected=f"{list(shape)}")
        return render(
            jnp.concatenate([x, alpha], axis=-1)[:, columns],
            image_size=image_size,
            num_points=num_points,
            extent=extent,
            normalization=normalization,
        )

    return Transformation(names, nuisance_bounds, sample, apply)


def _check_targets(targets: tuple[str, ...]) -> None:
    for name in targets:
        if name not in PARAMETERS:
            raise ValueError(
                f"targets names the unknown parameter {name!r}; "
                f"expected some of {', '.join(PARAMETERS)}."
            )
    if len(set(targets)) < len(targets):
        raise ValueError(f"targets must name each parameter once; found {targets}.")
    if not 0 < len(targets) < len(PARAMETERS):
        raise ValueError(
            f"targets must name 1 to {len(PARAMETERS) - 1} parameters, so that some "
            f"are targets and some are nuisance; found {len(targets)}."
        )


def _check_bounds(bounds: ArrayLike) -> np.ndarray:
    bounds = np.asarray(bounds, np.float64)
    if bounds.shape != BOUNDS.shape:
        raise ValueError(
            f"bounds must be [{len(PARAMETERS)}, 2]; found shape {bounds.shape}."
        )
    for name, (low, high) in zip(PARAMETERS, bounds, strict=True):
        found = f"found ({low}, {high})."
        if not (np.isfinite([low, high]).all() and low <= high):
            raise ValueError(f"bounds of {name} must be finite and ordered; {found}")
        if name in ("b", "sigma") and low <= 0:
            raise ValueError(f"bounds of {name} must stay above 0; {found}")
        if name in COLORIZE_NAMES and not 0 <= low <= high <= 1:
            raise ValueError(f"bounds of {name}, a colour, must be in [0, 1]; {found}")
    return bounds


def _check_settings(
    image_size: int, num_points: int, extent: float, normalization: str
) -> tuple[int, int]:
    check_number("extent", extent, low=0, above=True)
    check_choice("normalization", normalization, NORMALIZATIONS)
    image_size = check_integer("image_size", image_size)
    return image_size, check_integer("num_points", num_points)
