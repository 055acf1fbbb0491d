"""Folders of image files as arrays: which files, and how each is read."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from invariance_jax.arguments import check_integer
from invariance_jax.data import decoding, records
from invariance_jax.data import limits as checks
from invariance_jax.data.sets import Split


def read(
    train: Path, test: Path | None, *, image_size: int | None
) -> tuple[Split, Split, list[str] | None]:
    """Returns the training split, the test split and the names of the classes.

    See `preparation.prepare_folder`. The images are in a fixed random order; without
    class folders there are neither labels nor names.
    """
    if image_size is not None:
        image_size = check_integer("image_size", image_size, least=1)
    names = checks.class_names(_class_names(train))
    if test is not None and names != (others := _class_names(test)):
        raise ValueError(
            f"train and test must have the same class folders; only one of {train} and "
            f"{test} has {min({*names} ^ {*others})!r}."
        )
    files, labels = _list(train, names)
    if test is None:
        count = -(-len(files) // 10)
        files, labels = files[count:] + files[:count], np.roll(labels, -count)
    else:
        test_files, test_labels = _list(test, names)
        files, labels = files + test_files, np.append(labels, test_labels)
        count = len(test_files)
    images, cut = _read_images(files, image_size), len(files) - count
    first, second = (
        Split(images[part], labels[part] if names else None)
        for part in (slice(cut), slice(cut, None))
    )
    return first, second, names or None


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = (entry for entry in entries if not entry.name.startswith("."))
        return sorted(visible, key=lambda entry: entry.name)


def visible_files(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder and of those within it, in order."""
    for entry in _visible(folder):
        if entry.is_dir():
            yield from visible_files(Path(entry))
        else:
            yield Path(entry)


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one of images.")
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def _list(folder: Path, names: list[str]) -> tuple[list[Path], np.ndarray]:
    """Returns the files of a folder and the numbers of their classes."""
    folders = [folder / name for name in names] or [folder]
    classes = [[*visible_files(each)] for each in folders]
    if [] in classes:
        raise ValueError(f"{folders[classes.index([])]} has no images.")
    files = [file for files in classes for file in files]
    labels = np.repeat(np.arange(len(classes)), [*map(len, classes)])
    # A run that uses the first examples only must not meet the first class only.
    order = np.random.RandomState(0).permutation(len(files))
    return [files[index] for index in order], labels[order]


def _read_images(files: list[Path], image_size: int | None) -> np.ndarray:
    """Returns the images uint8 `[N, H, W, 3]`, or `[N, H, W, 1]` if all are grey."""
    height = width = image_size or 0
    if image_size is None:
        width, height = _read_image(files[0], None).size
    what = f"{len(files)} images of {height} x {width} pixels"
    checks.memory(what, len(files) * height * width * 3)
    images = np.empty((len(files), height, width, 3), np.uint8)
    is_grey = np.empty(len(files), bool)

    def read(index: int) -> int:
        image = _read_image(files[index], image_size)
        if image.size != (width, height):
            raise ValueError(
                f"images must have one size, or give image_size: {files[0]} has "
                f"{height} x {width} pixels, {files[index]} has {image.height} x "
                f"{image.width} pixels."
            )
        images[index] = np.asarray(image.convert("RGB"))
        is_grey[index] = image.mode == "L"
        return 1

    with ThreadPoolExecutor() as pool:
        counts = pool.map(read, range(len(files)))
        records.progress(counts, len(files), "Reading")
    return images[..., :1] if is_grey.all() else images


def _read_image(path: Path, image_size: int | None) -> Image.Image:
    """Returns an upright image in the mode L or RGB, scaled and cut to a square."""
    try:
        # By its name Pillow would map a plain TIFF and turn it wrongly.
        with path.open("rb") as content, Image.open(content) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"its mode {file.mode} has more than 8 bits")
            if file.has_transparency_data:
                if np.asarray(file.convert("RGBA"))[..., 3].min() < 255:
                    raise ValueError("it is transparent; put it on a background")
            image = file.convert("L" if file.mode in decoding.GREY_MODES else "RGB")
            image = decoding.turn(file, image)
        if image_size is not None:
            size = (image_size, image_size)
            image = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
    except Exception as error:  # each format of Pillow raises its own
        raise ValueError(
            f"{path} is not an image that can be read ({checks.reason(error)}); mend "
            "or remove it."
        ) from error
    return image
