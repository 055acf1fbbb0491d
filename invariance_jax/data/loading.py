"""A TFDS set of images of one size as arrays, without TensorFlow.

The sets of `sets.NAMES` are downloaded and prepared on first use; a user's own images
become a set by `prepare_arrays` or `prepare_folder`. Every other TFDS set with an
`image` of one size is read once it has been prepared in the format array_record, which
takes TensorFlow that one time; without a `label` it is a set without labels.
"""

import contextlib
import functools
import math
import os
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invariance_jax.data import limits as checks
from invariance_jax.data.preparation import prepare
from invariance_jax.data.sets import (
    FORMAT,
    NAMES,
    RESERVED,
    Color,
    Description,
    Shard,
    find,
    folder_of_sets,
    known,
)
from invariance_jax.data.streams import (
    FileRecords,
    Pictures,
    Records,
    Store,
    cores,
)
from invariance_jax.data.subsets import hold_out
from invariance_jax.data.targets import SPLITS

_FEW_BYTES = 2**32
"""Of sets with more bytes, or of several sizes, some squashed images give moments."""


def describe(
    name: str, *, data_dir: str | os.PathLike[str] | None = None
) -> Description:
    """Returns the sizes, classes and pixel moments of a set; downloads nothing.

    Of a prepared set its files tell them, of one of `NAMES` that is not prepared yet
    `known`. The moments are the paper's for CIFAR and otherwise those of all pixels of
    the training split; one channel stands for three equal ones.

    Args:
      name: a prepared set, or one of `NAMES`.
      data_dir: folder of the prepared sets; that of TFDS if None: `TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Returns:
      The `Description`.

    Raises:
      ValueError: if there is no such set, it has no `image` of one size, a `label` that
        is no class, or cannot be read.
    """
    root = folder_of_sets(data_dir)
    fixed = known(name)
    if fixed and find(root, name) is None:
        return fixed
    found = _open(name, root)
    fixed = known(found.name)
    mean, std = (fixed.mean, fixed.std) if fixed else found.moments or _moments(found)
    classes = found.class_names
    sizes = len(classes) or None, _size(found.train), _size(found.test)
    return Description(name, found.image_shape, *sizes, mean, std, classes)


def load_arrays(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    validation_examples: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the images and labels of a split; decodes once per process.

    The validation split is a fixed random part of the training split, the same for
    every seed: see `subsets.hold_out`. Labels are read first, and kept beside the
    records where that is allowed.

    Args:
      name: one of `NAMES`, which is prepared if it is not yet, or a prepared set.
      split: one of `SPLITS`.
      data_dir: folder of the prepared sets; that of TFDS if None.
      validation_examples: number of training examples that are held out.

    Returns:
      `(images, labels)`: uint8 `[N, H, W, 1 or 3]`, int32 `[N]`, in the order of the
      records; labels are None if the set has none.

    Raises:
      ValueError: as `describe`; if a set cannot be downloaded, the split is unknown,
        validation_examples is not less than the training examples, the memory does not
        hold them, or a record is corrupt (named).
      OSError: if a set cannot be written.
    """
    found, disk, rows = _opened(name, split, data_dir, validation_examples, None)
    chosen = _decoded(found, disk)[rows]
    images = chosen.all()
    assert isinstance(images, np.ndarray)
    return images, chosen.labels


def _opened(
    name: str,
    split: str,
    data_dir: str | os.PathLike[str] | None,
    validation_examples: int,
    size: int | None,
) -> "tuple[_Set, str, np.ndarray | slice]":
    """Returns a set, prepared if need be, which of its splits is meant, and its rows.

    Of the set the validation split is a part of train.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; found {split!r}.")
    root = folder_of_sets(data_dir)
    if name in NAMES:
        prepare(name, data_dir=root)
    found = _open(name, root)
    if size is None and 0 in found.image_shape:
        raise ValueError(
            f"the images of {name} have several sizes; expected images of one size, or "
            "data.store_size, the side of a square that each is squashed to."
        )
    train, validation = hold_out(
        _size(found.train), validation_examples=validation_examples
    )
    if split == "test":
        return found, "test", slice(None)
    return found, "train", train if split == "train" else validation


class _Set(NamedTuple):
    """What the files of a prepared set tell; without labels there are no names."""

    path: Path
    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    moments: tuple[Color, Color] | None

    def side(self, split: str) -> dict[str, np.ndarray]:
        """Returns what stands beside the records of a split: labels, an index."""
        path = self.path / f"{split}.npz"
        if not path.exists():
            return {}
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except Exception as error:  # of NumPy and zipfile
            raise ValueError(
                f"{path} cannot be read ({checks.reason(error)}); remove the set and "
                "prepare it again."
            ) from error


def _size(shards: tuple[Shard, ...]) -> int:
    return sum(shard.size for shard in shards)


def _decoded(found: _Set, split: str) -> Pictures:
    """Returns all images of a split, in memory; they have one size."""
    title = f"Decoding {found.name} {split}"
    return _pictures(found, split, None, 0, cores()).in_memory(title)


@functools.lru_cache(maxsize=8)
def _moments(found: _Set) -> tuple[Color, Color]:
    from invariance_jax.data import records

    size = _size(found.train)
    if 0 < size * math.prod(found.image_shape) <= _FEW_BYTES:
        images = _decoded(found, "train").all()
        assert isinstance(images, np.ndarray)
        return records.moments(images)
    return records.sampled_moments(
        _pictures(found, "train", records.SAMPLED_SIDE, size, cores())
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
    """Returns the images of a split, to be decoded when they are asked for.

    Args:
      name: see `load_arrays`.
      split: see `load_arrays`.
      data_dir: see `load_arrays`.
      validation_examples: see `load_arrays`.
      size: S, of a square that each image is squashed to; None: they have one size.
      max_corrupt: records that may be replaced by the next one of their class.
      threads: that decode; None: as many as there are cores.

    Returns:
      `Pictures`, in the order of the records, with labels.

    Raises:
      ValueError: as `load_arrays`, but the memory need not hold them; if images have
        several sizes and size is None.
      OSError: if a set cannot be written.
    """
    found, disk, rows = _opened(name, split, data_dir, validation_examples, size)
    return _pictures(found, disk, size, max_corrupt, threads or cores())[rows]


@functools.lru_cache(maxsize=8)
def _pictures(
    found: _Set, split: str, size: int | None, max_corrupt: int, threads: int
) -> Pictures:
    """Returns all images of a split; what is corrupt in it is remembered here."""
    shards, side = found.test if split == "test" else found.train, found.side(split)
    labels = side.get("labels")
    records: Records
    if "places" in side:
        files = bytes(side["files"]).decode("utf-8", "surrogateescape").split("\0")
        records = FileRecords(files, side["times"], side["places"], labels)
    else:
        from invariance_jax.data.records import ShardRecords

        if labels is not None and _are_of_other_records(labels, found, split, shards):
            labels = None
        records = shard_records = ShardRecords(shards, labels)
        if labels is None and found.class_names:
            title = f"Reading the labels of {found.name} {split}"
            labels, whole = shard_records.read_labels(len(found.class_names), title)
            records.labels = labels
            if whole:
                _keep(found.path / f"{split}.npz", labels)
    height, width, channels = found.image_shape
    shape, squashed = (size or height, size or width), size is not None
    store = Store(records, channels, shape, max_corrupt, threads, squashed)
    return Pictures(store, np.arange(len(records)))


def _are_of_other_records(
    labels: np.ndarray, found: _Set, split: str, shards: tuple[Shard, ...]
) -> bool:
    """Returns whether records came after the labels that stand beside them."""
    read = (found.path / f"{split}.npz").stat().st_mtime
    there = [shard.path for shard in shards if shard.path.exists()]
    newest = max((path.stat().st_mtime for path in there), default=0.0)
    return len(labels) != _size(shards) or newest > read


def _keep(path: Path, labels: np.ndarray) -> None:
    """Writes the labels beside the records, where that is allowed."""
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.tmp.npz")
    with contextlib.suppress(OSError):
        np.savez(temporary, labels=labels)
        temporary.replace(path)


def _open(name: str, root: Path) -> _Set:
    """Returns what the files of a prepared set tell, checked."""
    builder, features, metadata = _read(name, root)
    splits = builder.info.splits
    test = next((split for split in ("test", "validation") if split in splits), None)
    if "train" not in splits or test is None:
        raise ValueError(
            f"{name} must have the splits train and test (or validation); found "
            f"{', '.join(sorted(splits))}."
        )
    train, tested = (
        tuple(Shard(Path(f.filename), f.examples_in_shard) for f in s.file_instructions)
        for s in (splits["train"], splits[test])
    )
    mean, std = metadata.get("mean"), metadata.get("std")
    moments = (tuple(mean), tuple(std)) if mean and std else None
    path = Path(builder.data_path)
    return _Set(path, builder.name, *_check(name, features), train, tested, moments)


def _read(name: str, root: Path) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Returns TFDS's builder of a prepared set, its features and its metadata."""
    path = find(root, name)
    if path is None:
        raise ValueError(_missing(name, root))
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(path)
        formats = {format_.value for format_ in builder.info.available_file_formats()}
        if FORMAT in formats:
            builder = tfds.builder_from_directory(path, FORMAT)
        info = builder.info
        features, metadata = dict(info.features.items()), dict(info.metadata or {})
    except Exception as error:  # of JSON, protobuf or TFDS
        raise ValueError(
            f"{path} is not a set of TFDS that can be read ({checks.reason(error)}); "
            "remove it and prepare it again."
        ) from error
    if FORMAT not in formats:
        raise ValueError(
            f"{name} in {path} is in the format {' and '.join(sorted(formats))}, which "
            f"only TensorFlow reads. {_how_to_prepare(name, root / FORMAT)}"
        )
    return builder, features, metadata


def _check(
    name: str, features: dict[str, Any]
) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Returns the shape of the images and the names of the classes."""
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


def _missing(name: str, root: Path) -> str:
    files = [*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]
    there = sorted({str(file.parents[1].relative_to(root)) for file in files})
    found = ", ".join(there) or "no set"
    how = _how_to_prepare(name, root)
    return f"{name!r} is not prepared in {root}, which has {found}. {how}"


def _how_to_prepare(name: str, root: Path) -> str:
    if name in RESERVED:
        return (
            "To prepare it in a folder without it: python -m invariance_jax.data "
            f"{name} --data_dir={root}"
        )
    return (
        f"From folders or tar files: python -m invariance_jax.data {name} "
        f"--data_dir={root} --train=... [--test=...]; from arrays: "
        "data.prepare_arrays. A set that only TFDS can make takes TensorFlow once: "
        f"tfds build {name} --data_dir={root} --file_format={FORMAT}."
    )
