"""The protocol of a transformation `t(x; alpha, held)` and a check for one's own.

Section 2 of Foster, Pukdee, Rainforth (ICLR 2021): a view is `v = t(x; alpha)` with
`alpha ~ p(alpha)`. Random choices without a derivative (flips, gates) are `held`. A
function that draws never computes: `sample` draws, `apply` computes.
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
      held: pytree of arrays with leading axis B, of any dtype: random choices that the
        derivative holds fixed. `()` where there are none.
    """

    alpha: Array
    held: PyTree = ()


class Squashed(NamedTuple):
    """Images of many sizes in one array, and the sizes that they had.

    Attributes:
      pixels: uint8 `[B, S, S, C]`, each the whole image, its aspect changed.
      sizes: int32 `[B, 2]`, height and width before that.
    """

    pixels: PyTree
    sizes: PyTree


@dataclass(frozen=True)
class Transformation:
    """A family of views of an example, differentiable in alpha.

    Attributes:
      names: the P names of the columns of alpha.
      bounds: float `[P, 2]`, the lower and upper end of each parameter's distribution.
      sample: `(key, batch_size) -> View`, draws the parameters of one view of each of
        batch_size examples; evaluation maps it over keys.
      apply: `(x, view) -> images`, float32 `[B, H, W, 3]`, values about [0, 1]; pure.
      plain: `x -> images` without a transformation, or None where every image needs
        parameters (Spirograph).
      sample_for: `(key, batch_size, *, second, sizes) -> View`, `sample` where views
        depend on whether they are the second of a pair whose loss is taken, or on the
        heights and widths of the images, int32 `[B, 2]` or None; None: they do not.
    """

    names: tuple[str, ...]
    bounds: np.ndarray
    sample: Callable[[Key, int], View]
    apply: Callable[[PyTree, View], Array]
    plain: Callable[[PyTree], Array] | None = None
    sample_for: Callable[..., View] | None = None

    def draw(self, key: Key, x: PyTree) -> View:
        """Returns the parameters of one view of each of the examples."""
        return self.sampler(sizes_of(x), len(jax.tree.leaves(x)[0]))(key)

    def sampler(
        self, sizes: Array | None, batch_size: int, *, second: bool = False
    ) -> Callable[[Key], View]:
        """Returns `key -> View`: of images of many sizes, of a second view."""
        if self.sample_for is None:
            return lambda key: self.sample(key, batch_size)
        sample_for = self.sample_for
        return lambda key: sample_for(key, batch_size, second=second, sizes=sizes)


def sizes_of(x: PyTree) -> Array | None:
    """Returns the sizes of the images in a tree of examples.

    Args:
      x: examples, a pytree.

    Returns:
      int32 `[B, 2]`, those of the `Squashed` images in it; None if there are none.
    """
    leaves = jax.tree.leaves(x, is_leaf=lambda node: isinstance(node, Squashed))
    return next((leaf.sizes for leaf in leaves if isinstance(leaf, Squashed)), None)


_FEW_DRAWS, _DRAWS = 4, 16
"""Views that are drawn, and at most until one has a derivative: gates may be off."""

_STEP = 5e-4
"""Of the differences that a derivative is compared with, a share of the bounds."""

_TOLERANCE, _SEEN = 0.1, 1e-4
"""Of the comparison, relative; and the norm of a change that no rounding makes."""

_MOST_ALONE = 8
"""Examples that are tried alone."""


def check_transformation(
    transformation: Transformation, x: PyTree, *, seed: int = 0
) -> None:
    """Checks that a transformation of one's own keeps the promises of the protocol.

    Draws views, applies them, and takes the derivatives that training takes, all
    compiled: forward along alpha, and reverse over forward. The derivative along each
    parameter is compared with differences of the images.

    Args:
      transformation: what is checked.
      x: a few examples, a pytree with leading axis B of at least 2. Real ones: of black
        images no parameter of a colour has an effect.
      seed: seed of the views.

    Raises:
      ValueError: that names the first promise broken: names and bounds, leading axes
        and dtypes of a view, draws outside the bounds, a function that cannot be
        compiled or differentiated, shape, dtype and finiteness of images and
        derivatives, a derivative that is not that of the images, or is 0 everywhere,
        a column that is not there, or examples that are not independent.
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
    keys = jax.random.split(jax.random.key(seed), _DRAWS)
    sample = jax.jit(lambda key: transformation.sample(key, batch_size))
    first = _attempt("sample must compile", sample, keys[0])
    _check_view(transformation, first, batch_size)
    views = [first, *map(sample, keys[1:])]
    _require(
        not np.array_equal(first.alpha, views[1].alpha),
        "sample must draw different alpha for different keys",
    )
    _require(
        any(np.ptp(view.alpha, axis=0).any() for view in views),
        "sample must draw different alpha for different examples",
    )
    shape = _check_images("apply", transformation.apply, x, first)
    _check_columns(transformation, x, first)
    _check_derivatives(transformation, x, first, views[1].alpha - first.alpha)
    _check_slopes(transformation, x, views)
    if transformation.plain is not None:
        found = _check_images("plain", transformation.plain, x)
        _require(
            found == shape,
            f"plain must return images of the size of apply's, {shape}; found {found}",
        )


def _attempt(promise: str, function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Returns function(*args); what JAX refuses is told as a broken promise."""
    try:
        return function(*args)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"transformation check: {promise}: {reason}") from error


def _check_names(transformation: Transformation) -> None:
    names, bounds = transformation.names, np.asarray(transformation.bounds)
    _require(len(names) > 0, "names must hold the name of a parameter; found none")
    _require(len(set(names)) == len(names), f"names must differ; found {names}")
    _require(
        bounds.shape == (len(names), 2),
        f"bounds must be [{len(names)}, 2], a row per name; found {bounds.shape}",
    )
    _require(
        bool(np.isfinite(bounds).all() and (bounds[:, 0] <= bounds[:, 1]).all()),
        f"bounds must be finite and ordered; found {bounds.tolist()}",
    )


def _check_view(transformation: Transformation, view: View, batch_size: int) -> None:
    _require(
        isinstance(view, View),
        f"sample must return a View; found {type(view).__name__}",
    )
    num_names, bounds = len(transformation.names), np.asarray(transformation.bounds)
    _require(
        view.alpha.shape == (batch_size, num_names),
        f"sample must give alpha [{batch_size}, {num_names}]; found {view.alpha.shape}",
    )
    _require(
        jnp.issubdtype(view.alpha.dtype, jnp.floating),
        f"alpha must be floating; found {view.alpha.dtype}",
    )
    slack = 1e-5 * (1 + np.abs(bounds).max())
    inside = (view.alpha >= bounds[:, 0][None] - slack) & (
        view.alpha <= bounds[:, 1][None] + slack
    )
    _require(bool(inside.all()), "sample must draw alpha within bounds")
    for leaf in jax.tree.leaves(view.held):
        _require(
            leaf.ndim > 0 and leaf.shape[0] == batch_size,
            f"every leaf of held must have leading axis B; found {leaf.shape}",
        )


def _check_columns(transformation: Transformation, x: PyTree, view: View) -> None:
    """Looks for a column of alpha that is not there: JAX takes the last for it."""
    checked = checkify.checkify(transformation.apply, errors=checkify.index_checks)
    try:
        error, _ = jax.jit(checked)(x, view)
    except (TypeError, ValueError, NotImplementedError):
        return  # there is something in apply that cannot be checked so
    found = error.get() or ""
    shapes = view.alpha.shape, view.alpha.shape[1:]
    _require(
        not any(f"array of shape {shape}:" in found for shape in shapes),
        f"apply must take columns of alpha that names has: {found.strip()}",
    )


def _along(
    transformation: Transformation, x: PyTree, view: View
) -> Callable[[Array], Array]:
    """Returns the images as a function of alpha."""

    def apply(alpha: Array) -> Array:
        return transformation.apply(x, View(alpha, view.held))

    return apply


def _check_derivatives(
    transformation: Transformation, x: PyTree, view: View, direction: Array
) -> None:
    """Takes the derivative along alpha, and the gradient of its square."""
    apply = _along(transformation, x, view)

    def change(alpha: Array) -> Array:
        return jax.jvp(apply, (alpha,), (direction,))[1]

    def size(alpha: Array) -> Array:
        return jnp.sum(jnp.square(change(alpha)))

    for promise, derivative in [
        ("apply must allow forward mode along alpha", jax.jit(change)),
        ("apply must allow reverse over forward mode", jax.jit(jax.grad(size))),
    ]:
        values = _attempt(promise, derivative, view.alpha)
        _check_finite(f"the derivative ({promise})", values)


def _check_slopes(transformation: Transformation, x: PyTree, views: list[View]) -> None:
    """Compares the derivative along each column with differences of the images."""
    low, high = (jnp.asarray(end, jnp.float32) for end in transformation.bounds.T)

    @jax.jit
    def measure(view: View) -> Array:
        apply = _along(transformation, x, view)

        def along(step: Array) -> Array:
            direction = jnp.broadcast_to(step[None], view.alpha.shape)
            slope = jax.jvp(apply, (view.alpha,), (direction,))[1]
            change = (apply(view.alpha + direction) - apply(view.alpha - direction)) / 2
            least, most = (
                apply(jnp.where(direction != 0, end[None], view.alpha))
                for end in (low, high)
            )
            found = slope, change, slope - change, most - least
            return jnp.stack([jnp.sum(values**2, axis=(1, 2, 3)) for values in found])

        return jax.lax.map(along, jnp.diag(_STEP * (high - low)))

    norms = np.zeros((len(transformation.names), 4, 0))
    for count, view in enumerate(views):
        if count >= _FEW_DRAWS and norms[:, 0].any():
            break
        norms = np.concatenate([norms, np.sqrt(measure(view))], axis=2)
    _require(
        bool(norms[:, 0].any()),
        "apply must depend on alpha; its derivative is 0 in all examples of "
        f"{norms.shape[2] // len(views[0].alpha)} views",
    )
    for name, columns in zip(transformation.names, norms, strict=True):
        slope, change, error, whole = columns
        _require(
            slope.any() or whole.max() < _SEEN,
            f"the derivative along {name!r} is 0 everywhere, though the images change",
        )
        size = np.maximum(slope, change)
        # The median: there may be kinks, and steep places.
        seen = size > _SEEN
        off = np.median(error[seen] / size[seen]) if seen.any() else 0
        _require(
            off < _TOLERANCE,
            f"the derivative along {name!r} must be that of the images; found "
            f"{100 * off:.0f} % off their differences",
        )


def _check_images(
    name: str, function: Callable[..., Array], *examples: PyTree
) -> tuple[int, ...]:
    """Checks what a function gives for all examples and for each alone."""
    function = jax.jit(function)
    images = _attempt(f"{name} must compile", function, *examples)
    batch_size, kind = len(jax.tree.leaves(examples)[0]), type(images).__name__
    _require(
        isinstance(images, jax.Array), f"{name} must return an array; found a {kind}"
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
    numbers = np.unique(np.linspace(0, batch_size - 1, _MOST_ALONE).astype(int))
    for number in numbers:
        one = jax.tree.map(lambda leaf, i=number: leaf[i : i + 1], examples)
        _require(
            np.allclose(function(*one)[0], images[number], atol=1e-4),
            f"{name} must treat examples independently: number {number} alone differs",
        )
    return images.shape


def _check_finite(name: str, values: Array) -> None:
    _require(bool(jnp.isfinite(values).all()), f"{name} must be finite")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"transformation check: {message}.")
