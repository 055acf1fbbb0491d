"""A share of the examples, one in n: every n-th row of a batch and the others.

Rows of a batch are in random order. Taken like this, the share of each replica is its
part of the share of the joined batch, as long as n divides the rows of a replica.
"""

from typing import Any

import jax
import jax.numpy as jnp

from invariance_jax.types import Array


def one_in(fraction: float) -> int:
    """Returns n for a share that is one in n, 0 if it is not.

    Args:
      fraction: the share, in (0, 1].
    """
    count = round(1 / fraction)
    return count if abs(count * fraction - 1) < 1e-3 else 0


def every_nth(tree: Any, count: int) -> tuple[Any, Any]:
    """Returns every n-th row of each leaf, and the other rows.

    Args:
      tree: pytree of arrays `[B, ...]`.
      count: n, a divisor of B and at least 2.

    Returns:
      Trees of `[B / n, ...]` and `[B - B / n, ...]`.
    """

    def rows(leaf: Array) -> Array:
        return leaf.reshape(-1, count, *leaf.shape[1:])

    part = jax.tree.map(lambda leaf: rows(leaf)[:, 0], tree)
    rest = jax.tree.map(
        lambda leaf: rows(leaf)[:, 1:].reshape(-1, *leaf.shape[1:]), tree
    )
    return part, rest


def interleave(part: Array, rest: Array) -> Array:
    """Returns the rows in their old order: the inverse of `every_nth`.

    Args:
      part: `[B / n, ...]`.
      rest: `[B - B / n, ...]`.
    """
    others = rest.reshape(len(part), -1, *rest.shape[1:])
    rows = jnp.concatenate([part[:, None], others], axis=1)
    return rows.reshape(-1, *part.shape[1:])
