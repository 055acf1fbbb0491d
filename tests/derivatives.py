"""The derivatives that training takes: forward mode, and reverse over forward."""

import jax
import jax.numpy as jnp


def along_and_gradient(function, at, direction=None):
    """The derivative along a direction, or ones, and the gradient of its square."""
    direction = jnp.ones_like(at) if direction is None else direction

    @jax.jit
    def both(at, direction):
        def size(at):
            change = jax.jvp(function, (at,), (direction,))[1]
            return jnp.sum(jnp.square(change)), change

        gradient, change = jax.grad(size, has_aux=True)(at)
        return change, gradient

    return both(at, direction)
