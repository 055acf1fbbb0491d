"""Views of your own: rotation and Gaussian blur, differentiable and penalized.

    python launch.py --config=configs/examples/rotate_and_blur.py --workdir=runs/rotated

Fashion-MNIST, an MLP, on two CPU cores; no result yet. `--mode=evaluate`, `embed` and
`report` of the run use the same views, as `config.json` names their function.
"""

import jax
import numpy as np

from configs import fashion_mnist
from invariance_jax.settings import Config
from invariance_jax.transforms import Transformation, View, blur, geometry


def get_config(variant: str = "quick") -> Config:
    """Returns a variant of configs/fashion_mnist.py with the views of this file."""
    config = fashion_mnist.get_config(variant)
    config.augmentation.name = "configs.examples.rotate_and_blur:rotate_and_blur"
    config.augmentation.kwargs = {"degrees": 20.0, "sigma": 1.5}
    config.evaluation.families = ("all",)
    return config


def rotate_and_blur(data, *, degrees, sigma) -> Transformation:
    """Returns views rotated by up to +- degrees and blurred by up to sigma pixels."""
    bounds = np.array([[-np.deg2rad(degrees), np.deg2rad(degrees)], [0.0, sigma]])
    low, high = bounds.astype(np.float32).T
    mean, std = (np.float32(values) for values in (data.mean, data.std))

    def sample(key, batch_size):
        draws = jax.random.uniform(key, (batch_size, 2))
        return View(low[None] + draws * (high - low)[None])

    def plain(x):
        images = x.astype(np.float32) / 255
        images = images.repeat(3, axis=3) if images.shape[3] == 1 else images
        return (images - mean[None, None, None]) / std[None, None, None]

    def apply(x, view):
        identity = np.array(geometry.AFFINE_IDENTITY, np.float32)[None]
        motion = jax.numpy.zeros((len(x), 5)).at[:, 0].set(view.alpha[:, 0]) + identity
        images = geometry.affine(x.astype(np.float32) / 255, motion)
        images = blur.gaussian_blur(images, view.alpha[:, 1])
        images = images.repeat(3, axis=3) if images.shape[3] == 1 else images
        return (images - mean[None, None, None]) / std[None, None, None]

    return Transformation(("rotation", "blur"), bounds, sample, apply, plain)
