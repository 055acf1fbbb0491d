"""The gradient of a batch that is too large for the memory: gradient caching.

Gao, Zhang, Han, Callan: Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup (2021), with the invariance penalty added. The method's loss couples all
examples, but only through their representations. First each microbatch is encoded,
without storing activations for a backward pass. Then the loss of the whole batch and
its gradient with respect to the representations are computed. Last each microbatch is
encoded again, and its rows of that gradient are propagated back to the parameters.
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
    """Returns the gradient function of an objective, over count microbatches.

    Called as `jax.grad(objective, has_aux=True)`. It equals that if the encoder does
    not couple examples of different microbatches (the BatchNorm group size divides the
    size of a microbatch). Costs one more forward pass.
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
        sides, updated = jax.lax.map(
            lambda part: objective.encode(params, stats, *part), parts
        )
        updated = jax.tree.map(
            lambda leaf: jnp.mean(leaf, axis=0).astype(leaf.dtype), updated
        )
        couple_gradient = jax.grad(objective.couple, argnums=(0, 3), has_aux=True)
        inputs = params, updated, weight, _join(sides), target, memory
        (direct, cotangents), aux = couple_gradient(*inputs)

        def add(total: PyTree, inputs: PyTree) -> tuple[PyTree, None]:
            part, cotangents = inputs
            _, vjp = jax.vjp(lambda p: objective.encode(p, stats, *part)[0], params)
            return jax.tree.map(jnp.add, total, *vjp(cotangents)), None

        return jax.lax.scan(add, direct, (parts, split(cotangents, count)))[0], aux

    return gradient


def split(tree: PyTree, count: int) -> PyTree:
    """Returns each leaf `[B, ...]` as `[count, B / count, ...]`."""
    # Not -1 for the rows: alpha may be [B, 0].
    return jax.tree.map(
        lambda leaf: leaf.reshape(count, len(leaf) // count, *leaf.shape[1:]), tree
    )


def _join(tree: PyTree) -> PyTree:
    """Returns each leaf `[count, B / count, ...]` as `[B, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
