"""Tiny archives in the official formats, as if they had been downloaded."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, resource

CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def draw(seed, num, shape=(32, 32, 3), num_classes=10):
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_classes, num)
    return random.integers(0, 256, (num, *shape), dtype=np.uint8), labels


def cifar_records(images, *labels):
    """Returns the bytes of the official format: labels, then rows of each channel."""
    planes = np.moveaxis(images, -1, 1).reshape(len(images), -1)
    return np.column_stack([*labels, planes]).astype(np.uint8).tobytes()


def write_tar(path, members, mode="w:gz"):
    """Writes name -> bytes; returns the path."""
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def cifar10_archive(path, train, test):
    prefix = "cifar-10-batches-bin/"
    names = "\n".join(f"class {i}" for i in range(10)) + "\n\n"
    members = {prefix + "batches.meta.txt": names.encode()}
    images, labels = train
    for i, part in enumerate(np.array_split(np.arange(len(labels)), 5), start=1):
        content = cifar_records(images[part], labels[part])
        members[f"{prefix}data_batch_{i}.bin"] = content
    members[prefix + "test_batch.bin"] = cifar_records(*test)
    write_tar(path, members)


def register_checksums(
    monkeypatch: pytest.MonkeyPatch, name: str, files: dict[str, Path]
) -> None:
    """Registers files as those of the addresses of a set, in this process."""
    infos = {url: checksums.compute_url_info(path) for url, path in files.items()}
    monkeypatch.setattr(tfds.builder_cls(name), "url_infos", infos)


def cache_download(path: Path, data_dir: Path) -> None:
    """Moves an archive of CIFAR-10 to where a finished download of it lies."""
    cached = data_dir / "downloads" / "cifar10"
    cached.mkdir(parents=True)
    info = checksums.compute_url_info(path)
    name = resource.get_dl_fname(CIFAR10, info.checksum)
    os.rename(path, cached / name)
    resource.write_info_file(
        url=CIFAR10,
        path=cached / name,
        dataset_name="cifar10",
        original_fname=path.name,
        url_info=info,
    )
