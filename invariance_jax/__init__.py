"""Transformation invariance in contrastive representation learning, in JAX.

Implements Foster, Pukdee, Rainforth: *Improving Transformation Invariance in
Contrastive Representation Learning* (ICLR 2021): contrastive training with a penalty on
the directional derivative of the representation along the transformation's parameters,
feature averaging at test time, and the differentiable Spirograph data.

The parts that other code calls are pure functions: `transforms` (example and alpha to
view), `losses` (representations to numbers), `evaluation` (frozen representations to
results) and `models`. `data`, `training` and the programs `train`, `evaluate` and
`report` run them on a data set.

Dimension letters, the same in every docstring:

    B  examples in a batch
    M  views of one example that are averaged
    K  directions of the penalty for one example
    P  transformation parameters, the columns of alpha
    D  features of a representation
    T  regression targets
    H  rows of an image
    W  columns of an image
    C  classes; channels of a feature map
    G  groups of examples that are normalized together
    S  side of a square image
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from invariance_jax.types import Array

__version__ = "0.6.0"

__all__ = ["load"]


def load(
    workdir: str, *, step: int | None = None
) -> "tuple[Callable[[Array], Array], ConfigDict]":
    """Returns the frozen encoder of a run and the run's resolved config.

    Args:
      workdir: the work directory of a run, with `config.json` and `checkpoints/`.
      step: the checkpoint to load; the last one if None.

    Returns:
      `(encode, config)`. `encode` maps images `[B, H, W, 3]`, float32 in [0, 1], to
      representations `[B, D]`, normalization of the images included.

    Raises:
      ValueError: if workdir holds no run or no checkpoint of that step, or the run was
        written by a newer version.
    """
    # Imported here so that `import invariance_jax` stays quick.
    from invariance_jax import evaluate

    return evaluate.load(workdir, step=step)
