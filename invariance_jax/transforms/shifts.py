"""Transformations whose distribution of alpha is moved, widened, or partly redrawn.

Foster, Pukdee, Rainforth (ICLR 2021) test representations under a shift of the nuisance
distribution. The size of a shift may be traced, so one compiled program serves a whole
grid of shifts.
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
"""Groups of parameters that are shifted together."""


def find_columns(names: tuple[str, ...], *, what: str) -> np.ndarray:
    """Returns which columns of alpha belong to a parameter or a group of them.

    Args:
      names: names of the columns of alpha, as in a `Transformation`.
      what: name of a parameter, or of one of `GROUPS`.

    Returns:
      bool `[P]`.

    Raises:
      ValueError: if a parameter is not one of the names.
    """
    parameters = GROUPS.get(what, (what,))
    for name in parameters:
        if name not in names:
            raise ValueError(
                f"what is {what!r}, but alpha has no column {name!r}; expected some of "
                f"{', '.join(names)}."
            )
    return np.array([name in parameters for name in names])


def shift(transformation: Transformation, move: Array, scale: Array) -> Transformation:
    """Returns a transformation whose distribution of alpha is moved and widened.

    Where the transformation draws alpha, the result draws `alpha + move + (scale - 1)
    (alpha - c)`, c being the middle of its bounds. With one key both draw nearby views.

    Args:
      transformation: the transformation with the unshifted distribution.
      move: `[P]`, added to alpha, in the units of the parameters; may be traced.
      scale: `[P]`, multiplies the distance of alpha from c, 0 or more; may be traced.

    Returns:
      A `Transformation`. Its bounds are shifted too, and traced if move or scale is.

    Raises:
      ValueError: if move or scale is not `[P]`, or a scale is negative where it is not
        traced.
    """
    _check_columns(transformation, move=move, scale=scale)
    if not isinstance(scale, jax.core.Tracer) and np.min(scale, initial=0) < 0:
        raise ValueError(f"scale must be 0 or more; found {np.asarray(scale)}.")
    traced = any(isinstance(value, jax.core.Tracer) for value in (move, scale))
    # Concrete values stay in NumPy's double precision, as the bounds are.
    move_scale_middle = [
        promote(value=value)[0] if traced else np.asarray(value, np.float64)
        for value in (move, scale, np.mean(transformation.bounds, axis=1))
    ]

    def shifted(view: View) -> View:
        values = [jnp.asarray(v, view.alpha.dtype) for v in move_scale_middle]
        return View(_shift(view.alpha, *values), view.held)

    def sample_for(key: Key, batch_size: int, **settings: object) -> View:
        assert transformation.sample_for is not None
        return shifted(transformation.sample_for(key, batch_size, **settings))

    return replace(
        transformation,
        sample=lambda key, batch_size: shifted(transformation.sample(key, batch_size)),
        sample_for=transformation.sample_for and sample_for,
        bounds=_shift(transformation.bounds.T, *move_scale_middle).T,
    )


def _shift(alpha: PyTree, move: PyTree, scale: PyTree, middle: PyTree) -> PyTree:
    """Returns shifted rows of alpha; a move of 0 and a scale of 1 change no bit."""
    return alpha + move[None] + (scale - 1)[None] * (alpha - middle[None])


def redraw(transformation: Transformation, chosen: Array) -> Transformation:
    """Returns a transformation that draws some columns of alpha and keeps the rest.

    The new examples are pairs `(x, view)` of an example of the transformation and the
    view whose held choices and other columns of alpha are kept. The drawn columns do
    not depend on the kept ones. The columns of a crop box do depend on one another, so
    a partly redrawn box does not have the distribution of a box.

    Args:
      transformation: the transformation that draws all columns.
      chosen: bool `[P]`, the columns to draw; may be traced.

    Returns:
      A `Transformation` whose `plain` is None.

    Raises:
      ValueError: if chosen is not `[P]` or not bool.
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
    num_names = len(transformation.names)
    for name, value in values.items():
        expected = f"[{num_names}], a value per name"
        check_shape(name, value, (num_names,), expected=expected)
