"""Images in and out of the records of a TFDS set, without TensorFlow.

TFDS encodes an array with TensorFlow, but takes an image that is a PNG file already;
and it writes and reads the format array_record without TensorFlow.
"""

import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf.message import DecodeError
from PIL import Image
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.utils import temporary_assignment
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

FORMAT = "array_record"

_CHUNK = 500

_MODES = {1: "L", 3: "RGB"}


def write(builder: Any) -> None:
    """Downloads and prepares a set; returns at once if it is prepared.

    The records are written into a temporary folder, which is then renamed.

    Args:
      builder: a `tfds.core.DatasetBuilder`.

    Raises:
      OSError: if the records cannot be written.
    """
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        # Above this size TFDS would spill to the disk through TensorFlow.
        with temporary_assignment(shuffle, "MAX_MEM_BUFFER_SIZE", sys.maxsize):
            builder.download_and_prepare(download_config=config)
    except OSError:
        # Several runs may start at once: another one has finished its renaming.
        if not builder.data_path.exists():
            raise


def encode(images: np.ndarray) -> Iterator[bytes]:
    """Yields each of a set of images as a PNG file.

    Args:
      images: uint8 `[N, H, W, 1 or 3]`.

    Yields:
      The N files, in order.
    """
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    with ThreadPoolExecutor() as pool:
        for files in pool.map(lambda chunk: [*map(_encode, chunk)], chunks):
            yield from files


def _encode(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images and labels of a split of a prepared set.

    Args:
      builder: a builder of a set in the format array_record, whose features `image`, of
        one size, and `label` are as `load_arrays` wants them.
      split: a split of the set.

    Returns:
      `(images, labels)`: uint8 `[N, H, W, 1 or 3]`, int32 `[N]`, in the order of the
      records; read-only.

    Raises:
      ValueError: that names the file and the record that cannot be read.
    """
    features, info = builder.info.features, builder.info.splits[split]
    images = np.empty((info.num_examples, *features["image"].shape), np.uint8)
    labels = np.empty(info.num_examples, np.int32)
    num_classes = features["label"].num_classes

    def read(chunk: tuple[Path, Any, int, int, int]) -> int:
        path, source, start, stop, offset = chunk
        for position, record in zip(
            range(start, stop), _records(path, source, start, stop), strict=True
        ):
            try:
                target = images[offset + position]
                labels[offset + position] = _parse(record, target, num_classes)
            except (OSError, SyntaxError, ValueError, DecodeError) as error:
                raise _corrupt(path, position, error) from error
        return stop - start

    title = f"Decoding {builder.name} {split}"
    bar = tqdm(total=len(labels), desc=title, unit=" images", mininterval=1.0)
    with bar, ThreadPoolExecutor() as pool:
        for count in pool.map(read, _chunks(info.file_instructions)):
            bar.update(count)
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


def _chunks(files: Any) -> Iterator[tuple[Path, Any, int, int, int]]:
    """Yields (file, its reader, first record, end, index of the file's record 0)."""
    offset = 0
    for file in files:
        path, count = Path(file.filename), file.examples_in_shard
        try:
            source = ArrayRecordDataSource(str(path))
            found = len(source)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path} is not a file of records: {error}") from error
        if found != count:
            raise ValueError(f"{path} has {found} records; expected {count}.")
        for start in range(0, count, _CHUNK):
            yield path, source, start, min(start + _CHUNK, count), offset
        offset += count


def _records(path: Path, source: Any, start: int, stop: int) -> list[bytes]:
    try:
        return list(source.__getitems__(range(start, stop)))
    except RuntimeError:
        # One by one, to find the record.
        for position in range(start, stop):
            try:
                source[position]
            except RuntimeError as error:
                raise _corrupt(path, position, error) from error
        raise


def _corrupt(path: Path, position: int, error: Exception) -> ValueError:
    reason = str(error).split("\n")[0] or type(error).__name__
    return ValueError(f"{path}: record {position} is corrupt: {reason}")


def _parse(record: bytes, image: np.ndarray, num_classes: int) -> int:
    """Decodes a record into an image; returns its label."""
    feature = tf_example_pb2.Example.FromString(record).features.feature
    files, numbers = feature["image"].bytes_list.value, feature["label"].int64_list
    if len(files) != 1 or len(numbers.value) != 1:
        raise ValueError("it has no image or no label.")
    (label,) = numbers.value
    if not 0 <= label < num_classes:
        raise ValueError(f"its label is {label}, of {num_classes} classes.")
    with Image.open(io.BytesIO(files[0])) as file:
        found = np.asarray(file.convert(_MODES[image.shape[-1]]))
    if found.shape[:2] != image.shape[:2]:
        raise ValueError(
            f"its image has {found.shape[0]} x {found.shape[1]} pixels; expected "
            f"{image.shape[0]} x {image.shape[1]}."
        )
    image[...] = found.reshape(image.shape)
    return int(label)


def sizes(builder: Any, *, limit: int = 100) -> list[tuple[int, int]]:
    """Returns the sizes of the first images of the training split.

    Args:
      builder: a builder of a set in the format array_record, with a feature `image`.
      limit: number of images that are looked at.

    Returns:
      The different (height, width), in increasing order.
    """
    found = set()
    for path, source, start, stop, _ in _chunks(
        builder.info.splits["train"].file_instructions[:1]
    ):
        for record in _records(path, source, start, min(stop, limit)):
            feature = tf_example_pb2.Example.FromString(record).features.feature
            with Image.open(io.BytesIO(feature["image"].bytes_list.value[0])) as file:
                found.add((file.height, file.width))
        break
    return sorted(found)


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and the standard deviation of each of three channels.

    Args:
      images: uint8 `[N, H, W, 1 or 3]`; one channel stands for three equal ones.

    Returns:
      `(mean, std)`, three numbers each, of values in [0, 1].
    """
    values = np.arange(256) / 255
    found = []
    for channel in range(images.shape[-1]):
        counts = np.zeros(256, np.int64)
        # Counts of the 256 values: exact. In parts, as each is copied as integers.
        for start in range(0, len(images), _CHUNK):
            part = images[start : start + _CHUNK, ..., channel].ravel()
            counts += np.bincount(part, minlength=256)
        mean = counts @ values / counts.sum()
        variance = counts @ np.square(values - mean) / counts.sum()
        found.append((float(mean), float(np.sqrt(variance))))
    mean, std = zip(*(found * 3 if len(found) == 1 else found), strict=True)
    return mean, std
