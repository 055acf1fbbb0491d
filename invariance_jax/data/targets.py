"""The examples of Spirograph: seeded vectors of regression targets.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: an example is a vector of target
parameters; the transformation renders a new image for every view.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from invariance_jax.arguments import check_integer
from invariance_jax.data import limits
from invariance_jax.transforms.spirograph import BOUNDS, PARAMETERS

SPLITS = ("train", "validation", "test")


def make_targets(
    split: str,
    *,
    num_examples: int,
    seed: int,
    targets: Sequence[str],
    bounds: ArrayLike = BOUNDS,
) -> np.ndarray:
    """Returns the target vectors of a split, uniform within the bounds.

    Each split has its own stream of random numbers, and a larger split begins with the
    examples of a smaller one.

    Args:
      split: one of `SPLITS`.
      num_examples: N.
      seed: seed of all splits.
      targets: names of the T targets, in the order of the columns.
      bounds: `[10, 2]`, lower and upper end of the range of each of `PARAMETERS`.

    Returns:
      float32 `[N, T]`, in the units of the bounds.

    Raises:
      ValueError: if the split or a target is unknown, or num_examples is not positive
        or too large for the memory.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; found {split!r}.")
    num_examples = check_integer("num_examples", num_examples, least=1)
    for name in targets:
        if name not in PARAMETERS:
            raise ValueError(
                f"targets must be some of {', '.join(PARAMETERS)}; found {name!r}."
            )
    limits.memory(f"{num_examples} Spirograph targets", 8 * num_examples * len(targets))
    rows = [PARAMETERS.index(name) for name in targets]
    ends: np.ndarray = np.asarray(bounds, np.float64)[rows]
    seeds = [check_integer("seed", seed, least=0), SPLITS.index(split)]
    uniform = np.random.default_rng(seeds).uniform(size=(num_examples, len(rows)))
    values: np.ndarray = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * uniform
    return values.astype(np.float32)
