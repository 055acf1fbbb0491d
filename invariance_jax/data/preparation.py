"""Prepares sets without TensorFlow: downloaded sets, arrays, folders of images.

A set is written in the format array_record, into a temporary folder that is renamed to
`DATA_DIR/NAME/VERSION` when it is complete.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from invariance_jax.data import limits
from invariance_jax.data.sets import RESERVED, Split, find, folder_of_sets, user_path


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
) -> Path:
    """Downloads and prepares a set without TensorFlow, unless it is prepared already.

    Args:
      name: one of `NAMES`, or "spirograph" for the images of `data.spirograph`.
      data_dir: folder of the prepared sets; TFDS's default if None. Original files in
        `DATA_DIR/downloads/manual/NAME` are used and not downloaded.
      source: folder that has all original files, if nothing is to be downloaded.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if the name is unknown, or an original file is missing, cannot be
        downloaded or has another content than expected.
      OSError: if the set cannot be written.
    """
    root = folder_of_sets(data_dir)
    if name not in RESERVED:
        raise ValueError(f"name must be one of {', '.join(RESERVED)}; found {name!r}.")
    folder = None if source is None else user_path("source", source)
    if folder is not None and not folder.is_dir():
        raise ValueError(f"source must be a folder; found {os.fspath(folder)!r}.")
    path = find(root, name)
    if path is not None:
        return path
    # Imported here so that a run on Spirograph's targets needs no TFDS.
    from invariance_jax.data import writing

    if name != "spirograph":
        from invariance_jax.data.sources import make_builder

        return writing.write(make_builder(name, data_dir=root, folder=folder))
    from invariance_jax.data.spirograph import Spirograph

    if folder is not None:
        raise ValueError("source is for original files; spirograph is drawn.")
    return writing.write(Spirograph(data_dir=root))


def prepare_arrays(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    train: tuple[ArrayLike, ArrayLike | None],
    test: tuple[ArrayLike, ArrayLike | None],
    class_names: Sequence[str] | None = None,
) -> Path:
    """Turns images in memory into a TFDS set that any image configuration can use.

    The records keep the order of the arrays. An incomplete set is never visible.

    Args:
      name: name of the set: lower-case letters, digits and underscores.
      data_dir: folder of the prepared sets; TFDS's default if None.
      train: images uint8 `[N, H, W, 1 or 3]` and labels `[N]`, integers that cover 0 to
        C - 1; the labels are None for a set without labels.
      test: the same for the test split, with labels that train also has.
      class_names: C names; the numbers 0 to C - 1 if None.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if the name is invalid, reserved or already prepared, the arrays have
        another dtype or shape, disagree, or have invalid labels, or the class names are
        not different lines of text.
      OSError: if the set cannot be written.
    """
    root = folder_for_new(name, data_dir)
    splits = {"train": _check_split("train", train), "test": _check_split("test", test)}
    names = _check_together(splits["train"], splits["test"], class_names)
    from invariance_jax.data import writing

    return writing.write_arrays(name, root, splits, names)


def prepare_folder(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    train: str | os.PathLike[str],
    test: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
) -> Path:
    """Turns a folder of image files, or a folder of class folders, into a TFDS set.

    The classes are in the order of the names of their folders. A folder without class
    folders, or with one, makes a set without labels. If all images are grey, the set
    has one channel. Hidden files are skipped.

    Args:
      name: see `prepare_arrays`.
      data_dir: see `prepare_arrays`.
      train: folder with a folder of image files for each class, or with image files.
      test: the same for the test split, with classes of train; None: a fixed random
        tenth of the images of train becomes the test split.
      image_size: S; scales the shorter side to S pixels (Lanczos) and cuts out the
        centre. If None, all images must have one size.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if the name is invalid, reserved or already prepared; if a class is
        empty or only in test, a file is beside class folders or not an image, or two
        files differ in size (named); if an image has transparent pixels or more than 8
        bits a channel; or if the images do not fit into memory.
      OSError: if the set cannot be written.
    """
    from invariance_jax.data.originals import read_folders

    folder_for_new(name, data_dir)
    images, test_images, class_names = read_folders(
        user_path("train", train),
        None if test is None else user_path("test", test),
        image_size=image_size,
    )
    return prepare_arrays(
        name, data_dir, train=images, test=test_images, class_names=class_names
    )


def folder_for_new(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """Returns the folder of prepared sets, after a check of the name of a new set."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            "name must be lower-case letters, digits and underscores, a letter first; "
            f"found {name!r}."
        )
    if name in RESERVED:
        raise ValueError(f"name {name!r} is taken; reserved: {', '.join(RESERVED)}.")
    root = folder_of_sets(data_dir)
    existing = find(root, name)
    if existing is not None:
        raise ValueError(
            f"name {name!r} is taken by the set in {existing}, which is never "
            "overwritten; give another name or remove it."
        )
    return root


def _check_split(split: str, pair: object) -> Split:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{split} must be (images, labels); found {type(pair)}.")
    images = np.asarray(pair[0])
    has_shape = images.ndim == 4 and images.shape[-1] in (1, 3) and images.size > 0
    if images.dtype != np.uint8 or not has_shape:
        raise ValueError(
            f"images of {split} must be uint8 [N, H, W, 1 or 3], values 0 to 255, and "
            f"not empty; found {images.dtype} {list(images.shape)}."
        )
    if pair[1] is None:
        return Split(images, None)
    labels = np.asarray(pair[1])
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"labels of {split} must be integers [{len(images)}], one per image; found "
            f"{labels.dtype} {list(labels.shape)}."
        )
    if labels.min() < 0:
        raise ValueError(f"labels of {split} must be 0 or more; found {labels.min()}.")
    return Split(images, labels)


def _check_together(
    train: Split, test: Split, class_names: Sequence[str] | None
) -> list[str]:
    """Checks that the splits agree; returns the class names, none without labels."""
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            "images of train and test must have one shape [H, W, C]; found "
            f"{[*train.images.shape[1:]]} and {[*test.images.shape[1:]]}."
        )
    if train.labels is None or test.labels is None:
        annotations = (train.labels, test.labels, class_names)
        if any(annotation is not None for annotation in annotations):
            raise ValueError(
                "labels must be given for both train and test, or for neither and then "
                "without class_names; found some of them only."
            )
        return []
    largest = int(train.labels.max())
    num_classes = largest + 1 if class_names is None else len(class_names)
    if not largest < num_classes or num_classes < 2:
        raise ValueError(
            "there must be 2 classes or more, and labels of train less than their "
            f"number; found {num_classes} classes and the label {largest}."
        )
    present = np.unique(train.labels)
    if len(present) < num_classes:
        # These first numbers must include missing ones; num_classes may be huge.
        first = np.arange(min(num_classes, len(present) + 5))
        missing = np.setdiff1d(first, present)[:5].tolist()
        raise ValueError(
            f"labels of train must cover the classes 0 to {num_classes - 1}; there is "
            f"no example of {num_classes - len(present)} of them, such as {missing}."
        )
    unknown = np.setdiff1d(test.labels, present)
    if len(unknown):
        raise ValueError(
            f"labels of test must be among those of train, 0 to {num_classes - 1}; "
            f"found {len(unknown)} others, such as {unknown[:5].tolist()}."
        )
    numbers = [str(number) for number in range(num_classes)]
    return limits.class_names(numbers if class_names is None else class_names)
