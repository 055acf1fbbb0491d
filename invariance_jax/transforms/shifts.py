"""Transformations with another distribution of alpha: moved, widened, or drawn in part.

Foster, Pukdee, Rainforth (ICLR 2021) test how a representation stands a shift of the
nuisance distribution. What changes may be traced, so that one compiled program serves a
whole grid.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.arguments import check_shape, promote
from invariance_jax.transforms.base import Transformation, View
from invariance_jax.types import Array, Key, PyTree

GROUPS = {
    "foreground": ("rfore", "gfore", "bfore"),
    "background": ("rback", "gback", "bback"),
}
"""Parameters that are shifted together."""


def find_columns(names: tuple[str, ...], *, what: str) -> np.ndarray:
    """Returns which columns of alpha belong to a parameter or a group of them.

    Args:
      names: of the columns, those of a `Transformation`.
      what: one of the names, or one of `GROUPS`.

    Returns:
      bool `[P]`.

    Raises:
      ValueError: if a parameter is not one of the names.
    """
    wanted = GROUPS.get(what, (what,))
    for name in wanted:
        if name not in names:
            raise ValueError(
                f"what is {what!r}, and alpha has no column {name!r}; expected some of "
                f"{', '.join(names)}."
            )
    return np.array([name in wanted for name in names])


def shift(transformation: Transformation, move: Array, scale: Array) -> Transformation:
    """Returns a transformation whose distribution of alpha is moved and widened.

    Draws `alpha + move + (scale - 1) (alpha - c)` where the transformation draws alpha,
    c the middle of its bounds: the same random numbers give neighbouring views.

    Args:
      transformation: the one with the unshifted distribution.
      move: `[P]`, what is added, in the units of the parameters; may be traced.
      scale: `[P]`, factor of the distance from the middle of the distribution, 0 or
        more; may be traced.

    Returns:
      A `Transformation`; its bounds follow, and are traced if move or scale is.

    Raises:
      ValueError: if move or scale is not `[P]`, or a scale is negative where it is not
        traced.
    """
    _check_columns(transformation, move=move, scale=scale)
    if not isinstance(scale, jax.core.Tracer) and np.min(scale, initial=0) < 0:
        raise ValueError(f"scale must be 0 or more; found {np.asarray(scale)}.")
    traced = any(isinstance(value, jax.core.Tracer) for value in (move, scale))
    # Concrete ones are in NumPy's double precision, as the bounds are.
    change = [
        promote(value=value)[0] if traced else np.asarray(value, np.float64)
        for value in (move, scale, np.mean(transformation.bounds, axis=1))
    ]

    def shifted(view: View) -> View:
        exact = [jnp.asarray(value, view.alpha.dtype) for value in change]
        return View(_shift(view.alpha, *exact), view.held)

    def sample_for(key: Key, batch_size: int, **what: object) -> View:
        assert transformation.sample_for is not None
        return shifted(transformation.sample_for(key, batch_size, **what))

    return replace(
        transformation,
        sample=lambda key, batch_size: shifted(transformation.sample(key, batch_size)),
        sample_for=transformation.sample_for and sample_for,
        bounds=_shift(transformation.bounds.T, *change).T,
    )


def _shift(alpha: PyTree, move: PyTree, scale: PyTree, middle: PyTree) -> PyTree:
    """Returns rows of alpha; written so that no shift changes no bit."""
    return alpha + move[None] + (scale - 1)[None] * (alpha - middle[None])


def redraw(transformation: Transformation, chosen: Array) -> Transformation:
    """Returns a transformation that draws some columns of alpha and keeps the rest.

    Its examples are pairs `(x, view)` of an example of the transformation and the view
    of it that is kept: held, and the other columns of alpha. A column is drawn from its
    own distribution, whatever the others are; of crop boxes, whose columns depend on
    one another, that is not the distribution of a box.

    Args:
      transformation: the one that draws everything.
      chosen: bool `[P]`, the columns that are drawn; may be traced.

    Returns:
      A `Transformation` without plain images.

    Raises:
      ValueError: if chosen is not `[P]`.
    """
    _check_columns(transformation, chosen=chosen)
    if chosen.dtype != np.bool_:
        raise ValueError(f"chosen must be bool, one per column; found {chosen.dtype}.")

    def apply(pair: tuple[PyTree, View], view: View) -> Array:
        x, kept = pair
        alpha = jnp.where(jnp.asarray(chosen)[None], view.alpha, kept.alpha)
        return transformation.apply(x, View(alpha, kept.held))

    return replace(transformation, apply=apply, plain=None)


def _check_columns(transformation: Transformation, **values: Array) -> None:
    expected = (len(transformation.names),)
    for name, value in values.items():
        check_shape(
            name, value, expected, expected=f"{list(expected)}, a value per name"
        )
