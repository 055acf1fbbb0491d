"""The sets that are prepared without TensorFlow, from their original files.

Each builder is that of TFDS (name, version, features, keys and so the order of its
records) with another reader of the files: TFDS reads them through TensorFlow. None is
registered, so that TFDS goes on to find its own.
"""

import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urljoin

import numpy as np
import tensorflow_datasets as tfds
from scipy.io import loadmat
from tensorflow_datasets.core.download import checksums, downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.utils import temporary_assignment

from invariance_jax.data import records
from invariance_jax.data.idx import hash_of_content, read_idx

_SPLITS = ("train", "test")

_DOWNLOAD_ERRORS = (
    OSError,
    tfds.download.DownloadError,
    NonMatchingChecksumError,
)


class _FromFiles:
    """A builder whose original files are downloaded, or lie in a folder.

    Attributes:
      contents: name of a gzip file -> SHA-256 of what it holds, for files that others
        have compressed again.
    """

    name: str
    url_infos: Any
    contents: ClassVar[dict[str, str]] = {}

    def __init__(self, *, source: Path | None = None, **kwargs: Any) -> None:
        super().__init__(**{"file_format": records.FORMAT, **kwargs})
        self._source = source

    @property
    def urls(self) -> dict[str, str]:
        """Name of each original file -> its address."""
        raise NotImplementedError

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        paths = self._locate(dl_manager)
        self._name_classes(paths)
        return {split: self._generate_examples(paths, split) for split in _SPLITS}

    def _generate_examples(self, paths: dict[str, Path], split: str) -> Iterator[Any]:
        images, columns = self._read(paths, split)
        for index, image in enumerate(records.encode(images)):
            others = {name: column[index] for name, column in columns.items()}
            yield index, {"image": image, **others}

    def _name_classes(self, paths: dict[str, Path]) -> None:
        """Reads the names of the classes, where files hold them."""

    def _read(
        self, paths: dict[str, Path], split: str
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Returns the images uint8 `[N, H, W, C]` and the other features."""
        raise NotImplementedError

    def _locate(self, dl_manager: Any) -> dict[str, Path]:
        manual = Path(dl_manager.download_dir) / "manual"
        folders = [self._source] if self._source else [manual / self.name, manual]
        found, missing = {}, {}
        for file, url in self.urls.items():
            places = [folder / file for folder in folders if (folder / file).is_file()]
            if places:
                self._verify(places[0], url)
                found[file] = places[0]
            else:
                missing[file] = url
        if missing and self._source:
            raise ValueError(
                f"{self.name} is made of files that {self._source} lacks: "
                f"{', '.join(missing)}."
            )
        if missing:
            found |= self._download(dl_manager, missing, folders[0])
        return found

    def _download(
        self, dl_manager: Any, urls: dict[str, str], folder: Path
    ) -> dict[str, Path]:
        try:
            # TFDS would try eleven times, for minutes.
            with temporary_assignment(downloader, "MAX_RETRIES", 1):
                return {k: Path(v) for k, v in dl_manager.download(urls).items()}
        except _DOWNLOAD_ERRORS as error:
            home = urljoin(next(iter(urls.values())), ".")
            raise ValueError(
                f"{self.name} cannot be downloaded from {home} "
                f"({type(error).__name__}): put {', '.join(urls)} into {folder}, or "
                f"run `python -m invariance_jax.data {self.name} "
                f"--data_dir={folder.parents[2]} --source=FOLDER` with the folder that "
                "has them."
            ) from error

    def _verify(self, path: Path, url: str) -> None:
        registered = checksums.get_all_url_infos() | (self.url_infos or {})
        expected, found = registered[url], checksums.compute_url_info(path)
        if found == expected:
            return
        content = self.contents.get(path.name)
        if content is None or content != hash_of_content(path):
            raise ValueError(
                f"{path} is not the original file of {self.name}: it has "
                f"{int(found.size)} bytes and SHA-256 {found.checksum}; expected "
                f"{int(expected.size)} bytes and {expected.checksum}."
            )


class Cifar10(_FromFiles, tfds.image_classification.Cifar10, skip_registration=True):
    """CIFAR-10, read from the archive of its binary version."""

    @property
    def urls(self) -> dict[str, str]:
        """The one archive."""
        url = self._cifar_info.url
        return {url.rsplit("/", 1)[1]: url}

    def _name_classes(self, paths: dict[str, Path]) -> None:
        layout = self._cifar_info
        for key, file in zip(layout.label_keys, layout.label_files, strict=True):
            lines = self._members(paths, [file]).decode().splitlines()
            self.info.features[key].names = [line for line in lines if line]

    def _read(
        self, paths: dict[str, Path], split: str
    ) -> tuple[np.ndarray, dict[str, Any]]:
        layout = self._cifar_info
        files = layout.train_files if split == "train" else layout.test_files
        data = np.frombuffer(self._members(paths, files), np.uint8)
        num_labels = len(layout.label_keys)
        shape = self.info.features["image"].shape
        if len(data) % (num_labels + math.prod(shape)):
            raise ValueError(
                f"{', '.join(files)} of {self.name} must be records of "
                f"{num_labels + math.prod(shape)} bytes; found {len(data)} bytes."
            )
        data = data.reshape(-1, num_labels + math.prod(shape))
        pixels = data[:, num_labels:].reshape(-1, shape[2], *shape[:2])
        columns: dict[str, Any] = dict(
            zip(layout.label_keys, data[:, :num_labels].T, strict=True)
        )
        columns["id"] = [f"{split}_{index:05d}" for index in range(len(data))]
        return np.moveaxis(pixels, 1, -1), columns

    def _members(self, paths: dict[str, Path], files: list[str]) -> bytes:
        (path,) = paths.values()
        try:
            with tarfile.open(path) as archive:
                members = [
                    archive.extractfile(self._cifar_info.prefix + file)
                    for file in files
                ]
                return b"".join(member.read() for member in members if member)
        except (KeyError, tarfile.TarError) as error:
            raise ValueError(f"{path} is not as expected: {error}") from error


class Cifar100(Cifar10, tfds.image_classification.Cifar100, skip_registration=True):
    """CIFAR-100, with coarse labels beside the labels."""


class Mnist(_FromFiles, tfds.image_classification.MNIST, skip_registration=True):
    """MNIST, read from its four idx files."""

    @property
    def urls(self) -> dict[str, str]:
        """Images and labels of both splits."""
        names = [name for split in _SPLITS for name in _idx_names(split)]
        return {name: urljoin(self.URL, name) for name in names}

    def _read(
        self, paths: dict[str, Path], split: str
    ) -> tuple[np.ndarray, dict[str, Any]]:
        images, labels = (read_idx(paths[name]) for name in _idx_names(split))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{self.name} {split} must be images [N, H, W] and labels [N]; found "
                f"{list(images.shape)} and {list(labels.shape)}."
            )
        return images[..., None], {"label": labels}


class FashionMnist(
    Mnist, tfds.image_classification.FashionMNIST, skip_registration=True
):
    """Fashion-MNIST, read from its four idx files."""

    # Debian's dataset-fashion-mnist has compressed the same content again.
    contents = {
        "train-images-idx3-ubyte.gz": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte.gz": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    }


_TfdsSvhn: Any = tfds.builder_cls("svhn_cropped")


class SvhnCropped(_FromFiles, _TfdsSvhn, skip_registration=True):
    """SVHN, cropped digits. Deviation: without the 1.3 GB of the split `extra`."""

    url_infos = _TfdsSvhn.url_infos

    @property
    def urls(self) -> dict[str, str]:
        """A file for each split."""
        home = "http://ufldl.stanford.edu/housenumbers/"
        return {f"{split}_32x32.mat": f"{home}{split}_32x32.mat" for split in _SPLITS}

    def _read(
        self, paths: dict[str, Path], split: str
    ) -> tuple[np.ndarray, dict[str, Any]]:
        data = loadmat(paths[f"{split}_32x32.mat"])
        images = np.moveaxis(data["X"], -1, 0)
        # The digit 0 has the label 10.
        labels = data["y"].reshape(-1) % 10
        names = [f"{split}_{index:06d}" for index in range(len(labels))]
        return images, {"label": labels, "id": names}


BUILDERS = {
    builder.name: builder
    for builder in (Cifar10, Cifar100, Mnist, FashionMnist, SvhnCropped)
}
"""Name -> builder of the sets that are prepared without TensorFlow."""


def _idx_names(split: str) -> tuple[str, str]:
    prefix = "train" if split == "train" else "t10k"
    return f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"
