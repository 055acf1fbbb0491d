"""Opens a prepared TFDS set of images, as arrays or as `Pictures`, without TensorFlow.

The sets of `sets.NAMES` are downloaded and prepared on first use. `prepare_arrays` and
`prepare_folder` make a set of a user's own images. Any other TFDS set with a feature
`image` can be read after it was prepared in the format array_record, which needs
TensorFlow once. A set without a feature `label` has no labels.
"""

import contextlib
import functools
import math
import os
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invariance_jax.data import limits, sets
from invariance_jax.data.preparation import prepare
from invariance_jax.data.sets import Color, Description, known
from invariance_jax.data.streams import FileRecords, Pictures, Records, Store, cores
from invariance_jax.data.subsets import hold_out
from invariance_jax.data.targets import SPLITS

_MAX_BYTES_FOR_EXACT_MOMENTS = 2**32
"""Larger sets, and sets of several image sizes, get moments of a random sample."""


def describe(
    name: str, *, data_dir: str | os.PathLike[str] | None = None
) -> Description:
    """Returns the sizes, classes and pixel moments of a set; downloads nothing.

    Reads the files of a prepared set; for one of `NAMES` that is not prepared yet,
    returns `known`. The moments are the paper's for CIFAR, and otherwise those of the
    training split: of all pixels, or of a fixed random sample of squashed images if the
    set is large, has several image sizes or was prepared from image files of any size.
    A single channel counts as three equal ones.

    Args:
      name: a prepared set, or one of `NAMES`.
      data_dir: folder of the prepared sets; None: TFDS's default, `TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Returns:
      The `Description`.

    Raises:
      ValueError: if the set does not exist or cannot be read, a split is missing, it
        has no uint8 `image` of 1 or 3 channels, or its `label` is not a class.
    """
    root = sets.folder_of_sets(data_dir)
    known_set = known(name)
    if known_set and sets.find(root, name) is None:
        return known_set
    image_set = _open_set(name, root)
    known_set = known(image_set.name)
    if known_set:
        mean, std = known_set.mean, known_set.std
    else:
        mean, std = image_set.moments or _moments(image_set)
    classes, shape = image_set.class_names, image_set.image_shape
    counts = _num_records(image_set.train), _num_records(image_set.test)
    return Description(name, shape, len(classes) or None, *counts, mean, std, classes)


def load_arrays(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    validation_examples: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the images and labels of a split; decodes once per process.

    The validation split is a fixed random part of the training split, the same for
    every seed: see `subsets.hold_out`. Labels are read first, and stored beside the
    records if their folder is writable.

    Args:
      name: one of `NAMES`, which is prepared if it is not yet, or a prepared set.
      split: one of `SPLITS`.
      data_dir: folder of the prepared sets; TFDS's default if None.
      validation_examples: number of training examples that are held out.

    Returns:
      `(images, labels)`: uint8 `[N, H, W, 1 or 3]`, int32 `[N]`, in the order of the
      records; labels are None if the set has none.

    Raises:
      ValueError: as `describe`; if a set cannot be downloaded, the split is unknown,
        images have several sizes or do not fit into memory, validation_examples is not
        less than the training examples, or a record is corrupt (named).
      OSError: if a set cannot be written.
    """
    image_set, stored_split, rows = _open_split(
        name, split, data_dir, validation_examples, None
    )
    images, labels = _decoded(image_set, stored_split)
    return images[rows], None if labels is None else labels[rows]


def _open_split(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    validation_examples: int,
    size: int | None,
) -> "tuple[_ImageSet, str, np.ndarray | slice]":
    """Returns a set, which is prepared if needed, and the stored split and its rows.

    The rows of the validation split belong to the stored split "train".
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; found {split!r}.")
    root = sets.folder_of_sets(data_dir)
    if name in sets.NAMES:
        prepare(name, data_dir=root)
    image_set = _open_set(name, root)
    if size is None and 0 in image_set.image_shape:
        raise ValueError(
            f"the images of {name} have several sizes; expected images of one size, or "
            "data.store_size, the side of a square that each is squashed to."
        )
    train, validation = hold_out(
        _num_records(image_set.train), validation_examples=validation_examples
    )
    if split == "test":
        return image_set, "test", slice(None)
    return image_set, "train", train if split == "train" else validation


class _ImageSet(NamedTuple):
    """The files of a prepared set and their features; no class names without labels."""

    path: Path
    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train: tuple[Any, ...]  # TFDS's FileInstruction of each file of records
    test: tuple[Any, ...]
    moments: tuple[Color, Color] | None
    written: int  # when, in nanoseconds: caches must not take it for an earlier set

    def stored_arrays(self, split: str) -> dict[str, np.ndarray]:
        """Returns the arrays stored beside the records of a split: labels, an index."""
        path = self.path / f"{split}.npz"
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except Exception as error:  # NumPy and zipfile each raise their own errors
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}); remove the set and "
                "prepare it again."
            ) from error


def _num_records(shards: tuple[Any, ...]) -> int:
    return sum(shard.examples_in_shard for shard in shards)


def _decoded(image_set: _ImageSet, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns all images of a split, which must have one size, and their labels."""
    pictures = _pictures(image_set, split, None, 0, cores())
    images = pictures.in_memory(f"Decoding {image_set.name} {split}").all()
    assert isinstance(images, np.ndarray)
    return images, pictures.labels


@functools.lru_cache(maxsize=8)
def _moments(image_set: _ImageSet) -> tuple[Color, Color]:
    from invariance_jax.data import records

    count = _num_records(image_set.train)
    num_bytes = count * math.prod(image_set.image_shape)
    if 0 < num_bytes <= _MAX_BYTES_FOR_EXACT_MOMENTS:
        return records.moments(_decoded(image_set, "train")[0])
    return records.sampled_moments(
        _pictures(image_set, "train", records.SAMPLED_SIDE, count, cores())
    )


def open_pictures(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    validation_examples: int,
    size: int | None,
    max_corrupt: int = 0,
    threads: int | None = None,
) -> Pictures:
    """Returns the images of a split, which are decoded on demand.

    Args:
      name: see `load_arrays`.
      split: see `load_arrays`.
      data_dir: see `load_arrays`.
      validation_examples: see `load_arrays`.
      size: S, each image is squashed to S x S; None: the images must have one size.
      max_corrupt: number of corrupt records that may each be replaced by the next
        record of the same class in the split.
      threads: number of decoding threads; None: the number of cores.

    Returns:
      `Pictures`, in the order of the records, with labels.

    Raises:
      ValueError: as `load_arrays`, but the images need not fit into memory, and they
        may have several sizes if size is given.
      OSError: if a set cannot be written.
    """
    image_set, stored_split, rows = _open_split(
        name, split, data_dir, validation_examples, size
    )
    threads = threads or cores()
    stored = _pictures(image_set, stored_split, size, max_corrupt, threads)
    return Pictures(stored.store, stored.rows[rows])  # a split of its own


@functools.lru_cache(maxsize=8)
def _pictures(
    image_set: _ImageSet, split: str, size: int | None, max_corrupt: int, threads: int
) -> Pictures:
    """Returns all images of a split; cached, so that corrupt records stay known."""
    shards = image_set.test if split == "test" else image_set.train
    arrays = image_set.stored_arrays(split)
    labels = arrays.get("labels")
    records: Records
    if "places" in arrays:
        files = bytes(arrays["files"]).decode("utf-8", "surrogateescape").split("\0")
        records = FileRecords(files, arrays["times"], arrays["places"], labels)
    else:
        from invariance_jax.data.records import ShardRecords

        found = sets.times_and_sizes(Path(shard.filename) for shard in shards)
        if not np.array_equal(arrays.get("shards", np.nan), found):
            labels = None
        records = shard_records = ShardRecords(shards, labels)
        if labels is None and image_set.class_names:
            title = f"Reading the labels of {image_set.name} {split}"
            num_classes = len(image_set.class_names)
            labels, all_readable = shard_records.read_labels(num_classes, title)
            records.labels = labels
            if all_readable:
                path = image_set.path / f"{split}.npz"
                _store(path, labels=labels, shards=found)
    height, width, channels = image_set.image_shape
    shape, squashed = (size or height, size or width), size is not None
    store = Store(records, channels, shape, max_corrupt, threads, squashed)
    return Pictures(store, np.arange(len(records)))


def _store(path: Path, **arrays: np.ndarray) -> None:
    """Writes arrays beside the records, if the folder is writable."""
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp.npz")
    with contextlib.suppress(OSError):
        try:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _open_set(name: str, root: Path) -> _ImageSet:
    builder, features, metadata = _read_builder(name, root)
    splits = builder.info.splits
    test_name = next((s for s in ("test", "validation") if s in splits), None)
    if "train" not in splits or test_name is None:
        raise ValueError(
            f"{name} must have the splits train and test (or validation); found "
            f"{', '.join(sorted(splits))}."
        )
    train, test = (tuple(splits[s].file_instructions) for s in ("train", test_name))
    mean, std = metadata.get("mean"), metadata.get("std")
    moments = (tuple(mean), tuple(std)) if mean and std else None
    path, (shape, classes) = Path(builder.data_path), _check_features(name, features)
    written = (path / "dataset_info.json").stat().st_mtime_ns
    return _ImageSet(path, builder.name, shape, classes, train, test, moments, written)


def _read_builder(name: str, root: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Returns TFDS's builder of a prepared set, its features and its metadata."""
    path = sets.find(root, name)
    if path is None:
        raise ValueError(_missing_message(name, root))
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(path)
        formats = {format_.value for format_ in builder.info.available_file_formats()}
        if sets.FORMAT in formats:
            builder = tfds.builder_from_directory(path, sets.FORMAT)
        info = builder.info
        features, metadata = dict(info.features.items()), dict(info.metadata or {})
    except Exception as error:  # JSON, protobuf and TFDS each raise their own errors
        raise ValueError(
            f"{path} is not a set of TFDS that can be read ({limits.reason(error)}); "
            "remove it and prepare it again."
        ) from error
    if sets.FORMAT not in formats:
        raise ValueError(
            f"{name} in {path} is in the format {' and '.join(sorted(formats))}, which "
            f"only TensorFlow reads. {_how_to_prepare(name, root / sets.FORMAT)}"
        )
    return builder, features, metadata


def _check_features(
    name: str, features: dict[str, Any]
) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Returns the image shape (0 for sizes that vary) and the class names."""
    import tensorflow_datasets as tfds

    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image):
        raise ValueError(f"{name} must have a feature image; found {features}.")
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"images of {name} must be uint8 with 1 or 3 channels; found "
            f"{image.np_dtype} with {image.shape[-1]}."
        )
    if label is not None and not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"the label of {name} must be a class; found {label}.")
    height, width, channels = image.shape
    names = () if label is None else tuple(label.names)
    return (height or 0, width or 0, channels), names


def _missing_message(name: str, root: Path) -> str:
    files = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    names = sorted({str(file.parents[1].relative_to(root)) for file in files})
    prepared, advice = ", ".join(names) or "no set", _how_to_prepare(name, root)
    return f"{name!r} is not prepared in {root}, which has {prepared}. {advice}"


def _how_to_prepare(name: str, root: Path) -> str:
    if name in sets.RESERVED:
        return f"To prepare it: python -m invariance_jax.data {name} --data_dir={root}"
    return (
        f"From folders or tar files: python -m invariance_jax.data {name} "
        f"--data_dir={root} --train=... [--test=...]; from arrays: "
        "data.prepare_arrays. A set that only TFDS can make needs TensorFlow once: "
        f"tfds build {name} --data_dir={root} --file_format={sets.FORMAT}."
    )
