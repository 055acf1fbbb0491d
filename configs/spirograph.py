"""Spirograph: contrastive learning with the invariance penalty.

    python launch.py --config=configs/spirograph.py[:variant] --workdir=runs/NAME

Variants (mean MSE over the targets, test split; M views averaged):
  paper (default): the paper's run, ResNet-18, 50 epochs, LARS, batch 512, in bfloat16.
    One GPU. M = 1, M = 30: not yet run.
  quick: MLP 3 x 512 with the penalty along the colours, on two CPU cores; 2 to 6
    minutes, depending on their load. M = 1: .00394 +- .00004, M = 8: .00107 +- .00002,
    n = 8 seeds.
  cpu: MLP 3 x 1024 without the penalty, the best result of two CPU cores in half an
    hour; 21 minutes. M = 1: .001472 +- .000003, M = 30: .000192 +- .000002, n = 3
    seeds.
  conv: ResNet-18 with a quarter of the width, the ImageNet stem, and the paper's
    penalty, LARS and temperature, 1200 steps of 128 examples; 3 minutes of training on
    one core. M = 1: .0333 +- .0010, M = 30: .0155 +- .0006, n = 8 seeds.
  conv_plain: the same without the penalty. M = 1: .0370 +- .0012, M = 30: .0243 +-
    .0011, n = 8 seeds.
  smoke: one minute, for tests.
"""

from configs import base
from invariance_jax.settings import Config

# All nuisance parameters but h (hole): derivatives along h do not predict changes.
COLORS = ("rback", "gfore", "gback", "bfore", "bback")


def get_config(variant: str = "paper") -> Config:
    """Returns the configuration of a variant."""
    variants = {
        "paper": _paper,
        "quick": _quick,
        "cpu": _cpu,
        "conv": _conv,
        "conv_plain": _conv_plain,
        "smoke": _smoke,
    }
    change = base.of_variant(variants, variant)
    config = base.get_config()
    change(config)
    return config


def _paper(config: Config) -> None:
    config.epochs = 50
    config.precision = "bfloat16"
    config.penalty.batch_limit = 1000.0
    config.checkpoints.keep_every_steps = 1000


def _quick(config: Config) -> None:
    base.small_mlp(config)
    config.steps = 2500
    _searched_penalty(config)
    config.logging.probe_every_steps = 500
    config.checkpoints.every_steps = 500
    config.checkpoints.keep_every_steps = 500
    config.evaluation.num_views = (1, 2, 4, 8)
    config.evaluation.train_examples = 20_000
    config.evaluation.l2_grid = (1e-8, 1e-6, 1e-4, 1e-2)


def _searched_penalty(config: Config) -> None:
    """Sets the best penalty of the search in sweeps/search.py."""
    config.penalty.weight = 0.1
    config.penalty.normalization = "batch"
    config.penalty.limit_shape = "log"
    config.penalty.parameters = COLORS


def _cpu(config: Config) -> None:
    base.small_mlp(config)
    config.steps = 11_000
    config.encoder.width = 1024
    config.penalty.weight = 0.0


def _conv(config: Config) -> None:
    _paper(config)
    config.epochs = None
    config.precision = "float32"
    # The paper has 9750 steps of 512 examples, with 10 of 50 epochs as warm-up.
    config.steps = 1200
    config.batch_size = 128
    config.encoder.width = 16
    config.encoder.stem = "imagenet"  # takes a quarter of the time of "cifar"
    config.optimizer.schedule = "warmup_cosine"
    config.optimizer.warmup_fraction = 0.2
    config.steps_per_call = 20
    config.logging.every_steps = 20
    config.logging.probe_every_steps = 400
    config.checkpoints.every_steps = 100
    config.evaluation.train_examples = 5000
    config.evaluation.test_examples = 3000
    config.evaluation.lbfgs_steps = (500,)


def _conv_plain(config: Config) -> None:
    _conv(config)
    config.penalty.weight = 0.0


def _smoke(config: Config) -> None:
    base.small_mlp(config)
    _searched_penalty(config)
    base.smoke_of_mlp(config)
