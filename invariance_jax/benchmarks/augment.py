"""Image augmentation on the device against Pillow in worker processes.

Both make normalized views of a batch of bytes, and draw their own random numbers.
"""

import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
from PIL import Image
from PIL.ImageEnhance import Brightness, Color, Contrast

from invariance_jax.benchmarks.timing import Options, Row, check_same
from invariance_jax.transforms import image
from invariance_jax.types import Array

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
STRENGTH, JITTERED, GRAY = 0.5, 0.8, 0.2
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # our default crop

TOLERANCE = 0.1  # relative, for the standard deviation over all views, which are random


def time_augment(
    options: Options, *, batch_size: int = 512, image_size: int = 32, workers: int = 2
) -> Iterator[Row]:
    """Yields one row: the time of the peer over the time of ours."""
    shape = batch_size, image_size, image_size, 3
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    parts, seeds = np.array_split(images, workers), itertools.count()
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    ours = make_ours(images)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:

        def peer() -> np.ndarray:
            new_seeds = [next(seeds) for _ in parts]
            views = np.concatenate([*pool.map(_augment_all, parts, new_seeds)])
            return (views / np.float32(255) - mean) / std

        check_same("standard deviations", np.std(peer()), np.std(ours()), TOLERANCE)
        case = f"{batch_size} views, {image_size} x {image_size}"
        pillow = f"Pillow, {workers} processes", peer
        yield options.versus(case, pillow, ("ours", ours), "target 5")


def make_ours(images: np.ndarray) -> Callable[[], Array]:
    """Returns `() -> float32 [B, S, S, 3]`, which draws new views in every call."""
    transformation = image.make_transformation(
        source_size=images.shape[1],
        image_size=images.shape[1],
        mean=MEAN,
        std=STD,
        strength=STRENGTH,
        jitter_probability=JITTERED,
        gray_probability=GRAY,
        crop=True,
        flip=True,
    )
    on_device, calls = jax.device_put(images), itertools.count()

    @jax.jit
    def views(seed: Array) -> Array:
        view = transformation.sample(jax.random.key(seed), len(images))
        return transformation.apply(on_device, view)

    return lambda: views(np.int32(next(calls)))


def _augment_all(images: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([np.asarray(augment(pixels, generator)) for pixels in images])


def augment(pixels: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """Returns a random view of one image uint8 `[S, S, 3]`, of the same size."""
    box = _draw_box(len(pixels), generator)
    view = Image.fromarray(pixels).crop(box)
    view = view.resize(pixels.shape[1::-1], Image.Resampling.LANCZOS)
    if generator.uniform() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if generator.uniform() < JITTERED:
        low, high = 1 - 0.8 * STRENGTH, 1 + 0.8 * STRENGTH
        for enhancer in (Brightness, Contrast, Color):
            view = enhancer(view).enhance(generator.uniform(low, high))
        view = _turn_hue(view, generator.uniform(-0.2 * STRENGTH, 0.2 * STRENGTH))
    if generator.uniform() < GRAY:
        view = view.convert("L").convert("RGB")
    return view


def _turn_hue(view: Image.Image, turns: float) -> Image.Image:
    """Returns the image with its hue rotated, in turns of the colour circle."""
    hue, saturation, value = view.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(255 * turns)).astype(np.uint8)
    parts = Image.fromarray(turned), saturation, value
    return Image.merge("HSV", parts).convert("RGB")


def _draw_box(size: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns left, upper, right and lower edge of a random crop, in whole pixels."""
    area = size**2 * generator.uniform(*AREA)
    root = math.sqrt(math.exp(generator.uniform(*np.log(ASPECT))))  # of the aspect
    sides = math.sqrt(area) * root, math.sqrt(area) / root
    width, height = (min(max(round(side), 1), size) for side in sides)
    left, upper = (int(generator.integers(size - n + 1)) for n in (width, height))
    return left, upper, left + width, upper + height
