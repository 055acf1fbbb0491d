"""Other methods than SimCLR on CIFAR-10, with their papers' settings and the penalty.

    python launch.py --config=configs/methods.py[:variant] --workdir=runs/NAME

ResNet-18, 200 epochs, one GPU; the data set is downloaded on first use. Optimizer,
learning rate, weight decay, temperature and views are those of the papers, for ImageNet
(dcl, emp_ssl: for CIFAR-10); heads and momentum are the defaults of `training.methods`.
Deviations: no blur, which the papers use for images of 224 pixels (emp_ssl: of 32); no
Nesterov momentum for emp_ssl; bfloat16. Narrow heads for CPUs are in
`configs/sweeps/methods.py`.

Variants (accuracy of logistic regression, test split, M = 100):
  byol (default): prediction of a target network. M = 100: not yet run.
  moco_v3: target network and negatives. M = 100: not yet run.
  dcl: SimCLR without the positive pair in the denominator. M = 100: not yet run.
  simsiam: predictor and stop-gradient. M = 100: not yet run.
  barlow_twins: cross-correlation of features. M = 100: not yet run.
  vicreg: variances and covariances of features. M = 100: not yet run.
  emp_ssl: 20 patches of each image, 30 epochs. M = 100: not yet run.
  smoke: byol for a minute, for tests.
"""

from typing import Any

from configs import base, cifar10
from invariance_jax.settings import Config, change

_LARS = {
    "optimizer.name": "lars",
    "optimizer.schedule": "warmup_cosine",
    "optimizer.warmup_fraction": 0.05,
    "optimizer.exclude": ("bias", "norm"),
    "augmentation.recipe": "byol_imagenet",
    "augmentation.blur_probability": 0.0,
}
_SGD = {
    "optimizer.name": "sgd",
    "optimizer.schedule": "warmup_cosine",
    "optimizer.warmup_fraction": 0.0,
    "optimizer.weight_decay": 1e-4,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "dcl": {**_SGD, "temperature": 0.07, "optimizer.learning_rate": 0.03},
    "moco_v3": {
        **_LARS,
        "temperature": 1.0,
        "optimizer.learning_rate": 0.3,
        "optimizer.weight_decay": 1.5e-6,
        "augmentation.crop_area": (0.2, 1.0),
        "method.kwargs": {"layers": 2, "final_norm": False},  # its heads for ResNets
    },
    "byol": {
        **_LARS,
        "optimizer.learning_rate": 0.2,
        "optimizer.weight_decay": 1.5e-6,
    },
    "simsiam": {
        **_SGD,
        "optimizer.learning_rate": 0.05,
        "augmentation.crop_area": (0.2, 1.0),
    },
    "barlow_twins": {
        **_LARS,
        "optimizer.learning_rate": 0.2,
        "optimizer.excluded_rate": 0.0048 / 0.2,
        "optimizer.weight_decay": 1.5e-6,
    },
    "vicreg": {
        **_LARS,
        "optimizer.learning_rate": 0.2,
        "optimizer.weight_decay": 1e-6,
    },
    "emp_ssl": {
        "epochs": 30,
        "batch_size": 100,
        "batchnorm.group_size": 0,
        "more_views": 18,  # 20 patches of a quarter of the image
        "augmentation.crop_area": (0.25, 0.25),
        "augmentation.crop_aspect": (1.0, 1.0),
        "augmentation.jitter_ranges": (0.8, 0.8, 0.8, 0.4),
        "augmentation.blur_probability": 0.1,
        "augmentation.solarize_probability": 0.1,
        "optimizer.name": "lars",
        "optimizer.trust_coefficient": 5e-3,
        "optimizer.clip_trust": True,
        "optimizer.exclude": ("bias", "norm"),
        "optimizer.schedule": "warmup_cosine",
        "optimizer.warmup_fraction": 0.0,
        "optimizer.learning_rate": 0.3 * 256 / 100,
        "optimizer.weight_decay": 1e-4,
    },
}
"""Method -> the keys that it changes in configs/cifar10.py:resnet18."""


def get_config(variant: str = "byol") -> Config:
    """Returns the configuration of a method, or of `smoke`."""
    changes = base.of_variant({**VARIANTS, "smoke": VARIANTS["byol"]}, variant)
    is_smoke = variant == "smoke"
    config = cifar10.get_config("smoke" if is_smoke else "resnet18")
    config.method.name = "byol" if is_smoke else variant
    for key, value in changes.items():
        change(config, key, value)
    return config
