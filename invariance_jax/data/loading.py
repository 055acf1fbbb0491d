"""Any TFDS set of images of one size as arrays, without TensorFlow.

The sets of `sets.NAMES` are downloaded and prepared on first use; a user's own images
become a set by `prepare_arrays` or `prepare_folder`. Any other TFDS set with an `image`
of one size is read once it has been prepared in the format array_record, which takes
TensorFlow that one time; without a `label` it is a set without labels.
"""

import functools
import math
import os
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
    Split,
    find,
    folder_of_sets,
    known,
)
from invariance_jax.data.subsets import hold_out

SPLITS = ("train", "validation", "test")


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
    every seed: see `subsets.hold_out`.

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
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; found {split!r}.")
    root = folder_of_sets(data_dir)
    if name in NAMES:
        prepare(name, data_dir=root)
    found = _open(name, root)
    train, validation = hold_out(
        _size(found.train), validation_examples=validation_examples
    )
    if split == "test":
        return _decoded(found, "test")
    images, labels = _decoded(found, "train")
    chosen = train if split == "train" else validation
    return images[chosen], None if labels is None else labels[chosen]


class _Set(NamedTuple):
    """What the files of a prepared set tell; without labels there are no names."""

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    moments: tuple[Color, Color] | None


def _size(shards: tuple[Shard, ...]) -> int:
    return sum(shard.size for shard in shards)


@functools.lru_cache(maxsize=8)
def _decoded(found: _Set, split: str) -> Split:
    from invariance_jax.data import records

    shards = found.test if split == "test" else found.train
    what = f"the {split} images of {found.name}"
    checks.memory(what, _size(shards) * math.prod(found.image_shape))
    return records.decode(
        shards,
        image_shape=found.image_shape,
        num_classes=len(found.class_names) or None,
        title=f"Decoding {found.name} {split}",
    )


@functools.lru_cache(maxsize=8)
def _moments(found: _Set) -> tuple[Color, Color]:
    from invariance_jax.data import records

    return records.moments(_decoded(found, "train").images)


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
    return _Set(builder.name, *_check(name, features), train, tested, moments)


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
    if not isinstance(image, tfds.features.Image) or None in image.shape:
        raise ValueError(
            f"{name} must have a feature image of one size; found {features}. To scale "
            "images, write them as files and use prepare_folder with image_size."
        )
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"images of {name} must be uint8 with 1 or 3 channels; found "
            f"{image.np_dtype} with {image.shape[-1]}."
        )
    if label is not None and not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"the label of {name} must be a class; found {label}.")
    return tuple(image.shape), () if label is None else tuple(label.names)


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
        "Your own images: see prepare_folder and prepare_arrays. To prepare a set of "
        "TFDS in the format array_record takes TensorFlow once: `pip install "
        f"tensorflow`, `tfds build {name} --data_dir={root} --file_format={FORMAT}`; "
        f"then data_dir is {root}."
    )
