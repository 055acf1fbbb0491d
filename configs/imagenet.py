"""ImageNet and ImageNet-100: contrastive learning from a stream of JPEG files.

    python -m invariance_jax.data imagenet --train=ILSVRC2012_img_train.tar \\
      --test=ILSVRC2012_img_val.tar --test_classes=validation_classes.txt
    python launch.py --config=configs/imagenet.py[:variant] --workdir=runs/NAME

For the variants of 100 classes, the first command prepares their set if its name is
`imagenet100` and `--classes=FILE` has their names. `--config.data.source=memory` with
`--config.data.store_size=160` fits it into the 40 GB of a GPU. The penalty acts along
the colours. Variants (accuracy of logistic regression, test split, plain images):
  resnet50 (default): SimCLR, ResNet-50, 1000 classes, 200 epochs. Eight GPUs.
    Plain, M = 16: not yet run.
  simclr: ResNet-18, 100 classes, 400 epochs. Two GPUs.
    Plain, M = 16: not yet run (published without penalty: .776).
  moco_v3: the same. Plain, M = 16: not yet run (published without penalty: .804).
  byol: the same. Plain, M = 16: not yet run (published without penalty: .802).
  smoke: a few steps on a few images of any prepared set, for tests.
"""

from configs import base
from invariance_jax.settings import Config


def get_config(variant: str = "resnet50") -> Config:
    """Returns a variant: resnet50, simclr, moco_v3, byol or smoke."""
    variants = {
        "resnet50": _resnet50,
        "simclr": _simclr,
        "moco_v3": _moco_v3,
        "byol": _byol,
        "smoke": _smoke,
    }
    change = base.of_variant(variants, variant)
    config = base.get_config()
    base.of_images(config)
    config.data.source = "stream"
    config.data.store_size = 256
    config.data.image_size = 224
    config.data.channels = 3
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.max_corrupt = 10
    config.precision = "bfloat16"
    config.encoder.stem = "imagenet"
    config.augmentation.recipe = "simclr_imagenet"
    config.penalty.weight = 0.1
    config.penalty.batch_limit = 1.0
    config.checkpoints.every_steps = 5000
    config.logging.probe_every_steps = 5000
    config.evaluation.num_views = (1, 16)
    config.evaluation.batch_size = 128
    change(config)
    return config


def _resnet50(config: Config) -> None:
    config.data.name = "imagenet"
    config.data.num_classes = 1000
    config.data.validation_examples = 10_000
    config.data.train_examples = 1_271_167
    config.data.test_examples = 50_000
    config.encoder.name = "resnet50"
    config.batch_size = 1024
    config.epochs = 200
    config.temperature = 0.1


def _imagenet100(config: Config) -> None:
    config.data.name = "imagenet100"
    config.data.num_classes = 100
    config.data.train_examples = 120_000
    config.data.test_examples = 5000
    config.encoder.name = "resnet18"
    config.batch_size = 256
    config.epochs = 400


def _simclr(config: Config) -> None:
    _imagenet100(config)
    config.temperature = 0.2


def _moco_v3(config: Config) -> None:
    _imagenet100(config)
    config.method.name = "moco_v3"
    config.augmentation.recipe = "byol_imagenet"
    config.temperature = 0.2


def _byol(config: Config) -> None:
    _imagenet100(config)
    config.method.name = "byol"
    config.augmentation.recipe = "byol_imagenet"


def _smoke(config: Config) -> None:
    _imagenet100(config)
    base.smoke_of_resnet(config)
    config.data.store_size = 64
    config.data.source_size = (64, 64)
    config.data.image_size = 32
