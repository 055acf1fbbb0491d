"""Prepares sets without TensorFlow: known ones, arrays, folders of images.

A set is written in the format array_record, into a temporary folder that is renamed to
`DATA_DIR/NAME/VERSION` when it is complete.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("cifar10", "cifar100", "mnist", "fashion_mnist", "svhn_cropped")
"""The image classification sets that are downloaded and prepared on first use."""

RESERVED = (*NAMES, "spirograph")
"""Names that a user's own set cannot have."""


def folder_of_sets(data_dir: str | os.PathLike[str] | None) -> Path:
    """Returns the folder of the prepared sets.

    Args:
      data_dir: the folder; that of TFDS if None: the value of `TFDS_DATA_DIR`, or
        `~/tensorflow_datasets`.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def find(root: Path, name: str) -> Path | None:
    """Returns the folder of the highest version of a prepared set, or None.

    Args:
      root: folder of the prepared sets.
      name: `NAME`, `NAME/CONFIGURATION` or either with `:VERSION`.
    """
    name, _, wanted = name.partition(":")
    # The temporary folder of a set that is being written begins with a word.
    number = re.compile(r"\d+\.\d+\.\d+")
    versions = {
        tuple(map(int, path.parent.name.split("."))): path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if number.fullmatch(path.parent.name)
    }
    if wanted:
        return next((p for p in versions.values() if p.name == wanted), None)
    return versions[max(versions)] if versions else None


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | None = None,
) -> Path:
    """Downloads and prepares a set without TensorFlow; returns at once if it is there.

    Args:
      name: one of `NAMES`, or "spirograph" for the images of `data.spirograph`.
      data_dir: folder of the prepared sets; that of TFDS if None. Original files that
        lie in `DATA_DIR/downloads/manual/NAME` are not downloaded.
      source: folder of all original files; nothing is downloaded then.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if the name is unknown, or an original file is missing, cannot be
        downloaded or is another one than expected.
    """
    root = folder_of_sets(data_dir)
    if name not in RESERVED:
        raise ValueError(f"name must be one of {', '.join(RESERVED)}; found {name!r}.")
    if source is not None and not Path(source).expanduser().is_dir():
        raise ValueError(f"source must be a folder; found {os.fspath(source)!r}.")
    path = find(root, name)
    if path is None:
        from invariance_jax.data import records

        builder = _builder(name, root, source)
        records.write(builder)
        path = Path(builder.data_dir)
    return path


def prepare_arrays(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    class_names: Sequence[str] | None = None,
) -> Path:
    """Turns images in memory into a TFDS set, which any image configuration can name.

    The records keep the order of the arrays. The set appears when it is complete.

    Args:
      name: name of the set: lower-case letters, digits and underscores.
      data_dir: folder of the prepared sets; that of TFDS if None.
      train: images uint8 `[N, H, W, 1 or 3]` and labels `[N]`, integers that cover 0 to
        C - 1.
      test: the same of the test split, labels among those of train.
      class_names: C names; the numbers if None.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if the name is invalid, taken or already prepared, or the arrays have
        another dtype or shape, disagree, or have invalid labels.
    """
    from invariance_jax.data import arrays

    root = _folder_for_new(name, data_dir)
    arrays.write(name, root, {"train": train, "test": test}, class_names)
    return root / name / arrays.VERSION


def prepare_folder(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    *,
    train: str | os.PathLike[str],
    test: str | os.PathLike[str],
    image_size: int | None = None,
) -> Path:
    """Turns folders of class folders of image files into a TFDS set.

    The classes are in the order of the names of their folders. A set of grey images has
    one channel. Hidden files are left out.

    Args:
      name: see `prepare_arrays`.
      data_dir: see `prepare_arrays`.
      train: folder with a folder of image files for each class.
      test: the same of the test split, with the same classes.
      image_size: S; scales the shorter side to S pixels (Lanczos) and cuts out the
        centre. If None, all images must have one size.

    Returns:
      The folder of the prepared set.

    Raises:
      ValueError: if the name is invalid, taken or already prepared; if the classes
        differ, a class is empty, a file is no image, or two files differ in size
        (named).
    """
    from invariance_jax.data import arrays

    root = _folder_for_new(name, data_dir)
    folders = {"train": Path(train).expanduser(), "test": Path(test).expanduser()}
    splits, class_names = arrays.read_folder(folders, image_size=image_size)
    arrays.write(name, root, splits, class_names)
    return root / name / arrays.VERSION


def _builder(name: str, root: Path, source: str | os.PathLike[str] | None) -> Any:
    # Imported in functions so that a run on Spirograph's targets needs no TFDS.
    if name == "spirograph":
        from invariance_jax.data.spirograph import Spirograph

        if source is not None:
            raise ValueError("source is for original files; spirograph is drawn.")
        return Spirograph(data_dir=root)
    from invariance_jax.data.sources import BUILDERS

    return BUILDERS[name](
        data_dir=root, source=None if source is None else Path(source).expanduser()
    )


def _folder_for_new(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(
            "name must be lower-case letters, digits and underscores, a letter first; "
            f"found {name!r}."
        )
    if name in RESERVED:
        raise ValueError(
            f"name {name!r} is taken; all that are: {', '.join(RESERVED)}."
        )
    root = folder_of_sets(data_dir)
    existing = find(root, name)
    if existing is not None:
        raise ValueError(
            f"name {name!r} is taken by the set in {existing}, which is never "
            "overwritten; give another name or remove it."
        )
    return root
