"""Image augmentation on the device against a pipeline of Pillow in worker processes.

The peer is what data loaders run: for each image a random resized crop (Lanczos), a
flip, brightness, contrast, saturation and hue, grayscale, and normalization, by Pillow
in processes that are kept alive and write into shared memory. Ours is one compiled call
for the batch, from bytes to normalized views; both draw their own random numbers.
"""

import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import shared_memory
from typing import Any

import jax
import numpy as np

from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.transforms import image
from invariance_jax.types import Array

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
STRENGTH, JITTERED, GRAY = 0.5, 0.8, 0.2
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def run(
    *,
    batch_size: int,
    image_size: int,
    workers: int,
    repeats: int,
    min_seconds: float,
) -> list[Comparison]:
    """Returns the times of our augmentation against the peer's.

    Args:
      batch_size: B, images per call.
      image_size: S, pixels per side.
      workers: processes of the peer.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Returns:
      One comparison.

    Raises:
      ValueError: if the mean of the views differs between the two.
    """
    images = draw_images(batch_size, image_size)
    ours = make_ours(images)
    name = f"Pillow, {workers} workers"
    with make_peer(images, workers=workers) as peer:
        check_similar(name, np.asarray(peer()), np.asarray(ours()))
        times = alternate(ours, peer, repeats=repeats, min_seconds=min_seconds)
    return [Comparison("augment", "jitted", name, *times, True, "at least 5")]


def draw_images(batch_size: int, image_size: int) -> np.ndarray:
    """Returns smooth random images.

    Args:
      batch_size: B.
      image_size: S.

    Returns:
      uint8 `[B, S, S, 3]`.
    """
    generator = np.random.default_rng(0)
    coarse = generator.uniform(size=(batch_size, 4, 4, 3))
    repeats = -(-image_size // 4)
    fine = coarse.repeat(repeats, axis=1).repeat(repeats, axis=2)
    noise = generator.uniform(-0.1, 0.1, fine.shape)
    images = np.clip(fine + noise, 0, 1)[:, :image_size, :image_size]
    return (255 * images).astype(np.uint8)


def make_ours(images: np.ndarray) -> Callable[[], Array]:
    """Returns a function that draws and computes new views of the images.

    Args:
      images: uint8 `[B, S, S, 3]`.

    Returns:
      `() -> float32 [B, S, S, 3]`, other views in every call.
    """
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
    on_device, calls = jax.device_put(images), iter(range(2**31))

    @jax.jit
    def views(number: Array) -> Array:
        key = jax.random.fold_in(jax.random.key(0), number)
        drawn = transformation.sample(key, len(images))
        return transformation.apply(on_device, drawn)

    return lambda: views(np.int32(next(calls)))


@contextmanager
def make_peer(
    images: np.ndarray, *, workers: int
) -> Iterator[Callable[[], np.ndarray]]:
    """Yields a function that makes new views with Pillow, in processes of its own.

    Args:
      images: uint8 `[B, S, S, 3]`.
      workers: processes.

    Yields:
      `() -> float32 [B, S, S, 3]`, other views in every call.
    """
    memory = shared_memory.SharedMemory(create=True, size=4 * images.size)
    parts = np.array_split(np.arange(len(images)), workers)
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        workers, context, _attach, (memory.name, images.shape)
    )
    views = np.ndarray(images.shape, np.float32, memory.buf)
    calls = iter(range(2**31))

    def call() -> np.ndarray:
        number = next(calls)
        jobs = [
            executor.submit(_augment_part, images[part], part[0], number)
            for part in parts
        ]
        for job in jobs:
            job.result()
        # NumPy does not keep shared memory from being unmapped.
        return views.copy()

    try:
        yield call
    finally:
        executor.shutdown()
        memory.close()
        memory.unlink()


_shared: dict[str, Any] = {}  # Of a worker process.


def _attach(name: str, shape: tuple[int, ...]) -> None:
    memory = shared_memory.SharedMemory(name)
    _shared["memory"] = memory
    _shared["views"] = np.ndarray(shape, np.float32, memory.buf)


def _augment_part(images: np.ndarray, start: int, seed: int) -> None:
    generator = np.random.default_rng([seed, start])
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    for number, pixels in enumerate(images):
        view = np.asarray(augment(pixels, generator), np.float32) / 255
        _shared["views"][start + number] = (view - mean) / std


def augment(pixels: np.ndarray, generator: np.random.Generator) -> Any:
    """Returns a random view of one image, by Pillow.

    Args:
      pixels: uint8 `[S, S, 3]`.
      generator: draws the parameters.

    Returns:
      A Pillow image of S x S.
    """
    from PIL import Image, ImageEnhance

    size = len(pixels)
    box = _draw_box(size, generator)
    view = Image.fromarray(pixels).crop(box).resize((size, size), Image.LANCZOS)
    if generator.uniform() < 0.5:
        view = view.transpose(Image.FLIP_LEFT_RIGHT)
    if generator.uniform() < JITTERED:
        low, high = 1 - 0.8 * STRENGTH, 1 + 0.8 * STRENGTH
        view = ImageEnhance.Brightness(view).enhance(generator.uniform(low, high))
        view = ImageEnhance.Contrast(view).enhance(generator.uniform(low, high))
        view = ImageEnhance.Color(view).enhance(generator.uniform(low, high))
        view = _turn_hue(view, generator.uniform(-0.2 * STRENGTH, 0.2 * STRENGTH))
    if generator.uniform() < GRAY:
        view = view.convert("L").convert("RGB")
    return view


def _turn_hue(view: Any, turns: float) -> Any:
    from PIL import Image

    hue, saturation, value = view.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(255 * turns)).astype(np.uint8)
    parts = Image.fromarray(turned), saturation, value
    return Image.merge("HSV", parts).convert("RGB")


def _draw_box(size: int, generator: np.random.Generator) -> tuple[int, ...]:
    """Returns left, upper, right and lower of a random crop, whole pixels."""
    for _ in range(10):
        area = size**2 * generator.uniform(*AREA)
        aspect = math.exp(generator.uniform(*np.log(ASPECT)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= size and 0 < height <= size:
            left = int(generator.integers(0, size - width + 1))
            upper = int(generator.integers(0, size - height + 1))
            return left, upper, left + width, upper + height
    return 0, 0, size, size


def check_similar(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Checks that two pipelines make views of the same kind.

    Args:
      name: of the peer.
      found: its views.
      expected: ours.

    Raises:
      ValueError: if shape or dtype differ, or mean or deviation by more than .1.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ValueError(
            f"{name} makes {found.dtype} {found.shape}; expected {expected.dtype} "
            f"{expected.shape}."
        )
    for measure in (np.mean, np.std):
        difference = abs(float(measure(found)) - float(measure(expected)))
        if not difference <= 0.1:
            raise ValueError(
                f"the {measure.__name__} of {name} differs from ours by "
                f"{difference:.2g}; expected at most .1."
            )
