"""Builders that prepare the downloaded sets from their original files.

Each builder is TFDS's own, with the same name, version, features, keys and therefore
order of records. Only the reader of the original files is replaced, because that of
TFDS needs TensorFlow. Deviation: SVHN lacks its split `extra` (1.3 GB).
"""

import contextlib
import gzip
import hashlib
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

import numpy as np
import tensorflow_datasets as tfds
from scipy.io import loadmat
from tensorflow_datasets.core import DatasetBuilder
from tensorflow_datasets.core.download import DownloadManager, checksums, downloader
from tensorflow_datasets.core.utils import temporary_assignment

from invariance_jax.data import limits, writing
from invariance_jax.data.sets import FORMAT

_SPLITS = ("train", "test")

Columns = dict[str, Sequence[object] | np.ndarray]
"""Feature -> its values in the examples of a split; images are uint8 `[N, H, W, C]`."""


class Source(NamedTuple):
    """The original files of a set."""

    home: str  # URL of their folder
    files: tuple[str, ...]
    # (builder, file name -> path, split) -> columns
    read: Callable[[DatasetBuilder, dict[str, Path], str], Columns]
    # Name of a gzip file -> SHA-256 of its decompressed content, to accept files that
    # others have compressed again.
    contents: Mapping[str, str] = {}


def make_builder(name: str, *, data_dir: Path, folder: Path | None) -> DatasetBuilder:
    """Returns a builder that reads the original files of a folder.

    If folder is None, files in `DATA_DIR/downloads/manual` and its subfolder NAME are
    used, and the others are downloaded.
    """
    builder = tfds.builder_cls(name)(data_dir=data_dir, file_format=FORMAT)

    def generators(dl_manager: DownloadManager) -> dict[str, Iterator[object]]:
        paths = _locate(builder, folder, dl_manager)
        return {split: _generate(builder, paths, split) for split in _SPLITS}

    builder._split_generators = generators
    return builder


def _generate(
    builder: DatasetBuilder, paths: dict[str, Path], split: str
) -> Iterator[object]:
    try:
        columns = SOURCES[builder.name].read(builder, paths, split)
    except Exception as error:  # each file format raises its own errors
        raise ValueError(
            f"{', '.join(map(str, paths.values()))}: not as expected of {builder.name} "
            f"({limits.reason(error)}); remove and download again."
        ) from error
    files = writing.encode(np.asarray(columns.pop("image")))
    for index, (file, *row) in enumerate(zip(files, *columns.values(), strict=True)):
        yield index, {"image": file, **dict(zip(columns, row, strict=True))}


def _locate(
    builder: DatasetBuilder, folder: Path | None, dl_manager: DownloadManager
) -> dict[str, Path]:
    """Returns file name -> path of the original files, after checking their hashes."""
    manual = Path(dl_manager.download_dir) / "manual"
    folders = [folder] if folder else [manual / builder.name, manual]
    files = SOURCES[builder.name].files
    paths = {
        file: parent / file
        for parent in reversed(folders)
        for file in files
        if (parent / file).is_file()
    }
    for path in paths.values():
        _verify(builder, path)
    missing = [file for file in files if file not in paths]
    if missing and folder:
        raise ValueError(
            f"{builder.name} needs files that {folder} lacks: {', '.join(missing)}."
        )
    if missing:
        paths |= _download(builder.name, dl_manager, missing, folders[0])
    return paths


def _download(
    name: str, dl_manager: DownloadManager, files: list[str], folder: Path
) -> dict[str, Path]:
    home = SOURCES[name].home
    urls = {file: urljoin(home, file) for file in files}
    try:
        # TFDS's default of eleven attempts takes minutes.
        with temporary_assignment(downloader, "MAX_RETRIES", 1):
            return {k: Path(v) for k, v in dl_manager.download(urls).items()}
    except Exception as error:  # of the network, HTTP or TFDS
        raise ValueError(
            f"{name} cannot be downloaded from {home} ({type(error).__name__}): put "
            f"{', '.join(files)} into {folder}, or run `python -m invariance_jax.data "
            f"{name} --data_dir={folder.parents[2]} --source=FOLDER` with the folder "
            "that has them."
        ) from error


def _verify(builder: DatasetBuilder, path: Path) -> None:
    source = SOURCES[builder.name]
    registered = checksums.get_all_url_infos() | builder.url_infos
    expected = registered[urljoin(source.home, path.name)]
    actual = checksums.compute_url_info(path)
    content = source.contents.get(path.name, "")
    if actual == expected or hash_of_content(path) == content:
        return
    raise ValueError(
        f"{path} is not the original file of {builder.name}: it has "
        f"{int(actual.size)} bytes and SHA-256 {actual.checksum}; expected "
        f"{int(expected.size)} bytes and {expected.checksum}."
    )


def hash_of_content(path: Path) -> str | None:
    """Returns the SHA-256 of a gzip file's decompressed content; None for others."""
    with contextlib.suppress(Exception), gzip.open(path) as file:
        # Hashed in parts, because the content of an unknown file may have any size.
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def _read_cifar(builder: DatasetBuilder, paths: dict[str, Path], split: str) -> Columns:
    """Reads the archive of the binary version; sets the builder's class names."""
    (path,) = paths.values()
    layout, features = builder._cifar_info, builder.info.features
    for key, file in zip(layout.label_keys, layout.label_files, strict=True):
        lines = _read_members(path, [layout.prefix + file]).decode().splitlines()
        features[key].names = [line for line in lines if line]
    files = layout.train_files if split == "train" else layout.test_files
    content = _read_members(path, [layout.prefix + file for file in files])
    keys = layout.label_keys
    data = np.frombuffer(content, np.uint8).reshape(-1, len(keys) + 3 * 32 * 32)
    pixels = data[:, len(keys) :].reshape(-1, 3, 32, 32)
    names = [f"{split}_{index:05d}" for index in range(len(data))]
    columns: Columns = dict(zip(keys, data.T, strict=False))
    return columns | {"image": np.moveaxis(pixels, 1, -1), "id": names}


def _read_members(path: Path, names: list[str]) -> bytes:
    with tarfile.open(path) as archive:
        members = [archive.extractfile(name) for name in names]
        return b"".join(member.read() for member in members if member)


def _idx_names(split: str) -> tuple[str, str]:
    prefix = "train" if split == "train" else "t10k"
    return f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"


def _read_mnist(builder: DatasetBuilder, paths: dict[str, Path], split: str) -> Columns:
    images, labels = (_read_idx(paths[name]) for name in _idx_names(split))
    return {"image": images[..., None], "label": labels}


def _read_idx(path: Path) -> np.ndarray:
    data = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(data, ">u4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def _read_svhn(builder: DatasetBuilder, paths: dict[str, Path], split: str) -> Columns:
    data = loadmat(paths[f"{split}_32x32.mat"])
    # The digit 0 has the label 10.
    labels = data["y"].reshape(-1) % 10
    names = [f"{split}_{index:06d}" for index in range(len(labels))]
    return {"image": np.moveaxis(data["X"], -1, 0), "label": labels, "id": names}


_CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/"
_IDX_FILES = tuple(name for split in _SPLITS for name in _idx_names(split))
# SHA-256: Debian's package dataset-fashion-mnist compressed the content again.
_FASHION_CONTENTS = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)

SOURCES = {
    "cifar10": Source(_CIFAR_HOME, ("cifar-10-binary.tar.gz",), _read_cifar),
    "cifar100": Source(_CIFAR_HOME, ("cifar-100-binary.tar.gz",), _read_cifar),
    "mnist": Source(
        "https://storage.googleapis.com/cvdf-datasets/mnist/", _IDX_FILES, _read_mnist
    ),
    "fashion_mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        _IDX_FILES,
        _read_mnist,
        dict(zip(_IDX_FILES, _FASHION_CONTENTS, strict=True)),
    ),
    "svhn_cropped": Source(
        "http://ufldl.stanford.edu/housenumbers/",
        ("train_32x32.mat", "test_32x32.mat"),
        _read_svhn,
    ),
}
"""Name -> original files of the sets that are prepared without TensorFlow."""
