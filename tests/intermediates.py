"""The largest array that a function makes on its way, read off its jaxpr."""

import jax


def largest_intermediate(function, *args):
    """Entries of the largest array in the jaxpr of function(*args)."""
    return max(_sizes(jax.make_jaxpr(function)(*args).jaxpr))


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)  # a closed jaxpr or an open
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)
