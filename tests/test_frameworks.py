"""The losses with the networks of several libraries: values and gradients are one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from invariance_jax.losses import invariance_penalty, nt_xent

KERNEL = np.sin(np.arange(12.0, dtype=np.float32)).reshape(3, 4)
BIAS = np.cos(np.arange(4.0, dtype=np.float32))
ALPHA, OTHER = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)

Encode = Callable[[jax.Array], jax.Array]


def loss(encode: Encode) -> jax.Array:
    """The objective of the paper, as a user writes it."""
    penalty, h = invariance_penalty(encode, jnp.asarray(ALPHA), jnp.asarray(OTHER))
    z = encode(jnp.asarray(OTHER))
    return jnp.mean(nt_xent(h, z, temperature=0.5)) + 0.1 * jnp.mean(penalty)


def of_plain_arrays() -> tuple[jax.Array, jax.Array]:
    """The loss, and its gradient in the kernel."""

    def encode(kernel: jax.Array, alpha: jax.Array) -> jax.Array:
        return alpha @ kernel + BIAS[None]

    return jax.value_and_grad(lambda kernel: loss(partial(encode, kernel)))(
        jnp.asarray(KERNEL)
    )


def of_linen_bound() -> tuple[jax.Array, jax.Array]:
    """As `of_plain_arrays`, of a module that holds its variables."""

    def of_kernel(kernel: jax.Array) -> jax.Array:
        return loss(nn.Dense(4).bind({"params": {"kernel": kernel, "bias": BIAS}}))

    return jax.value_and_grad(of_kernel)(jnp.asarray(KERNEL))


def of_linen() -> tuple[jax.Array, jax.Array]:
    """As `of_plain_arrays`."""
    module = nn.Dense(4)

    def of_params(params: Any) -> jax.Array:
        return loss(partial(module.apply, {"params": params}))

    value, gradient = jax.value_and_grad(of_params)({"kernel": KERNEL, "bias": BIAS})
    return value, gradient["kernel"]


def of_nnx() -> tuple[jax.Array, jax.Array]:
    """As `of_plain_arrays`."""
    module = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    module.kernel.set_value(jnp.asarray(KERNEL))
    module.bias.set_value(jnp.asarray(BIAS))
    graph, state = nnx.split(module)

    def of_state(state: Any) -> jax.Array:
        return loss(nnx.merge(graph, state))

    value, gradient = jax.value_and_grad(of_state)(state)
    return value, gradient["kernel"].get_value()


def of_equinox() -> tuple[jax.Array, jax.Array]:
    """As `of_plain_arrays`."""
    equinox = pytest.importorskip("equinox")
    module = equinox.nn.Linear(3, 4, key=jax.random.key(0))
    module = equinox.tree_at(lambda m: (m.weight, m.bias), module, (KERNEL.T, BIAS))
    value, gradient = equinox.filter_value_and_grad(
        lambda module: loss(jax.vmap(module))
    )(jax.tree.map(jnp.asarray, module))
    return value, gradient.weight.T


@pytest.mark.parametrize("other", [of_linen, of_linen_bound, of_nnx, of_equinox])
def test_the_loss_of_every_library_is_that_of_plain_arrays(other: Callable) -> None:
    value, gradient = of_plain_arrays()
    found, slope = other()
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(slope, gradient, rtol=1e-4, atol=1e-5)
    assert jnp.abs(gradient).max() > 0.01
