"""Operations on photographs against torchvision.

`data/torchvision.npz` holds what torchvision 0.14.1 (torch 1.13.1, float64, but for
what is resampled: float32, and uint8 of Pillow for Lanczos) makes of the two pictures
of scikit-learn, every ninth pixel of 288 x 216. Hue is not among them: here it is the
paper's rotation in YIQ, there one in HSV.
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from invariance_jax.transforms import color, geometry
from invariance_jax.transforms.blur import gaussian_blur

RELEASED = Path(__file__).parent / "data" / "torchvision.npz"
BOX = (4.0, 3.0, 23.0, 18.0)  # top, left, height, width


def each(*row):
    """The same row for both pictures."""
    return jnp.asarray(np.broadcast_to(row, (2, len(row))))


def resized(method):
    return lambda x: geometry.crop_and_resize(x, each(*BOX), size=16, method=method)


OPERATIONS = {
    "brightness": lambda x: color.adjust_brightness(x, each(1.4)[:, 0]),
    "contrast": lambda x: color.adjust_contrast(x, each(0.6)[:, 0]),
    "saturation": lambda x: color.adjust_saturation(x, each(1.6)[:, 0]),
    "gray": color.to_grayscale,
    "solarize": lambda x: color.solarize(x, each(0.5)[:, 0]),
    "blur": lambda x: gaussian_blur(x, each(1.3)[:, 0]),
    "erase": lambda x: geometry.erase(x, each(5, 7, 12, 9), value=(0.2, 0.4, 0.6)),
    "rotation": lambda x: geometry.affine(x, each(np.deg2rad(20), 1, 0, 0, 0)),
    "scaling": lambda x: geometry.affine(x, each(0, 1.25, 0, -2 / 32, 3 / 24)),
    "bilinear": resized("bilinear"),
    "lanczos3": resized("lanczos3"),
}
LUMA = ("contrast", "saturation", "gray")
# The luma there has .2989 of red, here .299; Pillow rounds to 8 bits after each pass.
TOLERANCES = {**dict.fromkeys(LUMA, 1.1e-4), "lanczos3": 1.1 / 255}


@pytest.mark.parametrize("name", OPERATIONS)
def test_photographs_become_those_of_torchvision(name, x64):
    china, flower = load_sample_images().images
    rows = slice(100, 388, 9)
    photos = np.stack([china[rows, 100:316:9], flower[rows, 200:416:9]])
    with np.load(RELEASED) as released:
        expected = released[name]
    if expected.dtype == np.uint8:
        expected = expected / 255
    found = OPERATIONS[name](jnp.asarray(photos / 255))
    limit = TOLERANCES.get(name, 2e-6)
    np.testing.assert_allclose(found, expected, atol=limit, rtol=0)
