"""Reads folders of image files into arrays."""

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

    See `preparation.prepare_folder`. The images are in a fixed random order. Without
    class folders, labels and class names are None.
    """
    if image_size is not None:
        image_size = check_integer("image_size", image_size, least=1)
    names = checks.class_names(_class_names(train))
    if test is not None and names != (test_names := _class_names(test)):
        raise ValueError(
            f"train and test must have the same class folders; only one of {train} and "
            f"{test} has {min({*names} ^ {*test_names})!r}."
        )
    files, labels = _list_files(train, names)
    if test is None:
        num_test = -(-len(files) // 10)
        files, labels = files[num_test:] + files[:num_test], np.roll(labels, -num_test)
    else:
        test_files, test_labels = _list_files(test, names)
        files, labels = files + test_files, np.append(labels, test_labels)
        num_test = len(test_files)
    images, num_train = _read_images(files, image_size), len(files) - num_test
    train_split, test_split = (
        Split(images[part], labels[part] if names else None)
        for part in (slice(num_train), slice(num_train, None))
    )
    return train_split, test_split, names or None


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        visible = (entry for entry in entries if not entry.name.startswith("."))
        return sorted(visible, key=lambda entry: entry.name)


def visible_files(folder: Path) -> Iterator[Path]:
    """Yields the visible files of a folder and its subfolders, sorted by name."""
    for entry in _visible_entries(folder):
        if entry.is_dir():
            yield from visible_files(Path(entry))
        else:
            yield Path(entry)


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected a folder of images.")
    entries = _visible_entries(folder)
    names = [entry.name for entry in entries if entry.is_dir()]
    if names and len(names) < len(entries):
        beside = next(entry.name for entry in entries if not entry.is_dir())
        raise ValueError(
            f"{folder} has the file {beside!r} beside its class folders; expected "
            "either class folders only or images only: move or hide it."
        )
    return names


def _list_files(folder: Path, names: list[str]) -> tuple[list[Path], np.ndarray]:
    """Returns the files of a folder, in a fixed random order, and their labels."""
    folders = [folder / name for name in names] or [folder]
    class_files = [[*visible_files(class_folder)] for class_folder in folders]
    if [] in class_files:
        raise ValueError(f"{folders[class_files.index([])]} has no images.")
    files = [file for files in class_files for file in files]
    labels = np.repeat(np.arange(len(class_files)), [*map(len, class_files)])
    # Shuffled, because a run may use the first examples only: they must mix classes.
    order = np.random.RandomState(0).permutation(len(files))
    return [files[index] for index in order], labels[order]


def _read_images(files: list[Path], image_size: int | None) -> np.ndarray:
    """Returns the images uint8 `[N, H, W, 3]`, or `[N, H, W, 1]` if all are grey."""
    height = width = image_size or 0
    if image_size is None:
        width, height = _read_image(files[0], None).size
    description = f"{len(files)} images of {height} x {width} pixels"
    checks.memory(description, len(files) * height * width * 3)
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
    """Returns an upright L or RGB image, cropped to a square if image_size is given."""
    try:
        # Given a path, Pillow memory-maps an uncompressed TIFF and turns it wrongly.
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
    except Exception as error:  # each format of Pillow raises its own errors
        raise ValueError(
            f"{path} is not an image that can be read ({checks.reason(error)}); repair "
            "or remove it."
        ) from error
    return image
