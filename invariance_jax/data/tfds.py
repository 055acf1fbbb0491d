"""Any TFDS image classification set as arrays, without TensorFlow.

The sets of `preparation.NAMES` are downloaded and prepared on first use; a user's own
images become a set by `prepare_arrays` or `prepare_folder`. Any other TFDS set with an
`image` of one size and a `label` is read once it has been prepared in the format
array_record, which takes TensorFlow that one time.

A set lies in `DATA_DIR/NAME/VERSION`; of several versions the highest is read. A name
may choose a configuration and a version as TFDS does: `emnist/letters:3.1.0`.
"""

import difflib
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invariance_jax.data.preparation import NAMES, find, folder_of_sets, prepare
from invariance_jax.data.subsets import hold_out

FORMAT = "array_record"
"""The format of the records that are read without TensorFlow."""

SPLITS = ("train", "validation", "test")

_Moments = tuple[tuple[float, ...], tuple[float, ...]]

# Where a set has no test split, its validation split is one.
_TEST_SPLITS = ("test", "validation")

# Foster et al. (2021) normalize by these, which are not quite the moments of the sets.
_PAPER_MOMENTS: dict[str, _Moments] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)),
}


class Description(NamedTuple):
    """What a run has to know of an image classification set.

    Attributes:
      name: the name that was asked for.
      image_shape: (H, W, channels), 1 or 3 channels.
      num_classes: C.
      num_train: examples of the training split, with those that validate.
      num_test: examples of the test split.
      mean: of three channels, values in [0, 1].
      std: standard deviation of three channels, values in [0, 1].
      class_names: C names, None if the set has numbers only.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] | None

    @property
    def num_bytes(self) -> int:
        """Bytes of the images of both splits as uint8 arrays."""
        height, width, channels = self.image_shape
        return (self.num_train + self.num_test) * height * width * channels


def describe(
    name: str, *, data_dir: str | os.PathLike[str] | None = None
) -> Description:
    """Returns the sizes, classes and pixel moments of a set.

    The moments are the paper's for CIFAR and otherwise those of all pixels of the
    training split; one channel stands for three equal ones.

    Args:
      name: one of `NAMES`, which is prepared if it is not yet, or a prepared set.
      data_dir: folder of the prepared sets; that of TFDS if None: `TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Returns:
      The `Description`.

    Raises:
      ValueError: if there is no such set, it has no `image` of one size and `label`, or
        it cannot be downloaded or read.
    """
    builder = _open(name, folder_of_sets(data_dir))
    features, splits = builder.info.features, builder.info.splits
    label, metadata = features["label"], builder.info.metadata
    if builder.name in _PAPER_MOMENTS:
        mean, std = _PAPER_MOMENTS[builder.name]
    elif metadata and {"mean", "std"} <= {*metadata.keys()}:
        mean, std = tuple(metadata["mean"]), tuple(metadata["std"])
    else:
        mean, std = _moments(str(builder.data_dir))
    numbers = [str(index) for index in range(label.num_classes)]
    return Description(
        name,
        tuple(features["image"].shape),
        label.num_classes,
        splits["train"].num_examples,
        splits[_test_split(builder)].num_examples,
        mean,
        std,
        None if label.names == numbers else tuple(label.names),
    )


def load_arrays(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    validation_examples: int,
) -> tuple[np.ndarray, np.ndarray]:
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
      records.

    Raises:
      ValueError: as `describe`; if the split is unknown, validation_examples is not
        less than the training examples, or a record is corrupt (named).
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; found {split!r}.")
    builder = _open(name, folder_of_sets(data_dir))
    train, validation = hold_out(
        builder.info.splits["train"].num_examples,
        validation_examples=validation_examples,
    )
    if split == "test":
        return _decoded(str(builder.data_dir), _test_split(builder))
    images, labels = _decoded(str(builder.data_dir), "train")
    chosen = train if split == "train" else validation
    return images[chosen], labels[chosen]


@functools.lru_cache(maxsize=8)
def _decoded(path: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    from invariance_jax.data import records

    builder = tfds.builder_from_directory(path, FORMAT)
    _check_memory(builder, split)
    return records.decode(builder, split)


def _check_memory(builder: Any, split: str) -> None:
    """Refuses a split of which the memory of this machine does not hold two copies."""
    shape = builder.info.features["image"].shape
    size = builder.info.splits[split].num_examples * int(np.prod(shape))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * size > memory:
        raise ValueError(
            f"the {split} images of {builder.name} take {size / 1e9:.3g} GB, more than "
            f"half of the {memory / 1e9:.3g} GB of memory of this machine; prepare "
            "smaller images, with prepare_folder and image_size."
        )


@functools.lru_cache(maxsize=8)
def _moments(path: str) -> _Moments:
    from invariance_jax.data import records

    return records.moments(_decoded(path, "train")[0])


def _open(name: str, root: Path) -> Any:
    """Returns the builder of a set that can be read; prepares it if it is known."""
    path = find(root, name)
    if path is None and name in NAMES:
        path = prepare(name, data_dir=root)
    if path is None:
        raise ValueError(_missing(name, root))
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    formats = {format_.value for format_ in builder.info.available_file_formats()}
    if FORMAT not in formats:
        raise ValueError(
            f"{name} in {path} is in the format {' and '.join(sorted(formats))}, which "
            f"only TensorFlow reads. {_how_to_prepare(name, root / FORMAT)}"
        )
    builder = tfds.builder_from_directory(path, FORMAT)
    _check_features(name, builder)
    return builder


def _how_to_prepare(name: str, root: Path) -> str:
    if name in NAMES:
        return "Give another data_dir: there it is prepared without TensorFlow."
    return (
        "To prepare it in the format array_record takes TensorFlow once: `pip install "
        f"tensorflow`, `tfds build {name} --data_dir={root} --file_format={FORMAT}`; "
        f"then data_dir is {root}."
    )


def _missing(name: str, root: Path) -> str:
    import tensorflow_datasets as tfds

    base = name.split(":")[0]
    known = {*NAMES, *tfds.list_builders(with_community_datasets=False)}
    configurations = sorted(
        f"{base}/{path.parent.parent.name}"
        for path in (root / base).glob("*/*/dataset_info.json")
    )
    if base and configurations:
        return (
            f"{name} is prepared in the configurations {', '.join(configurations)}; "
            "name one of them."
        )
    if base == "spirograph":
        return "spirograph has no `label`: it is not an image classification set."
    if base.split("/")[0] in known:
        return f"{name} is not prepared in {root}. {_how_to_prepare(name, root)}"
    prepared = {path.parents[1].name for path in root.glob("*/*/dataset_info.json")}
    close = difflib.get_close_matches(name, sorted(known | prepared), n=1, cutoff=0.0)
    return (
        f"{name!r} is neither a set that is prepared in {root} nor one of TFDS; the "
        f"closest is {' '.join(close)}."
    )


def _check_features(name: str, builder: Any) -> None:
    import tensorflow_datasets as tfds

    features, splits = builder.info.features, builder.info.splits
    image = features["image"] if "image" in features else None
    label = features["label"] if "label" in features else None
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise ValueError(
            f"{name} must have the features image and label, a class; found "
            f"{', '.join(sorted(features))}."
        )
    if "train" not in splits or not {*_TEST_SPLITS} & {*splits}:
        raise ValueError(
            f"{name} must have the splits train and test (or validation); found "
            f"{', '.join(sorted(splits))}."
        )
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"images of {name} must be uint8 with 1 or 3 channels; found "
            f"{image.np_dtype} with {image.shape[-1]}."
        )
    if None in image.shape:
        from invariance_jax.data import records

        sizes = [f"{rows} x {columns}" for rows, columns in records.sizes(builder)]
        raise ValueError(
            f"images of {name} must have one size; found {', '.join(sizes[:5])} "
            "pixels, among others. Write them as files and use prepare_folder with "
            "image_size."
        )


def _test_split(builder: Any) -> str:
    return next(split for split in _TEST_SPLITS if split in builder.info.splits)
