"""Transformation invariance in contrastive representation learning, in JAX.

Implements Foster, Pukdee, Rainforth: *Improving Transformation Invariance in
Contrastive Representation Learning* (ICLR 2021): contrastive training with a penalty on
the directional derivative of the representation along the transformation's parameters,
feature averaging at test time, and the differentiable Spirograph data.

The parts that other code calls are pure functions: `transforms` (example and alpha to
view), `losses` (representations to numbers), `evaluation` (frozen representations to
results) and `models` (images to representations). Around them, each room importing
only what stands before it:

    data         where examples come from
    settings     one typed declaration per key, and its checks
    runtime      processes, devices, signals, files
    tasks        what is learned from and how it is probed
    runs         the work directory: checkpoints, metrics, results
    training     the parts of a run, and its steps
    experiments  what is measured of a trained encoder
    report       tables, figures, the page
    sweeps       many runs; slurm: jobs of a cluster

and the programs `train`, `evaluate`, `embed`, `export` and `check` of `launch.py`.

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
    from invariance_jax.settings import Config
    from invariance_jax.types import Array

__version__ = "1.0.0"

__all__ = ["load"]


def load(
    workdir: str, *, step: int | None = None
) -> "tuple[Callable[[Array], Array], Config]":
    """Returns the frozen encoder of a run, and its configuration.

    Args:
      workdir: the work directory of one seed, with `config.json` and `checkpoints/`.
      step: finished steps of the checkpoint to load; the last one if None.

    Returns:
      `(encode, config)`. `encode` maps images `[B, H, W, 3]`, float32 in [0, 1] (of an
      image set of its size, also uint8 and of one channel), to representations `[B, D]`
      on running statistics, normalization of the images included, and works under jax's
      transformations. Views of the user's own get bytes, through which there is no
      gradient.

    Raises:
      ValueError: if workdir holds no run, several seeds or no checkpoint of that step,
        or the run was written by a newer version.
    """
    # Imported here so that `import invariance_jax` stays quick.
    from invariance_jax import evaluate

    return evaluate.load(workdir, step=step)
