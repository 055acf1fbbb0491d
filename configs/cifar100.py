"""CIFAR-100: contrastive learning with the penalty along the colour jitter.

    python launch.py --config=configs/cifar100.py[:variant] --workdir=runs/NAME

All settings but the data set are those of CIFAR-10. Variants (accuracy of logistic
regression, test split; plain images, and features averaged over M views):
  paper (default): the paper's run, ResNet-50, 1000 epochs, LARS, batch 512, in
    bfloat16. Eight GPUs. Plain, M = 100: not yet run (paper, n = 3: .7221, .7494).
  resnet18: ResNet-18, 200 epochs, 45 000 training and 5000 validation images, in
    bfloat16. One GPU. Plain, M = 100: not yet run.
  smoke: a few steps of a ResNet-18 in a minute, for tests.
"""

from configs import cifar10
from invariance_jax.settings import Config


def get_config(variant: str = "paper") -> Config:
    """Returns the configuration of a variant: paper, resnet18 or smoke."""
    config = cifar10.get_config(variant)
    config.data.name = "cifar100"
    shifts = (("color", "strength", (0.0, 0.257, 0.514, 0.771, 0.9)),)
    config.evaluation.shifts = shifts
    return config
