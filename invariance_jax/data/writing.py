"""Writes sets of images in the format of TFDS, without TensorFlow.

TFDS needs TensorFlow to encode an array, but not for an image that is a PNG file
already, and not to write and read the format array_record.
"""

import contextlib
import functools
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.core import dataset_info, naming, shuffle
from tensorflow_datasets.core import splits as tfds_splits
from tensorflow_datasets.core.utils import temporary_assignment, tqdm_utils
from tensorflow_datasets.proto import tf_example_pb2

from invariance_jax.data import limits, records
from invariance_jax.data.sets import FORMAT, Color, Split, times_and_sizes
from invariance_jax.data.streams import FileRecords, Pictures, Store, cores

_CHUNK, SHARD_BYTES = 500, 2**28

_ADVICE = ", is writable and is not removed"


@contextlib.contextmanager
def naming_errors(name: str, folder: Path, advice: str) -> Iterator[None]:
    """Turns an error that is no ValueError into an OSError that names a set.

    Several runs may start at once: if the set exists, another one wrote it.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # array_record and TFDS each raise their own errors
        if (folder / "dataset_info.json").exists():
            return
        raise OSError(
            f"{name} was not written to {folder} ({limits.reason(error)}): check that "
            f"the folder has room{advice}."
        ) from error


def write(builder: tfds.core.DatasetBuilder) -> Path:
    """Downloads and prepares a builder's set, unless it exists; returns its folder."""
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with (
        contextlib.redirect_stdout(sys.stderr),
        temporary_assignment(tqdm_utils, "_active", sys.stderr.isatty()),
        # Above this size TFDS would use files on disk, which needs TensorFlow.
        temporary_assignment(shuffle, "MAX_MEM_BUFFER_SIZE", sys.maxsize),
        naming_errors(builder.name, Path(builder.data_dir), _ADVICE),
    ):
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


def write_arrays(
    name: str, root: Path, splits: Mapping[str, Split], class_names: Sequence[str]
) -> Path:
    """Writes a set of images in memory, which keep their order; returns its folder."""
    path, shape = root / name / "1.0.0", splits["train"].images.shape[1:]
    with naming_errors(name, path, _ADVICE):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".incomplete", dir=path.parent) as temporary:
            folder = Path(temporary) / path.name
            folder.mkdir()
            write_set(name, folder, splits, class_names, shape)
            folder.rename(path)
    return path


def write_set(
    name: str,
    folder: Path,
    splits: Mapping[str, FileRecords] | Mapping[str, Split],
    class_names: Sequence[str],
    shape: tuple[int | None, ...],
    *,
    index: bool = False,
) -> None:
    """Writes the records of a set, or an index of its files, and what they hold."""
    template = naming.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, filetype_suffix=FORMAT
    )
    split_infos = [
        tfds_splits.SplitInfo(
            name=split,
            shard_lengths=_write_split(name, split, part, folder, index),
            num_bytes=int(part.sizes.sum()),
            filename_template=template,
        )
        for split, part in splits.items()
    ]
    features = {"image": tfds.features.Image(shape=shape)}
    if class_names:
        features["label"] = tfds.features.ClassLabel(names=class_names)
    mean, std = _moments(splits["train"])
    info = tfds.core.DatasetInfo(
        builder=dataset_info.DatasetIdentity(
            name=name,
            version=tfds.core.Version("1.0.0"),
            data_dir=os.fspath(folder),
            module_name="",
        ),
        description="Prepared by invariance_jax.",
        features=tfds.features.FeaturesDict(features),
        supervised_keys=("image", "label") if class_names else None,
        metadata=tfds.core.MetadataDict(mean=mean, std=std),
    )
    info.set_file_format(FORMAT)
    info.set_splits(tfds_splits.SplitDict(split_infos))
    info.write_to_directory(folder)


def _moments(train: FileRecords | Split) -> tuple[Color, Color]:
    if isinstance(train, Split):
        return records.moments(train.images)
    side, max_corrupt = records.SAMPLED_SIDE, min(len(train), records.SAMPLED) // 2
    store = Store(train, 3, (side, side), max_corrupt, cores(), squashed=True)
    return records.sampled_moments(Pictures(store, np.arange(len(train))))


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


def _write_split(
    name: str, split: str, part: FileRecords | Split, folder: Path, index: bool
) -> list[int]:
    """Writes an index of the images, or copies them into files of records.

    Images in memory become PNG files. Complete files of records are not written again.
    Returns the number of images of each file of records.
    """
    arrays = dict[str, np.ndarray]()
    if part.labels is not None:
        arrays["labels"] = part.labels.astype(np.int32)
    if index and isinstance(part, FileRecords):
        lengths, files = [len(part)], "\0".join(part.files)
        content = np.frombuffer(files.encode("utf-8", "surrogateescape"), np.uint8)
        arrays |= {"files": content, "times": part.times, "places": part.places}
    else:
        stem, shards = f"{name}-{split}.{FORMAT}", _shards(part.sizes)
        lengths = [*map(len, shards)]
        numbers = range(len(shards))
        paths = [folder / f"{stem}-{n:05d}-of-{len(shards):05d}" for n in numbers]
        with ThreadPoolExecutor(cores()) as pool:
            counts = pool.map(functools.partial(_copy, part), shards, paths)
            records.progress(counts, sum(lengths), f"Copying {name} {split}")
        arrays["shards"] = times_and_sizes(paths)
    np.savez(folder / f"{split}.npz", **arrays)  # type: ignore[arg-type]
    return lengths


def _shards(sizes: np.ndarray) -> list[range]:
    """Returns the rows of the images in each file of records; they are consecutive."""
    ends = np.cumsum(sizes)
    count = int(-(-ends[-1] // SHARD_BYTES))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
    edges = sorted({0, *cuts.tolist(), len(sizes)})
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _copy(part: FileRecords | Split, rows: range, path: Path) -> int:
    """Writes some rows to a file of records, if it is missing; returns their number."""
    if path.exists():
        return len(rows)
    temporary = path.with_name(f"{path.name}.tmp")
    if isinstance(part, Split):
        contents = encode(part.images[rows.start : rows.stop])
    else:
        contents = map(part.read, rows)
    writer = ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    try:
        for row, content in zip(rows, contents, strict=True):
            example = tf_example_pb2.Example()
            feature = example.features.feature
            feature["image"].bytes_list.value.append(content)
            if part.labels is not None:
                feature["label"].int64_list.value.append(int(part.labels[row]))
            writer.write(example.SerializeToString())
    finally:
        writer.close()
    temporary.replace(path)
    return len(rows)
