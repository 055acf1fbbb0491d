"""The largest array that a function makes on its way, read off its jaxpr."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


def largest_intermediate(function: Callable[..., Any], *args: Any) -> int:
    """Entries of the largest array in the jaxpr of function(*args)."""
    return max(_sizes(jax.make_jaxpr(function)(*args).jaxpr))


def _sizes(jaxpr: Any) -> Iterator[int]:
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.size
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=_inner
        ):
            if _inner(parameter) is not None:
                yield from _sizes(_inner(parameter))


def _inner(parameter: Any) -> Any:
    """The jaxpr that a parameter of an equation holds, open or closed, or None."""
    parameter = getattr(parameter, "jaxpr", parameter)
    return parameter if hasattr(parameter, "eqns") else None
