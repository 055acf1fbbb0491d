"""Fashion-MNIST: grey images of clothes, small enough for two CPU cores.

    python launch.py --config=configs/fashion_mnist.py[:variant] --workdir=runs/NAME

Variants (accuracy of logistic regression, test split; plain images, and features
averaged over M views):
  resnet18 (default): ResNet-18, 100 epochs, in bfloat16. One GPU.
    Plain, M = 16: not yet run.
  quick: MLP 3 x 512 with the penalty, on two CPU cores; 7 minutes.
    Plain: .8363 +- .0008, M = 16: .8387 +- .0014, n = 3 seeds; for a probe that
    selects its l2, see configs/README.md.
  quick_colorized: the same with random foreground and background colours, and the
    penalty along these colours, on two CPU cores. Plain: .8195 +- .0011, M = 16: .8279
    +- .0005, n = 3 seeds.
  smoke: a minute, for tests.
"""

from configs import base
from invariance_jax.settings import Config


def get_config(variant: str = "resnet18") -> Config:
    """Returns a variant: resnet18, quick, quick_colorized or smoke."""
    variants = {
        "resnet18": _resnet18,
        "quick": _quick,
        "quick_colorized": _quick_colorized,
        "smoke": _smoke,
    }
    change = base.of_variant(variants, variant)
    config = base.get_config()
    config.data.name = "fashion_mnist"
    base.of_images(config)
    config.evaluation.num_views = (1, 16)
    config.evaluation.families = ("all", "crop")
    config.evaluation.baselines = ("pixels", "untrained")
    change(config)
    return config


def _resnet18(config: Config) -> None:
    config.epochs = 100
    config.precision = "bfloat16"
    config.penalty.weight = 0.1
    config.penalty.batch_limit = 1.0


def _quick(config: Config) -> None:
    base.small_mlp(config)
    config.steps = 2000
    config.augmentation.crop_area = (0.7, 1.0)
    config.logging.probe_every_steps = 1000
    config.checkpoints.every_steps = 500
    config.checkpoints.keep_every_steps = 500
    config.evaluation.train_examples = 10_000
    config.evaluation.l2_grid = (1e-5, 1e-4, 1e-3)
    config.evaluation.neighbors = (20,)


def _quick_colorized(config: Config) -> None:
    _quick(config)
    config.augmentation.colorize = True
    config.augmentation.differentiate = ("colorize",)
    config.augmentation.jitter_probability = 0.0
    config.augmentation.gray_probability = 0.0


def _smoke(config: Config) -> None:
    _quick(config)
    base.smoke_of_mlp(config)
