"""The protocol of a transformation `t(x; alpha, held)` and a check for one's own.

Section 2 of Foster, Pukdee, Rainforth (ICLR 2021): a view is `v = t(x; alpha)` with
`alpha ~ p(alpha)`. Random choices without a derivative (flips, gates) are `held`. A
function that draws never computes: `sample` draws, `apply` computes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.types import Array, Key


class View(NamedTuple):
    """The parameters of one view of each example of a batch.

    Attributes:
      alpha: float `[B, P]`, columns in the order of `Transformation.names`.
      held: pytree of arrays with leading axis B, of any dtype: random choices that the
        derivative holds fixed. `()` where there are none.
    """

    alpha: Array
    held: Any = ()


@dataclass(frozen=True)
class Transformation:
    """A family of views of an example, differentiable in alpha.

    Attributes:
      names: the P names of the columns of alpha.
      bounds: float `[P, 2]`, the lower and upper end of each parameter's law.
      sample: `(key, batch_size) -> View`, draws the parameters of one view of each of
        batch_size examples.
      apply: `(x, view) -> images`, float32 `[B, H, W, 3]`, values about [0, 1]; pure.
      plain: `x -> images` without a transformation, or None where every image needs
        parameters (Spirograph).
    """

    names: tuple[str, ...]
    bounds: np.ndarray
    sample: Callable[[Key, int], View]
    apply: Callable[[Any, View], Array]
    plain: Callable[[Any], Array] | None = None


def check_transformation(
    transformation: Transformation, x: Any, *, seed: int = 0
) -> None:
    """Checks that a transformation of one's own keeps the promises of the protocol.

    Draws two views, applies them, and takes the derivatives that training takes, all
    compiled: forward along alpha, and reverse over forward.

    Args:
      transformation: what is checked.
      x: a few examples, a pytree with leading axis B of at least 2.
      seed: seed of the views.

    Raises:
      ValueError: that names the first promise broken: names against bounds, leading
        axes and dtypes of a view, draws outside the bounds, a function that cannot be
        compiled or differentiated, shape, dtype and finiteness of images and
        derivatives, or examples that are not independent.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x)]
    _require(
        bool(shapes)
        and all(shape and shape[0] == shapes[0][0] >= 2 for shape in shapes),
        f"leaves of x must share a leading axis of at least 2; found {shapes}",
    )
    batch_size = shapes[0][0]
    _check_bounds(transformation)
    keys = jax.random.split(jax.random.key(seed), 3)
    sample = jax.jit(lambda key: transformation.sample(key, batch_size))
    first = _attempt("sample must compile", sample, keys[0])
    _check_view(transformation, first, batch_size)
    second = sample(keys[1])
    _require(
        not np.array_equal(first.alpha, second.alpha),
        "sample must draw different alpha for different keys",
    )
    images = _attempt("apply must compile", jax.jit(transformation.apply), x, first)
    _check_images("apply", images, batch_size)
    _check_derivatives(transformation, x, first, second.alpha - first.alpha)
    alone = transformation.apply(*jax.tree.map(lambda leaf: leaf[:1], (x, first)))
    _require(
        np.allclose(alone, images[:1], atol=1e-4),
        "apply must treat examples independently: the first one alone differs",
    )
    if transformation.plain is not None:
        _check_images("plain", transformation.plain(x), batch_size)


def _attempt(promise: str, function: Callable[..., Any], *args: Any) -> Any:
    """Returns function(*args); what JAX refuses is told as a broken promise."""
    try:
        return function(*args)
    except (TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"transformation check: {promise}: {reason}") from error


def _check_bounds(transformation: Transformation) -> None:
    num_names, bounds = len(transformation.names), np.asarray(transformation.bounds)
    _require(num_names > 0, "names must hold the name of a parameter; found none")
    _require(
        bounds.shape == (num_names, 2),
        f"bounds must be [{num_names}, 2], a row per name; found {bounds.shape}",
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


def _check_derivatives(
    transformation: Transformation, x: Any, view: View, direction: Array
) -> None:
    """Takes the derivative along alpha, and the gradient of its square."""

    def change(alpha: Array) -> Array:
        def apply(alpha: Array) -> Array:
            return transformation.apply(x, View(alpha, view.held))

        return jax.jvp(apply, (alpha,), (direction,))[1]

    def size(alpha: Array) -> Array:
        return jnp.sum(jnp.square(change(alpha)))

    for promise, derivative in [
        ("apply must allow forward mode along alpha", jax.jit(change)),
        ("apply must allow reverse over forward mode", jax.jit(jax.grad(size))),
    ]:
        values = _attempt(promise, derivative, view.alpha)
        _check_finite(f"the derivative ({promise})", values)


def _check_images(name: str, images: Array, batch_size: int) -> None:
    _require(
        images.ndim == 4 and images.shape[0] == batch_size and images.shape[3] == 3,
        f"{name} must return [{batch_size}, H, W, 3]; found {images.shape}",
    )
    _require(
        jnp.issubdtype(images.dtype, jnp.floating),
        f"{name} must return floating images; found {images.dtype}",
    )
    _check_finite(f"the images of {name}", images)


def _check_finite(name: str, values: Array) -> None:
    _require(bool(jnp.isfinite(values).all()), f"{name} must be finite")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"transformation check: {message}.")
