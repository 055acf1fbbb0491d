"""Transformation invariance in contrastive representation learning, in JAX.

Implements Foster, Pukdee, Rainforth: *Improving Transformation Invariance in
Contrastive Representation Learning* (ICLR 2021): contrastive training with a penalty on
the directional derivative of the representation along the transformation's parameters,
feature averaging at test time, and the differentiable Spirograph data.

The parts that other code calls are pure functions: `transforms` (example and alpha to
view), `losses` (representations to numbers), `evaluation` (frozen representations to
results) and `models` (images to representations). The other packages, which the
README lists, run them.

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
      step: number of finished steps of the checkpoint to load. None: the latest.

    Returns:
      `(encode, config)`. `encode` maps images `[B, H, W, 3]`, float32 in [0, 1], to
      representations `[B, D]`. It normalizes the images, uses running statistics, and
      can be transformed by JAX. The images must have the size of the run's; those of
      an image set may be uint8 or have one channel. If the run used your own
      augmentation, images are rounded to uint8, which stops gradients. Floating images
      with values below -1 or above 2 are refused with a ValueError. This check waits
      for the device, so compile `encode` in a loop over batches: traced images are not
      checked.

    Raises:
      ValueError: if workdir holds no run, several seeds or no checkpoint of that step,
        the run was written by a newer version, or your own augmentation has no `plain`,
        which normalizes the images.
    """
    # Imported here so that `import invariance_jax` stays quick.
    from invariance_jax import evaluate

    return evaluate.load(workdir, step=step)
