"""Makes a set of image files and keeps their bytes: copies them or writes an index.

All headers are read first. Then the bytes are copied into files of records, several at
a time; or only an index is written, and the images stay in place.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from invariance_jax.data import decoding, listing, records, writing
from invariance_jax.data.listing import ImageFile
from invariance_jax.data.preparation import folder_for_new
from invariance_jax.data.sets import Color
from invariance_jax.data.streams import FileRecords, Pictures, Store, cores

_HEADER_BYTES = 2**15
_ADVICE = " and is writable; the same command continues"


def prepare_files(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    train: Sequence[str | os.PathLike[str]],
    test: Sequence[str | os.PathLike[str]] = (),
    classes: Sequence[str] | None = None,
    test_classes: Sequence[str] | None = None,
    index: bool = False,
) -> Path:
    """Makes a set of image files of any size and keeps their bytes.

    The classes are those of `listing`; folders without images are left out. A call that
    was interrupted can be repeated; it continues. Without test images, a fixed random
    tenth of train becomes the test split. `classes` are the names of the classes to
    keep, None for all. `test_classes` has the class of each test image, in the order of
    the names of the images; it replaces class folders. With `index` the files stay in
    place and only an index is written.
    """
    root = folder_for_new(name, data_dir)
    if test_classes is not None and not test:
        raise ValueError("test_classes needs test, the images that it is about.")
    images = {"train": listing.list_images(train)}
    if test:
        images["test"] = listing.list_images(test)
        if test_classes is not None:
            images["test"] = _with_classes(images["test"], test_classes)
    if classes is not None:
        images = {split: _select(part, classes) for split, part in images.items()}
    if not test:
        images = _split_off_test(images["train"])
    class_names = listing.class_names(images)
    splits = {split: _records(part, class_names) for split, part in images.items()}
    folder = root / name
    with writing.naming_errors(name, folder, _ADVICE):
        shape = _common_size(name, splits)
        temporary = _begin(folder, splits, index)
        copy = _write_index if index else functools.partial(writing.copy, name)
        counts = {s: copy(s, part, temporary) for s, part in splits.items()}
        about = class_names, (*shape, 3), _moments(splits["train"])
        writing.write_metadata(name, temporary, splits, counts, *about)
        return temporary.rename(folder / "1.0.0")


def _write_index(split: str, part: FileRecords, folder: Path) -> list[int]:
    text = "\0".join(part.files).encode("utf-8", "surrogateescape")
    arrays = {} if part.labels is None else {"labels": part.labels}
    arrays |= {"files": np.frombuffer(text, np.uint8)}
    arrays |= {"times": part.times, "places": part.places}
    np.savez(folder / f"{split}.npz", **arrays)  # type: ignore[arg-type]
    return [len(part)]


def _moments(train: FileRecords) -> tuple[Color, Color]:
    side, max_corrupt = records.SAMPLED_SIDE, min(len(train), records.SAMPLED) // 2
    store = Store(train, 3, (side, side), max_corrupt, cores(), squashed=True)
    return records.sampled_moments(Pictures(store, np.arange(len(train))))


def _with_classes(images: list[ImageFile], classes: Sequence[str]) -> list[ImageFile]:
    if len(classes) != len(images):
        raise ValueError(
            f"test_classes has {len(classes)} names; expected one for each of the "
            f"{len(images)} test images, in the order of the names of the images."
        )
    pairs = zip(images, classes, strict=True)
    return [image._replace(class_name=class_name) for image, class_name in pairs]


def _select(images: list[ImageFile], classes: Sequence[str]) -> list[ImageFile]:
    if not classes:
        raise ValueError("classes has 0 names; expected one or more.")
    missing = sorted({*classes} - {image.class_name for image in images})
    if missing:
        raise ValueError(
            f"there is no image of {len(missing)} of the {len(classes)} classes, such "
            f"as {missing[0]!r}."
        )
    selected = {*classes}
    return [image for image in images if image.class_name in selected]


def _split_off_test(images: list[ImageFile]) -> dict[str, list[ImageFile]]:
    """Returns the training images and a fixed random tenth as test images."""
    order = np.random.RandomState(0).permutation(len(images))
    test, train = np.split(order, [-(-len(images) // 10)])
    parts = {"train": np.sort(train), "test": np.sort(test)}
    return {split: [images[row] for row in rows] for split, rows in parts.items()}


def _records(images: list[ImageFile], class_names: list[str]) -> FileRecords:
    files = list(dict.fromkeys(image.file for image in images))
    number_of = {file: number for number, file in enumerate(files)}
    places = [(number_of[image.file], image.start, image.size) for image in images]
    times = [os.stat(file).st_mtime_ns for file in files]
    labels = listing.labels_of(images, class_names)
    return FileRecords(files, np.array(times, np.int64), np.array(places), labels)


def _begin(folder: Path, splits: dict[str, FileRecords], index: bool) -> Path:
    """Makes the folder for copies of these files, or returns it with what it has.

    Its name is a hash of the files. An index is written at once, and never continued.
    """
    digest = hashlib.sha256(str(writing.SHARD_BYTES).encode())
    for part in splits.values():
        digest.update("\0".join(part.files).encode("utf-8", "surrogateescape"))
        for array in (part.times, part.places, part.labels):
            digest.update(b"" if array is None else array.tobytes())
    stem = "index" if index else digest.hexdigest()[:16]
    temporary = folder / f"{stem}.incomplete"
    others = {*folder.glob("*.incomplete")} - {temporary}
    if others:
        raise ValueError(
            f"{min(others)} was begun from other files or with another --index; remove "
            "it, or give the same."
        )
    temporary.mkdir(parents=True, exist_ok=True)
    return temporary


def _common_size(
    name: str, splits: dict[str, FileRecords]
) -> tuple[int | None, int | None]:
    """Returns the height and width of all images, None if they differ.

    Reads each header, so that files that are no images are named before any is copied.
    """
    sizes, (train, test) = set[tuple[int, int]](), splits.values()

    def check(index: int) -> None:
        part, row = train, index
        if row >= len(train):
            part, row = test, row - len(train)
        sizes.add(_size_from_header(part, row))

    records.for_each(check, len(train) + len(test), f"Checking {name}")
    return sizes.pop() if len(sizes) == 1 else (None, None)


def _size_from_header(part: FileRecords, row: int) -> tuple[int, int]:
    """Returns the size of an image; reads only the first bytes if they are enough."""
    try:
        return decoding.size(part.read(row, _HEADER_BYTES), part.where(row))
    except ValueError:
        return decoding.size(part.read(row), part.where(row))
