"""The gradient of a batch that is too large for the memory, part by part.

Gao, Zhang, Han, Callan: Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup (2021), with the invariance penalty: the method's loss couples all
examples, but only through their representations. These are computed part by part,
without what a backward pass needs; the loss and its gradient with respect to them
follow for the whole batch; and each part is encoded again, to carry its rows of that
gradient on to the parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from invariance_jax.training.draws import Draws
from invariance_jax.training.objective import Objective
from invariance_jax.types import Array, PyTree


def make_gradient(
    objective: Objective, count: int
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Returns the gradient of an objective, as `jax.grad(objective, has_aux=True)`.

    With several parts it is that of the whole batch if no example meets another within
    the encoder (groups of BatchNorm divide a part). Costs one more forward pass.
    """
    if count == 1:
        return jax.grad(objective, has_aux=True)

    def gradient(
        params: PyTree,
        stats: PyTree,
        weight: Array,
        x: Array,
        draws: Draws,
        target: PyTree,
        memory: PyTree,
    ) -> tuple[PyTree, PyTree]:
        parts = split((x, draws), count)
        sides, moved = jax.lax.map(
            lambda part: objective.encode(params, stats, *part), parts
        )
        moved = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), moved)
        outer = jax.grad(objective.couple, argnums=(0, 3), has_aux=True)
        inputs = params, moved, weight, _join(sides), target, memory
        (direct, cotangents), aux = outer(*inputs)

        def add(total: PyTree, of_part: PyTree) -> tuple[PyTree, None]:
            part, cotangents = of_part
            _, pull = jax.vjp(lambda p: objective.encode(p, stats, *part)[0], params)
            return jax.tree.map(jnp.add, total, *pull(cotangents)), None

        return jax.lax.scan(add, direct, (parts, split(cotangents, count)))[0], aux

    return gradient


def split(tree: PyTree, count: int) -> PyTree:
    """Returns each leaf `[B, ...]` as `[count, B / count, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), tree)


def _join(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
