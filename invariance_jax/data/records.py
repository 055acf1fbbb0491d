"""Reads the images in the records of a TFDS set, without TensorFlow."""

import bisect
import functools
import itertools
import math
import resource
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.core.utils.shard_utils import FileInstruction
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from invariance_jax.data import limits
from invariance_jax.data.sets import Color
from invariance_jax.data.streams import Corrupt, Pictures, cores

_CHUNK = 500

_AT_ONCE = 20
"""Calls of a thread between updates of a progress bar."""

SAMPLED, SAMPLED_SIDE = 2000, 64
"""Number of images in the sample for moments, and side that they are squashed to."""


def for_each(work: Callable[[int], object], count: int, title: str) -> None:
    """Calls work(0), ..., work(count - 1) in threads; shows a progress bar.

    ValueErrors are raised together at the end, with their first few messages.
    """
    faults = dict[int, str]()

    def work_on(part: range) -> int:
        for index in part:
            try:
                work(index)
            except ValueError as error:
                faults[index] = str(error)
        return len(part)

    parts = [range(count)[i : i + _AT_ONCE] for i in range(0, count, _AT_ONCE)]
    with ThreadPoolExecutor(cores()) as pool:
        progress(pool.map(work_on, parts), count, title)
    if faults:
        messages = dict.fromkeys(faults[index] for index in sorted(faults))
        raise ValueError(limits.some([*messages], between=" "))


def progress(counts: Iterable[int], total: int, title: str) -> None:
    """Consumes the counts of finished images; shows a progress bar on a terminal."""
    with tqdm(desc=title, total=total, unit=" images", disable=None) as bar:
        for count in counts:
            bar.update(count)


def _open_shard(shard: FileInstruction) -> ArrayRecordDataSource:
    try:
        source = ArrayRecordDataSource(shard.filename)
        size = len(source)
    except Exception as error:
        raise ValueError(
            f"{shard.filename} cannot be read as a file of records ("
            f"{limits.reason(error)}); if it is damaged, prepare the set again."
        ) from error
    expected = shard.examples_in_shard
    if size != expected:
        raise ValueError(f"{shard.filename} has {size} records; expected {expected}.")
    return source


class ShardRecords:
    """The image files of a split in files of records; see `streams.Records`."""

    def __init__(self, shards: Sequence[FileInstruction], labels: np.ndarray | None):
        """Stores the shards; a file is opened when it is first read."""
        self._shards, self.labels = shards, labels
        # All files stay open, and the soft limit is often a thousand.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
        sizes = (shard.examples_in_shard for shard in shards)
        self._edges = [0, *itertools.accumulate(sizes)]
        self._open = functools.cache(_open_shard)

    def __len__(self) -> int:
        """Returns the number of records."""
        return self._edges[-1]

    def where(self, index: int) -> str:
        """Returns the file and the number of the record in it, for messages."""
        number, position = self._place(index)
        return f"{self._shards[number].filename}: record {position}"

    def read(self, index: int) -> bytes:
        """Returns the bytes of the image file in a record."""
        return self.example(index)[0]

    def example(self, index: int) -> tuple[bytes, int]:
        """Returns the bytes of the image file in a record, and its label or -1."""
        number, position = self._place(index)
        source = self._open(self._shards[number])
        try:
            record = source[position]
            feature = tf_example_pb2.Example.FromString(record).features.feature
            (content,) = feature["image"].bytes_list.value
            (label,) = feature["label"].int64_list.value or [-1]
        except Exception as error:  # of array_record or protobuf
            raise Corrupt(limits.reason(error)) from error
        return content, label

    def _place(self, index: int) -> tuple[int, int]:
        number = bisect.bisect_right(self._edges, index) - 1
        return number, index - self._edges[number]

    def read_labels(self, num_classes: int, title: str) -> tuple[np.ndarray, bool]:
        """Returns the labels of all records, and whether all records could be read.

        A record that cannot be read gets the label 0.
        """
        labels, unread = np.zeros(len(self), np.int64), list[int]()

        def read(index: int) -> None:
            try:
                labels[index] = self.example(index)[1]
            except Corrupt:
                unread.append(index)

        for_each(read, len(self), title)
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
    """Returns means and standard deviations of 3 channels in [0, 1]; grey: 3 equal."""
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
