"""The examples of Spirograph: seeded vectors of regression targets.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: an example is a vector of target
parameters; its images are drawn by the transformation, afresh for every view.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from invariance_jax.transforms.spirograph import BOUNDS, PARAMETERS

SPLITS = ("train", "validation", "test")


def make_targets(
    split: str,
    *,
    num_examples: int,
    seed: int,
    targets: Sequence[str],
    bounds: Any = BOUNDS,
) -> np.ndarray:
    """Returns the target vectors of a split, uniform within the bounds.

    Each split has its own stream of random numbers, and a larger split begins with the
    examples of a smaller one.

    Args:
      split: one of `SPLITS`.
      num_examples: N.
      seed: seed of all splits.
      targets: names of the targets, the columns.
      bounds: `[10, 2]`, ends of the law of each of `PARAMETERS`.

    Returns:
      float32 `[N, T]`, in the units of the bounds.

    Raises:
      ValueError: if the split or a target is unknown, or num_examples is not positive.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; found {split!r}.")
    if num_examples < 1:
        raise ValueError(f"num_examples must be positive; found {num_examples}.")
    for name in targets:
        if name not in PARAMETERS:
            raise ValueError(
                f"targets must be some of {', '.join(PARAMETERS)}; found {name!r}."
            )
    rows = [PARAMETERS.index(name) for name in targets]
    low, high = np.asarray(bounds, np.float64)[rows].T
    generator = np.random.default_rng([seed, SPLITS.index(split)])
    uniform = generator.uniform(size=(num_examples, len(rows)))
    return (low + (high - low) * uniform).astype(np.float32)
