"""Image sets by name: constants of the downloaded sets, and folders of prepared sets.

The folder of a set is `DATA_DIR/NAME/VERSION`; the highest version is read. A name can
select a configuration and a version as in TFDS: `emnist/letters:3.1.0`.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

FORMAT = "array_record"
"""The format of records, which can be read without TensorFlow."""

Color = tuple[float, float, float]
"""One number for each of three channels, whose values are in [0, 1]."""


class Split(NamedTuple):
    """Images uint8 `[N, H, W, 1 or 3]`, and integer labels `[N]` or None."""

    images: np.ndarray
    labels: np.ndarray | None

    @property
    def sizes(self) -> np.ndarray:
        """Returns the number of bytes of each image."""
        return np.full(len(self.images), self.images[0].size)


def times_and_sizes(paths: Iterable[Path]) -> np.ndarray:
    """Returns the times of change, in seconds, and sizes of the existing files.

    Compare them for equality: a copy that keeps the time of its source may replace a
    file without being newer. Archives and some file systems keep whole seconds only.
    """
    stats = [path.stat() for path in paths if path.exists()]
    return np.array([(s.st_mtime_ns // 10**9, s.st_size) for s in stats], np.int64)


class Description(NamedTuple):
    """Sizes, classes and pixel moments of an image set.

    Attributes:
      name: name of the set, as given.
      image_shape: (H, W, channels), 1 or 3 channels; H and W are 0 if sizes vary.
      num_classes: C; None if the images have no labels.
      num_train: examples of the training split, including the validation examples.
      num_test: examples of the test split.
      mean: means of three channels, values in [0, 1].
      std: standard deviations of three channels, values in [0, 1].
      class_names: C names (0 to C - 1 if the set has no others); () if the images have
        no labels; None if the set is not prepared yet.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int | None
    num_train: int
    num_test: int
    mean: Color
    std: Color
    class_names: tuple[str, ...] | None = None


def _grey(value: float) -> Color:
    return value, value, value


# For CIFAR: the moments of Foster et al. (2021), which differ slightly from those of
# the sets. The others are the moments of all pixels of the training split.
_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2009, 0.1984, 0.2023)
_MNIST = _grey(33.318421449829934 / 255), _grey(78.56748998339798 / 255)
_FASHION = _grey(0.2860405969887955), _grey(0.3530242445149226)
_SVHN = (
    (0.4376821, 0.4437697, 0.47280442),
    (0.19803012, 0.20101562, 0.19703614),
)
_KNOWN = {
    known.name: known
    for known in (
        Description("cifar10", (32, 32, 3), 10, 50_000, 10_000, *_CIFAR10),
        Description("cifar100", (32, 32, 3), 100, 50_000, 10_000, *_CIFAR100),
        Description("mnist", (28, 28, 1), 10, 60_000, 10_000, *_MNIST),
        Description("fashion_mnist", (28, 28, 1), 10, 60_000, 10_000, *_FASHION),
        Description("svhn_cropped", (32, 32, 3), 10, 73_257, 26_032, *_SVHN),
    )
}

NAMES = tuple(_KNOWN)
"""The image classification sets that are downloaded and prepared on first use."""

RESERVED = (*NAMES, "spirograph")
"""Names that a user's own set cannot have."""


def known(name: str) -> Description | None:
    """Returns the constants of a downloaded set, without reading or downloading it.

    Args:
      name: any name.

    Returns:
      The `Description` of one of `NAMES`, without class names; None for other names.
    """
    return _KNOWN.get(name)


def user_path(what: str, path: str | os.PathLike[str]) -> Path:
    """Returns a path with `~` expanded; raises ValueError without a home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{what} is {os.fspath(path)!r}, but there is no home folder ({error}); "
            "give a path without ~."
        ) from error


def folder_of_sets(data_dir: str | os.PathLike[str] | None) -> Path:
    """Returns data_dir as a path; if None, `TFDS_DATA_DIR` or TFDS's default."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return user_path("data_dir", data_dir or default)


def find(root: Path, name: str) -> Path | None:
    """Returns the folder of the highest version of a prepared set, or None."""
    name, _, version = name.partition(":")
    # Temporary folders of sets that are being written have other names.
    versions = {
        tuple(map(int, path.parent.name.split("."))): path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
        and version in ("", path.parent.name)
    }
    return versions[max(versions)] if versions else None
