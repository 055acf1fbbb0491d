"""A narrow ResNet-18 and a ViT-tiny with and without the penalty, on two CPU cores.

    python launch.py --config=configs/spirograph.py:quick --config.steps=300 \
        --config.batch_size=64 --config.encoder.patch_size=8 \
        --config.logging.probe_every_steps=0 --config.evaluation.num_views=1,8 \
        --config.evaluation.train_examples=4000 --config.evaluation.test_examples=2000 \
        --workdir=runs/encoders --sweep=configs/sweeps/encoders.py

For Fashion-MNIST: configs/fashion_mnist.py:quick and --config.encoder.patch_size=7.
Results: configs/README.md.
"""

from configs.sweeps.methods import with_and_without

ENCODERS: dict[str, dict[str, object]] = {
    "ResNet-18, a quarter wide": {"encoder.name": "resnet18", "encoder.width": 16},
    "ViT-tiny": {"encoder.name": "vit_tiny"},
}


def get_sweep() -> dict[str, dict[str, object]]:
    """Returns label -> changed keys; the others are compared to the first."""
    return with_and_without(ENCODERS)
