"""Reads folders of image files into arrays."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from invariance_jax.arguments import check_integer
from invariance_jax.data import decoding, listing, records
from invariance_jax.data import limits as checks
from invariance_jax.data.listing import ImageFile
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
    splits = {"train": _shuffled(train)}
    if test is None:
        num_test = -(-len(splits["train"]) // 10)
        rest, tenth = splits["train"][num_test:], splits["train"][:num_test]
        splits = {"train": rest, "test": tenth}
    else:
        splits["test"] = _shuffled(test)
    names, num_train = listing.class_names(splits), len(splits["train"])
    images = _read_images(
        [Path(image.file) for part in splits.values() for image in part], image_size
    )
    train_split, test_split = (
        Split(pixels, listing.labels_of(splits[split], names))
        for split, pixels in zip(splits, np.split(images, [num_train]), strict=True)
    )
    return train_split, test_split, names or None


def _shuffled(folder: Path) -> list[ImageFile]:
    """Returns the images in a fixed random order: the first ones must mix classes."""
    images = listing.list_folder(folder, may_be_empty=False)
    order = np.random.RandomState(0).permutation(len(images))
    return [images[index] for index in order]


def _read_images(files: list[Path], image_size: int | None) -> np.ndarray:
    """Returns the images uint8 `[N, H, W, 3]`, or `[N, H, W, 1]` if all are grey."""
    height = width = image_size or 0
    if image_size is None:
        width, height = _read_image(files[0], None).size
    description = f"{len(files)} images of {height} x {width} pixels"
    checks.memory(description, len(files) * height * width * 3)
    images = np.empty((len(files), height, width, 3), np.uint8)
    is_grey, sizes = np.empty(len(files), bool), [(height, width)] * len(files)

    def read(index: int) -> None:
        image = _read_image(files[index], image_size)
        sizes[index] = image.height, image.width
        if sizes[index] == (height, width):
            images[index] = np.asarray(image.convert("RGB"))
        is_grey[index] = image.mode == "L"

    records.for_each(read, len(files), "Reading")
    for file, size in zip(files, sizes, strict=True):
        if size != (height, width):
            raise ValueError(
                f"images must have one size, or give image_size: {files[0]} has "
                f"{height} x {width} pixels, {file} has {size[0]} x {size[1]} pixels."
            )
    return images[..., :1] if is_grey.all() else images


def _read_image(path: Path, image_size: int | None) -> Image.Image:
    """Returns an upright L or RGB image, cropped to a square if image_size is given."""
    # Given a path, Pillow memory-maps an uncompressed TIFF and turns it wrongly.
    with (
        decoding.naming(os.fspath(path)),
        path.open("rb") as content,
        Image.open(content) as file,
    ):
        if file.mode[0] in "IF":
            raise ValueError(f"its mode {file.mode} has more than 8 bits")
        if file.has_transparency_data:
            if np.asarray(file.convert("RGBA"))[..., 3].min() < 255:
                raise ValueError("it is transparent; put it on a background")
        decoding.turn(file)
        image = file.convert("L" if file.mode in decoding.GREY_MODES else "RGB")
        if image_size is not None:
            size = (image_size, image_size)
            image = ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)
    return image
