"""The gradient of a batch that is too large for the memory, part by part.

Gao, Zhang, Han, Callan: Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup (2021), with the invariance penalty: the method's loss couples all
examples, but only through their representations. These are computed part by part,
without what a backward pass needs; the loss and its gradient with respect to them
follow for the whole batch; and each part is encoded again, to carry its rows of that
gradient on to the parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from invariance_jax.training.draws import Draws
from invariance_jax.training.objective import Objective
from invariance_jax.types import Array


def make_gradient(objective: Objective, count: int) -> Callable[..., tuple[Any, Any]]:
    """Returns the gradient of an objective as `jax.grad(objective, has_aux=True)` does.

    With several parts it is that of the whole batch if no example meets another within
    the encoder: if nothing normalizes, or the groups of BatchNorm divide a part. Else
    batch statistics are those of a part. The heads normalize over the whole batch, so
    the penalty must not act on z, nor be measured against the variance over the batch
    (`settings.rules` refuses both). The running statistics move to the mean of what the
    parts move them to. Costs one more forward pass.
    """
    if count == 1:
        return jax.grad(objective, has_aux=True)

    def gradient(
        params: Any,
        stats: Any,
        weight: Array,
        x: Array,
        draws: Draws,
        target: Any,
        memory: Any,
    ) -> tuple[Any, Any]:
        parts = _split((x, draws), count)
        sides, moved = jax.lax.map(
            lambda part: objective.encode(params, stats, *part), parts
        )
        moved = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), moved)
        outer = jax.grad(objective.couple, argnums=(0, 3), has_aux=True)
        inputs = params, moved, weight, _join(sides), target, memory
        (direct, cotangents), aux = outer(*inputs)

        def add(total: Any, part_and_cotangents: tuple[Any, Any]) -> tuple[Any, None]:
            part, cotangents = part_and_cotangents
            _, pull = jax.vjp(lambda p: objective.encode(p, stats, *part)[0], params)
            return jax.tree.map(jnp.add, total, *pull(cotangents)), None

        return jax.lax.scan(add, direct, (parts, _split(cotangents, count)))[0], aux

    return gradient


def _split(tree: Any, count: int) -> Any:
    """Returns each leaf `[B, ...]` as `[count, B / count, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), tree)


def _join(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)
