"""The protocol of a transformation `t(x; alpha, held)`, and a check for your own.

Section 2 of Foster, Pukdee, Rainforth (ICLR 2021): a view is `v = t(x; alpha)` with
`alpha ~ p(alpha)`. Random choices without a derivative (flips, gates) are in `held`.
Drawing and computing are separate functions: `sample` draws, `apply` computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from invariance_jax.arguments import check_integer
from invariance_jax.types import Array, Key, PyTree


class View(NamedTuple):
    """The parameters of one view of each example of a batch.

    Attributes:
      alpha: float `[B, P]`, columns in the order of `Transformation.names`.
      held: pytree of arrays with leading axis B, of any dtype: random choices that are
        constant for the derivative. `()` if there are none.
    """

    alpha: Array
    held: PyTree = ()


class Squashed(NamedTuple):
    """Images of many sizes, each resized to the same square, and their original sizes.

    Attributes:
      pixels: uint8 `[B, S, S, C]`, each the whole image, its aspect ratio changed.
      sizes: int32 `[B, 2]`, original height and width, pixels.
    """

    pixels: PyTree
    sizes: PyTree


@dataclass(frozen=True)
class Transformation:
    """A random transformation of examples to views, differentiable in alpha.

    Attributes:
      names: the P names of the columns of alpha.
      bounds: float `[P, 2]`, the lower and upper end of each parameter's distribution.
      sample: `(key, batch_size) -> View`, draws the parameters of one view of each of
        batch_size examples; evaluation maps it over keys.
      apply: `(x, view) -> images`, float32 `[B, H, W, 3]`, as the encoder gets them:
        normalized by mean and standard deviation, or in [0, 1] (Spirograph); pure.
      plain: `x -> images`, the untransformed images, as the encoder gets them. None if
        every image needs parameters (Spirograph).
      sample_for: `(key, batch_size, *, second, sizes) -> View`, replaces `sample` if
        its distribution depends on `second` (whether this is the second view in the
        loss) or on `sizes` (heights and widths of the images, int32 `[B, 2]` or None).
        None: it depends on neither.
    """

    names: tuple[str, ...]
    bounds: np.ndarray
    sample: Callable[[Key, int], View]
    apply: Callable[[PyTree, View], Array]
    plain: Callable[[PyTree], Array] | None = None
    sample_for: Callable[..., View] | None = None

    def draw(self, key: Key, x: PyTree) -> View:
        """Returns the parameters of one view of each example in x."""
        return self.sampler(sizes_of(x), len(jax.tree.leaves(x)[0]))(key)

    def sampler(
        self, sizes: Array | None, batch_size: int, *, second: bool = False
    ) -> Callable[[Key], View]:
        """Returns `key -> View` for images of these sizes, as first or second view."""
        if self.sample_for is None:
            return lambda key: self.sample(key, batch_size)
        sample_for = self.sample_for
        return lambda key: sample_for(key, batch_size, second=second, sizes=sizes)


def sizes_of(x: PyTree) -> Array | None:
    """Returns the original sizes of the `Squashed` images in a pytree of examples.

    Args:
      x: examples, a pytree.

    Returns:
      int32 `[B, 2]`, height and width in pixels; None if x holds no `Squashed` images.
    """
    leaves = jax.tree.leaves(x, is_leaf=lambda node: isinstance(node, Squashed))
    return next((leaf.sizes for leaf in leaves if isinstance(leaf, Squashed)), None)


_MIN_VIEWS, _MAX_VIEWS = 4, 16
"""Views to differentiate: the minimum, then more while gates keep derivatives at 0."""

_STEP = 5e-4
"""Step of the central differences, as a fraction of each parameter's range."""

_TOLERANCE, _MIN_CHANGE = 0.1, 1e-4
"""Largest relative error of a derivative; least norm of a change above rounding."""

_MAX_SINGLE = 8
"""Largest number of examples that are also transformed alone."""


def check_transformation(
    transformation: Transformation, x: PyTree, *, seed: int = 0
) -> None:
    """Checks that your own transformation keeps the promises of the protocol.

    Draws views, applies them, and takes the derivatives of training, all compiled:
    forward mode along alpha, and reverse over forward mode. Compares the derivative
    along each parameter with finite differences of the images.

    Args:
      transformation: the transformation to check.
      x: a few real examples, a pytree with leading axis B of at least 2. Black images
        do not serve: colour parameters do not change them.
      seed: seed of the drawn views.

    Raises:
      ValueError: names the first broken promise: names and bounds; leading axes and
        dtypes of a view; draws outside the bounds; a function that cannot be compiled
        or differentiated; shape, dtype and finiteness of images and derivatives; a
        derivative that disagrees with finite differences or is 0 everywhere; use of
        a column that alpha does not have; examples that are not independent.
    """
    seed = check_integer("seed", seed, least=0, most=2**32 - 1)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x)]
    _require(
        bool(shapes)
        and all(shape and shape[0] == shapes[0][0] >= 2 for shape in shapes),
        f"leaves of x must share a leading axis of at least 2; found {shapes}",
    )
    batch_size = shapes[0][0]
    _check_names(transformation)
    keys = jax.random.split(jax.random.key(seed), _MAX_VIEWS)
    samplers = {"sample": lambda key: transformation.sample(key, batch_size)}
    for second in (True, False) if transformation.sample_for else ():
        sampler = transformation.sampler(sizes_of(x), batch_size, second=second)
        samplers[f"sample_for with second={second}"] = sampler
    for name, sample in samplers.items():
        views = _check_draws(transformation, name, sample, keys, batch_size)
    first = views[0]
    shape = _check_images("apply", transformation.apply, x, first)
    _check_columns(transformation, x, first)
    _check_derivatives(transformation, x, first, views[1].alpha - first.alpha)
    _check_slopes(transformation, x, views)
    if transformation.plain is not None:
        found = _check_images("plain", transformation.plain, x)
        _require(
            found == shape,
            f"plain must return images of the shape of apply's, {shape}; found {found}",
        )


def _attempt(promise: str, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns function(*args); an error is reported as a broken promise."""
    try:
        return function(*args)
    except Exception as error:  # user code may raise anything
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        raise ValueError(f"transformation check: {promise}: {reason}") from error


def _check_names(transformation: Transformation) -> None:
    names, bounds = transformation.names, transformation.bounds
    _require(len(names) > 0, "names must hold at least one name; found none")
    _require(len(set(names)) == len(names), f"names must differ; found {names}")
    shape = getattr(bounds, "shape", type(bounds).__name__)
    _require(
        shape == (len(names), 2),
        f"bounds must be an array [{len(names)}, 2], a row per name; found {shape}",
    )
    _require(
        bool(np.isfinite(bounds).all() and (bounds[:, 0] <= bounds[:, 1]).all()),
        f"bounds must be finite and ordered; found {bounds.tolist()}",
    )


def _check_draws(
    transformation: Transformation,
    name: str,
    sample: Callable[[Key], View],
    keys: Key,
    batch_size: int,
) -> list[View]:
    """Returns the views that a sampler draws from keys, after checking them."""
    sample = jax.jit(sample)
    first = _attempt(f"{name} must compile", sample, keys[0])
    _check_view(transformation, name, first, batch_size)
    views = [first, *map(sample, keys[1:])]
    if name.endswith("second=True"):
        return views  # the second view may be the same for all, such as the plain image
    _require(
        not np.array_equal(first.alpha, views[1].alpha),
        f"{name} must draw different alpha for different keys",
    )
    _require(
        any(np.ptp(view.alpha, axis=0).any() for view in views),
        f"{name} must draw different alpha for different examples",
    )
    return views


def _check_view(
    transformation: Transformation, name: str, view: View, batch_size: int
) -> None:
    _require(
        isinstance(view, View),
        f"{name} must return a View; found {type(view).__name__}",
    )
    num_names, bounds = len(transformation.names), np.asarray(transformation.bounds)
    shape = getattr(view.alpha, "shape", type(view.alpha).__name__)
    _require(
        shape == (batch_size, num_names),
        f"{name} must return alpha [{batch_size}, {num_names}]; found {shape}",
    )
    _require(
        view.alpha.dtype in (jnp.float32, jnp.float64),
        f"alpha must be float32 or float64; found {view.alpha.dtype}",
    )
    slack = 1e-5 * (1 + np.abs(bounds).max())
    low, high = bounds.T[:, None]
    inside = (view.alpha >= low - slack) & (view.alpha <= high + slack)
    _require(bool(inside.all()), f"{name} must draw alpha within bounds")
    for leaf in jax.tree.leaves(view.held):
        _require(
            leaf.ndim > 0 and leaf.shape[0] == batch_size,
            f"every leaf of held must have leading axis B; found {leaf.shape}",
        )


def _check_columns(transformation: Transformation, x: PyTree, view: View) -> None:
    """Checks that apply uses no column beyond the last: JAX would use the last."""
    checked = checkify.checkify(transformation.apply, errors=checkify.index_checks)
    try:
        error, _ = jax.jit(checked)(x, view)
    except Exception:
        return  # checkify does not support some operation of apply
    message = error.get() or ""
    shape = view.alpha.shape
    shapes = shape, shape[1:], shape[::-1]
    _require(
        not any(f"array of shape {shape}:" in message for shape in shapes),
        f"apply must use only columns of alpha in names: {message.strip()}",
    )


def _images_of_alpha(
    transformation: Transformation, x: PyTree, view: View
) -> Callable[[Array], Array]:
    """Returns `alpha -> images`, with held fixed."""
    return lambda alpha: transformation.apply(x, View(alpha, view.held))


def _check_derivatives(
    transformation: Transformation, x: PyTree, view: View, direction: Array
) -> None:
    """Checks the derivative along a direction, and the gradient of its square."""
    apply = _images_of_alpha(transformation, x, view)

    def tangent(alpha: Array) -> Array:
        return jax.jvp(apply, (alpha,), (direction,))[1]

    def squared_norm(alpha: Array) -> Array:
        return jnp.sum(jnp.square(tangent(alpha)))

    for promise, derivative in [
        ("apply must allow forward mode along alpha", jax.jit(tangent)),
        ("apply must allow reverse over forward mode", jax.jit(jax.grad(squared_norm))),
    ]:
        values = _attempt(promise, derivative, view.alpha)
        _check_finite(f"the derivative ({promise})", values)


def _check_slopes(transformation: Transformation, x: PyTree, views: list[View]) -> None:
    """Compares the derivative along each column with finite differences."""
    low, high = (jnp.asarray(end, jnp.float32) for end in transformation.bounds.T)

    @jax.jit
    def squared_norms(view: View) -> Array:
        """Returns `[P, 4, B]`: of derivative, difference, their error, full change."""
        apply = _images_of_alpha(transformation, x, view)

        def along(step: Array) -> Array:
            step = step.astype(view.alpha.dtype)
            direction = jnp.broadcast_to(step[None], view.alpha.shape)
            slope = jax.jvp(apply, (view.alpha,), (direction,))[1]
            change = (apply(view.alpha + direction) - apply(view.alpha - direction)) / 2
            at_low, at_high = (
                apply(jnp.where(direction != 0, end[None], view.alpha))
                for end in (low, high)
            )
            changes = slope, change, slope - change, at_high - at_low
            return jnp.stack([jnp.sum(values**2, axis=(1, 2, 3)) for values in changes])

        return jax.lax.map(along, jnp.diag(_STEP * (high - low)))

    norms = np.zeros((len(transformation.names), 4, 0))
    for count, view in enumerate(views):
        if count >= _MIN_VIEWS and norms[:, 0].any():
            break
        norms = np.concatenate([norms, np.sqrt(squared_norms(view))], axis=2)
    _require(
        bool(norms[:, 0].any()),
        "apply must depend on alpha; its derivative is 0 in all examples of "
        f"{norms.shape[2] // len(views[0].alpha)} views",
    )
    for name, columns in zip(transformation.names, norms, strict=True):
        slope, change, error, full_change = columns
        _require(
            slope.any() or full_change.max() < _MIN_CHANGE,
            f"the derivative along {name!r} is 0 everywhere, though the images change",
        )
        size = np.maximum(slope, change)
        visible = size > _MIN_CHANGE
        # The median, as single images may be at a kink or a steep slope.
        ratio = np.median(error[visible] / size[visible]) if visible.any() else 0
        _require(
            ratio < _TOLERANCE,
            f"the derivative along {name!r} must agree with finite differences of the "
            f"images; found a relative error of {100 * ratio:.0f} %",
        )


def _check_images(
    name: str, function: Callable[..., Array], *examples: PyTree
) -> tuple[int, ...]:
    """Returns the shape of a batch's images; checks them, and single examples."""
    function = jax.jit(function)
    images = _attempt(f"{name} must compile", function, *examples)
    batch_size, found = len(jax.tree.leaves(examples)[0]), type(images).__name__
    _require(
        isinstance(images, jax.Array), f"{name} must return an array; found a {found}"
    )
    _require(
        images.ndim == 4 and images.shape[0] == batch_size and images.shape[3] == 3,
        f"{name} must return [{batch_size}, H, W, 3]; found {images.shape}",
    )
    _require(
        images.dtype in (jnp.float32, jnp.float64),
        f"{name} must return images in float32; found {images.dtype}",
    )
    _check_finite(f"the images of {name}", images)
    indices = np.unique(np.linspace(0, batch_size - 1, _MAX_SINGLE).astype(int))
    for index in indices:
        single = jax.tree.map(lambda leaf, i=index: leaf[i : i + 1], examples)
        _require(
            np.allclose(function(*single)[0], images[index], atol=1e-4),
            f"{name} must treat examples independently; alone, example {index} differs",
        )
    return images.shape


def _check_finite(name: str, values: Array) -> None:
    _require(bool(jnp.isfinite(values).all()), f"{name} must be finite")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"transformation check: {message}.")
