"""A user's own images as a TFDS set: from arrays, or from a folder of class folders."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from invariance_jax.data import records

VERSION = "1.0.0"

Split = tuple[np.ndarray, np.ndarray]
"""Images uint8 `[N, H, W, 1 or 3]` and labels `[N]` of a split."""

_GREY_MODES = {"1", "L", "LA"}


class _Arrays(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the arrays of two splits, in their order."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        name: str,
        splits: dict[str, Split],
        class_names: Sequence[str],
        data_dir: Path,
    ) -> None:
        self.name = name
        self._splits = splits
        self._class_names = class_names
        super().__init__(data_dir=data_dir, file_format=records.FORMAT)

    def _info(self) -> Any:
        images, _ = self._splits["train"]
        mean, std = records.moments(images)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Prepared from arrays.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=images.shape[1:]),
                    "label": tfds.features.ClassLabel(names=self._class_names),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(mean=mean, std=std),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        return {
            split: self._generate_examples(*arrays)
            for split, arrays in self._splits.items()
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[Any]:
        for index, image in enumerate(records.encode(images)):
            yield index, {"image": image, "label": int(labels[index])}


def write(
    name: str,
    data_dir: Path,
    splits: dict[str, Any],
    class_names: Sequence[str] | None,
) -> None:
    """Checks and writes arrays; see `preparation.prepare_arrays`.

    Args:
      name: name of the set.
      data_dir: folder of the prepared sets.
      splits: "train" and "test" -> (images, labels).
      class_names: C names, or None.

    Raises:
      ValueError: if an array or the names are invalid.
    """
    arrays = {split: _check_split(split, pair) for split, pair in splits.items()}
    train, test = arrays["train"], arrays["test"]
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            "images of train and test must have one shape [H, W, C]; found "
            f"{list(train[0].shape[1:])} and {list(test[0].shape[1:])}."
        )
    num_classes = int(train[1].max()) + 1 if class_names is None else len(class_names)
    if num_classes < 2:
        raise ValueError(f"there must be 2 classes or more; found {num_classes}.")
    _check_classes(train[1], test[1], num_classes)
    names = [str(i) for i in range(num_classes)] if class_names is None else class_names
    _check_class_names(names)
    records.write(_Arrays(name, arrays, names, data_dir))


def _check_split(split: str, pair: Any) -> Split:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{split} must be (images, labels); found {type(pair)}.")
    images, labels = (np.asarray(array) for array in pair)
    if images.dtype != np.uint8:
        raise ValueError(
            f"images of {split} must be uint8, values 0 to 255; found {images.dtype}."
        )
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"images of {split} must be [N, H, W, 1 or 3] and not empty; found "
            f"{list(images.shape)}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels of {split} must be integers; found {labels.dtype}.")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels of {split} must be [{len(images)}], one per image; found "
            f"{list(labels.shape)}."
        )
    if labels.min() < 0:
        raise ValueError(
            f"labels of {split} must be 0 or more; found {int(labels.min())}."
        )
    return images, labels


def _check_classes(train: np.ndarray, test: np.ndarray, num_classes: int) -> None:
    present = np.unique(train)
    if present[-1] >= num_classes:
        raise ValueError(
            f"labels of train must be less than the {num_classes} classes; found "
            f"{int(present[-1])}."
        )
    if len(present) < num_classes:
        missing = np.setdiff1d(np.arange(num_classes), present)
        raise ValueError(
            f"labels of train must cover the classes 0 to {num_classes - 1}; there is "
            f"no example of {_list(missing)}."
        )
    unknown = np.setdiff1d(test, present)
    if len(unknown):
        raise ValueError(
            f"labels of test must be among those of train, 0 to {num_classes - 1}; "
            f"found {_list(unknown)}."
        )


def _list(values: np.ndarray, limit: int = 5) -> str:
    """Returns the first of the values, and how many there are more."""
    shown = ", ".join(str(value) for value in values[:limit].tolist())
    return shown if len(values) <= limit else f"{shown} and {len(values) - limit} more"


def _check_class_names(names: Sequence[str]) -> None:
    valid = all(isinstance(name, str) and name.strip() for name in names)
    if not valid or len(set(names)) < len(names):
        raise ValueError(f"class_names must be different words; found {list(names)}.")
    if any("\n" in name for name in names):
        raise ValueError(f"class_names must be of one line; found {list(names)}.")


def read_folder(
    folders: dict[str, Path], *, image_size: int | None
) -> tuple[dict[str, Split], list[str]]:
    """Returns the images of folders of class folders, as arrays.

    Args:
      folders: split -> folder; see `preparation.prepare_folder`.
      image_size: see `preparation.prepare_folder`.

    Returns:
      `(splits, class_names)`, the examples of each split in a fixed random order.

    Raises:
      ValueError: if folders, files or sizes are invalid.
    """
    if image_size is not None and not image_size > 0:
        raise ValueError(f"image_size must be positive; found {image_size}.")
    names = {split: _class_names(folder) for split, folder in folders.items()}
    if names["train"] != names["test"]:
        (different, *_) = sorted({*names["train"]} ^ {*names["test"]})
        raise ValueError(
            "train and test must have the same class folders; only one of "
            f"{folders['train']} and {folders['test']} has {different!r}."
        )
    files: list[Path] = []
    labels, counts = [], []
    for folder in folders.values():
        classes = [_files(folder / name) for name in names["train"]]
        labels.append(np.repeat(np.arange(len(classes)), [*map(len, classes)]))
        # A run that uses the first examples only must not meet the first class only.
        order = np.random.RandomState(0).permutation(len(labels[-1]))
        labels[-1] = labels[-1][order]
        found = [file for members in classes for file in members]
        files += [found[index] for index in order]
        counts.append(len(found))
    images = np.split(_read_images(files, image_size), [counts[0]])
    pairs = zip(images, labels, strict=True)
    return dict(zip(folders, pairs, strict=True)), names["train"]


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one of class folders.")
    names = sorted(path.name for path in _visible(folder) if path.is_dir())
    if not names:
        raise ValueError(f"{folder} has no class folders.")
    return names


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _files(folder: Path) -> list[Path]:
    files = sorted(_visible(folder))
    if not files:
        raise ValueError(f"{folder} has no images.")
    return files


def _read_images(files: list[Path], image_size: int | None) -> np.ndarray:
    with ThreadPoolExecutor() as pool:
        images = [*pool.map(lambda file: _read_image(file, image_size), files)]
    for file, image in zip(files, images, strict=True):
        if image.size != images[0].size:
            raise ValueError(
                f"images must have one size, or give image_size: {files[0]} has "
                f"{_pixels(images[0])}, {file} has {_pixels(image)}."
            )
    if all(image.mode == "L" for image in images):
        return np.stack([np.asarray(image)[..., None] for image in images])
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def _read_image(path: Path, image_size: int | None) -> Image.Image:
    try:
        with Image.open(path) as file:
            if file.mode[0] in "IF":
                raise ValueError(f"its mode {file.mode} has more than 8 bits")
            if file.has_transparency_data:
                if file.convert("RGBA").getextrema()[3][0] < 255:
                    raise ValueError("it is transparent; put it on a background")
            upright = ImageOps.exif_transpose(file)
            image = upright.convert("L" if file.mode in _GREY_MODES else "RGB")
    except (
        Image.DecompressionBombError,
        OSError,
        SyntaxError,
        ValueError,
    ) as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
    if image_size is None:
        return image
    size = (image_size, image_size)
    return ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)


def _pixels(image: Image.Image) -> str:
    return f"{image.height} x {image.width} pixels"
