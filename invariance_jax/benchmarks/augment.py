"""Image augmentation on the device against a pipeline of Pillow in worker processes.

The peer is what data loaders run: for each image a random resized crop (Lanczos), a
flip, brightness, contrast, saturation and hue, grayscale, and normalization, by Pillow
in processes that are kept alive and write into shared memory. Ours is one compiled call
for the batch, from bytes to normalized views; both draw their own random numbers.
"""

import contextlib
import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory

import jax
import numpy as np
from PIL import Image, ImageEnhance

from invariance_jax.benchmarks.timing import Options, Row, check_same
from invariance_jax.transforms import image
from invariance_jax.types import Array

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
STRENGTH, JITTERED, GRAY = 0.5, 0.8, 0.2
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)

TOLERANCE = 0.1
"""Of the standard deviation of all views, which are drawn at random."""


def time_augment(
    options: Options, *, batch_size: int = 512, image_size: int = 32, workers: int = 2
) -> Iterator[Row]:
    """Yields the peer over ours."""
    shape = batch_size, image_size, image_size, 3
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    ours = make_ours(images)
    with make_peer(images, workers) as peer:
        check_same("deviations", np.std(peer()), np.std(ours()), TOLERANCE)
        case = f"{batch_size} views, {image_size} x {image_size}"
        pillow = f"Pillow, {workers} processes", peer
        yield options.versus(case, pillow, ("ours", ours), "target 5")


def make_ours(images: np.ndarray) -> Callable[[], Array]:
    """Returns `() -> float32 [B, S, S, 3]`, other views in every call."""
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
        crop_area=AREA,
        crop_aspect=ASPECT,
    )
    on_device, calls = jax.device_put(images), itertools.count()

    @jax.jit
    def views(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), number)
        return transformation.apply(on_device, transformation.sample(key, len(images)))

    return lambda: views(np.int32(next(calls)))


@contextlib.contextmanager
def make_peer(images: np.ndarray, workers: int) -> Iterator[Callable[[], np.ndarray]]:
    """Yields what `make_ours` returns, by Pillow in processes of its own."""
    memory = SharedMemory(create=True, size=4 * images.size)
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, _attach, (memory.name,))
    views = np.ndarray(images.shape, np.float32, memory.buf)
    parts, calls = np.array_split(images, workers), itertools.count()
    offsets = np.cumsum([0, *(4 * part.size for part in parts[:-1])])

    def call() -> np.ndarray:
        seeds = [next(calls)] * workers
        list(executor.map(_write_views, parts, offsets, seeds))
        # NumPy does not keep shared memory from being unmapped.
        return views.copy()

    try:
        yield call
    finally:
        executor.shutdown()
        memory.close()
        memory.unlink()


_attached: list[SharedMemory] = []  # Of a worker process.


def _attach(name: str) -> None:
    _attached.append(SharedMemory(name))


def _write_views(images: np.ndarray, offset: int, seed: int) -> None:
    generator = np.random.default_rng([seed, offset])
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    views = np.ndarray(images.shape, np.float32, _attached[0].buf, offset)
    for view, pixels in zip(views, images, strict=True):
        view[:] = (
            np.asarray(augment(pixels, generator), np.float32) / 255 - mean
        ) / std


def augment(pixels: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """Returns a random view of one image uint8 `[S, S, 3]`, of the same size."""
    box = _draw_box(len(pixels), generator)
    view = Image.fromarray(pixels).crop(box)
    view = view.resize(pixels.shape[1::-1], Image.Resampling.LANCZOS)
    if generator.uniform() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if generator.uniform() < JITTERED:
        low, high = 1 - 0.8 * STRENGTH, 1 + 0.8 * STRENGTH
        for kind in (
            ImageEnhance.Brightness,
            ImageEnhance.Contrast,
            ImageEnhance.Color,
        ):
            view = kind(view).enhance(generator.uniform(low, high))
        view = _turn_hue(view, generator.uniform(-0.2 * STRENGTH, 0.2 * STRENGTH))
    if generator.uniform() < GRAY:
        view = view.convert("L").convert("RGB")
    return view


def _turn_hue(view: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = view.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(255 * turns)).astype(np.uint8)
    parts = Image.fromarray(turned), saturation, value
    return Image.merge("HSV", parts).convert("RGB")


def _draw_box(size: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Returns left, upper, right and lower of a random crop, whole pixels."""
    for _ in range(10):
        area = size**2 * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(*np.log(ASPECT)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= size and 0 < height <= size:
            left, upper = (
                int(generator.integers(0, size - n + 1)) for n in (width, height)
            )
            return left, upper, left + width, upper + height
    return 0, 0, size, size
