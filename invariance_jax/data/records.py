"""Writes and reads the images in the records of a TFDS set, without TensorFlow.

TFDS needs TensorFlow to encode an array, but not for an image that is a PNG file
already, and not to write and read the format array_record.
"""

import bisect
import contextlib
import io
import itertools
import math
import resource
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image
from tensorflow_datasets.core import registered, shuffle
from tensorflow_datasets.core.utils import temporary_assignment, tqdm_utils
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from invariance_jax.data import limits as checks
from invariance_jax.data.sets import FORMAT, Color, Shard, Split
from invariance_jax.data.streams import Corrupt, Pictures

_CHUNK = 500

SAMPLED, SAMPLED_SIDE = 2000, 64
"""Number of images in the sample for moments, and side that they are squashed to."""


def about(
    shape: tuple[int | None, ...],
    class_names: Sequence[str],
    moments: tuple[Color, Color],
) -> dict[str, Any]:
    """Returns the features and moments of a set, as arguments of a `DatasetInfo`."""
    features = {"image": tfds.features.Image(shape=shape)}
    if class_names:
        features["label"] = tfds.features.ClassLabel(names=class_names)
    return {
        "features": tfds.features.FeaturesDict(features),
        "supervised_keys": ("image", "label") if class_names else None,
        "metadata": tfds.core.MetadataDict(mean=moments[0], std=moments[1]),
    }


with registered.skip_registration():

    class Builder(tfds.core.GeneratorBasedBuilder):
        """Builder of a set of images, whose records keep the order of the arrays.

        The splits are "train" and "test". Without class names there are no labels.
        """

        VERSION = tfds.core.Version("1.0.0")

        def __init__(
            self,
            name: str,
            data_dir: Path,
            splits: Mapping[str, Split],
            class_names: Sequence[str],
        ) -> None:
            """Stores the splits, which `write` writes."""
            self.name, self._splits, self._class_names = name, splits, class_names
            super().__init__(data_dir=data_dir, file_format=FORMAT)

        def _info(self) -> tfds.core.DatasetInfo:
            images = self._splits["train"].images
            return tfds.core.DatasetInfo(
                builder=self,
                description="Prepared from arrays.",
                disable_shuffling=True,
                **about(images.shape[1:], self._class_names, moments(images)),
            )

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator[object]]:
            return {
                name: self._generate_examples(*split)
                for name, split in self._splits.items()
            }

        def _generate_examples(
            self, images: np.ndarray, labels: np.ndarray | None
        ) -> Iterator[object]:
            for index, image in enumerate(encode(images)):
                label = {} if labels is None else {"label": int(labels[index])}
                yield index, {"image": image, **label}


def write(builder: tfds.core.DatasetBuilder) -> Path:
    """Downloads and prepares a builder's set, unless it exists; returns its folder.

    The records are written into a temporary folder, which is then renamed.
    """
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with (
        contextlib.redirect_stdout(sys.stderr),
        temporary_assignment(tqdm_utils, "_active", sys.stderr.isatty()),
        # Above this size TFDS would use files on disk, which needs TensorFlow.
        temporary_assignment(shuffle, "MAX_MEM_BUFFER_SIZE", sys.maxsize),
    ):
        try:
            builder.download_and_prepare(download_config=config)
        except ValueError:
            raise
        except Exception as error:  # array_record and TFDS each raise their own errors
            # Several runs may start at once: if the set exists, another one wrote it.
            if not builder.data_path.exists():
                raise OSError(
                    f"{builder.name} was not written to {builder.data_dir} "
                    f"({checks.reason(error)}): check that the folder has room, is "
                    "writable and is not removed."
                ) from error
    return Path(builder.data_dir)


def progress(counts: Iterable[int], total: int, title: str) -> None:
    """Consumes the counts of finished images; shows a progress bar on a terminal."""
    with tqdm(desc=title, total=total, unit=" images", disable=None) as bar:
        for count in counts:
            bar.update(count)


def encode(images: np.ndarray) -> Iterator[bytes]:
    """Yields each of the images uint8 `[N, H, W, 1 or 3]` as a PNG file."""
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    with ThreadPoolExecutor() as pool:
        for files in pool.map(lambda chunk: [*map(_encode, chunk)], chunks):
            yield from files


def _encode(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def _open_shard(shard: Shard) -> ArrayRecordDataSource:
    try:
        source = ArrayRecordDataSource(str(shard.path))
        size = len(source)
    except Exception as error:
        raise ValueError(
            f"{shard.path} cannot be read as a file of records ("
            f"{checks.reason(error)}); if it is damaged, prepare the set again."
        ) from error
    if size != shard.size:
        raise ValueError(f"{shard.path} has {size} records; expected {shard.size}.")
    return source


class ShardRecords:
    """The image files of a split in files of records; see `streams.Records`."""

    def __init__(self, shards: Sequence[Shard], labels: np.ndarray | None):
        """Stores the shards; a file is opened when it is first read."""
        self._shards, self.labels = shards, labels
        # All files stay open, and the soft limit is often a thousand.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
        self._ends = [*itertools.accumulate(shard.size for shard in shards)]
        self._lock, self._open = threading.Lock(), dict[int, ArrayRecordDataSource]()

    def __len__(self) -> int:
        """Returns the number of records."""
        return self._ends[-1]

    def where(self, index: int) -> str:
        """Returns the file and the number of the record in it, for messages."""
        number, position = self._place(index)
        return f"{self._shards[number].path}: record {position}"

    def read(self, index: int) -> bytes:
        """Returns the bytes of the image file in a record."""
        return self.example(index)[0]

    def example(self, index: int) -> tuple[bytes, int]:
        """Returns the bytes of the image file in a record, and its label or -1."""
        number, position = self._place(index)
        with self._lock:
            if number not in self._open:
                self._open[number] = _open_shard(self._shards[number])
        try:
            record = self._open[number][position]
            feature = tf_example_pb2.Example.FromString(record).features.feature
            (content,) = feature["image"].bytes_list.value
            (label,) = feature["label"].int64_list.value or [-1]
        except Exception as error:  # of array_record or protobuf
            raise Corrupt(checks.reason(error)) from error
        return content, label

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the number of a record's shard, and its position in the shard."""
        number = bisect.bisect_right(self._ends, index)
        return number, index - self._ends[number] + self._shards[number].size

    def read_labels(self, num_classes: int, title: str) -> tuple[np.ndarray, bool]:
        """Returns the labels of all records, and whether all records could be read.

        A record that cannot be read gets the label 0.
        """
        labels, unread = np.zeros(len(self), np.int64), list[int]()

        def read(start: int) -> int:
            part = range(start, min(start + _CHUNK, len(self)))
            for index in part:
                try:
                    labels[index] = self.example(index)[1]
                except Corrupt:
                    unread.append(index)
            return len(part)

        with ThreadPoolExecutor() as pool:
            counts = pool.map(read, range(0, len(self), _CHUNK))
            progress(counts, len(self), title)
        wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
        if wrong.size:
            raise ValueError(
                f"{self.where(int(wrong[0]))} is corrupt: its label is "
                f"{labels[wrong[0]]}; expected 0 to {num_classes - 1}."
            )
        return labels.astype(np.int32), not unread


def sampled_moments(pictures: Pictures) -> tuple[Color, Color]:
    """Returns `moments` of a fixed random sample of the pictures."""
    rows = np.random.RandomState(0).permutation(len(pictures))[:SAMPLED]
    return moments(jax.tree.leaves(pictures.load(np.sort(rows)))[0])


def moments(images: np.ndarray) -> tuple[Color, Color]:
    """Returns the means and standard deviations of three channels, values in [0, 1].

    A single channel counts as three equal ones.
    """
    values = np.arange(256) / 255
    channels = []
    for channel in range(images.shape[-1]):
        counts = np.zeros(256, np.int64)
        # Counts of the 256 values are exact. By chunks: bincount copies to int64.
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK, ..., channel].ravel()
            counts += np.bincount(part, minlength=256)
        mean = counts @ values / counts.sum()
        variance = counts @ np.square(values - mean) / counts.sum()
        channels.append((float(mean), math.sqrt(variance)))
    red, green, blue = channels * 3 if len(channels) == 1 else channels
    return (red[0], green[0], blue[0]), (red[1], green[1], blue[1])
