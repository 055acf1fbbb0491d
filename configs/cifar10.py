"""CIFAR-10: contrastive learning with the penalty along the colour jitter.

    python launch.py --config=configs/cifar10.py[:variant] --workdir=runs/NAME

The data set is downloaded on first use. Variants (accuracy of logistic regression,
test split; plain images, and features averaged over M views):
  paper (default): the paper's run, ResNet-50, 1000 epochs, LARS, batch 512, in
    bfloat16. Eight GPUs. Plain, M = 100: not yet run (paper, n = 3: .9338, .9483).
  resnet18: ResNet-18, 200 epochs, 45 000 training and 5000 validation images, in
    bfloat16. One GPU. Plain, M = 100: not yet run.
  smoke: a few steps of a ResNet-18 in a minute, for tests.
"""

from configs import base
from invariance_jax.settings import Config


def get_config(variant: str = "paper") -> Config:
    """Returns the configuration of a variant: paper, resnet18 or smoke."""
    variants = {"paper": _paper, "resnet18": _resnet18, "smoke": _smoke}
    change = base.of_variant(variants, variant)
    config = base.get_config()
    config.data.name = "cifar10"
    base.of_images(config)
    config.evaluation.num_views = (1, 5, 15, 26, 47, 100)
    change(config)
    return config


def _paper(config: Config) -> None:
    _large(config)
    # The paper trains on all 50 000 images, so there is no validation split.
    config.data.validation_examples = 0
    config.logging.probe_every_steps = 0


def _large(config: Config) -> None:
    config.epochs = 1000
    config.precision = "bfloat16"
    config.encoder.name = "resnet50"
    config.batchnorm.group_size = 64
    config.penalty.weight = 0.1
    config.penalty.batch_limit = 1.0
    config.checkpoints.every_steps = 5000
    config.checkpoints.keep_every_steps = 10_000
    config.logging.probe_every_steps = 5000


def _resnet18(config: Config) -> None:
    _large(config)
    config.epochs = 200
    config.encoder.name = "resnet18"
    config.evaluation.families = ("all", "color", "crop")
    config.evaluation.baselines = ("pixels", "untrained")


def _smoke(config: Config) -> None:
    _large(config)
    base.smoke_of_resnet(config)
    config.precision = "float32"
    config.batchnorm.group_size = 0
