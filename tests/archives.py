"""Tiny image files, and archives in the official formats as if downloaded."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums, resource

from invariance_jax import data
from invariance_jax.data import streams

SIZES = [(9, 14), (16, 11), (30, 30), (1, 1), (12, 40), (17, 17)]
RANDOM = np.random.default_rng(0)
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def draw(seed, num, shape=(32, 32, 3), num_classes=10):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (num, *shape), dtype=np.uint8)
    return images, np.arange(num) % num_classes


def assert_holds(name, data_dir, split, images, labels):
    """Checks that a split holds the examples, whatever their order."""

    def rows(images, labels):
        labels = np.zeros(len(images)) if labels is None else labels
        pairs = zip(images, labels, strict=True)
        return sorted((int(label), image.tobytes()) for image, label in pairs)

    found, found_labels = data.load_arrays(
        name, split, data_dir=data_dir, validation_examples=0
    )
    assert (found_labels is None) == (labels is None)
    assert rows(found, found_labels) == rows(images, labels)


def image_file(size, mode="RGB", form="JPEG", **options):
    """Returns the file of a smooth random image."""
    noise = RANDOM.integers(0, 256, (3, 3, 3), np.uint8)
    file, picture = io.BytesIO(), Image.fromarray(noise).resize(size[::-1])
    picture.convert(mode).save(file, form, **options)
    return file.getvalue()


def write_files(folder, files):
    """Writes name -> bytes; returns the folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_originals(folder):
    """Writes twelve images of six sizes in two classes; returns the folder."""
    names = (f"{'ab'[number % 2]}/{number:02d}.jpg" for number in range(12))
    sizes = zip(names, 2 * SIZES, strict=True)
    return write_files(folder, {n: image_file(s, quality=95) for n, s in sizes})


def opened(data_dir, split="train", *, size=8, **options):
    """Returns the images of the set "mine", of which nothing is known yet."""
    chosen = {"data_dir": data_dir, "validation_examples": 0, "size": size}
    streams._decoded.cache_clear()
    data.loading._pictures.cache_clear()
    return data.open_pictures("mine", split, **{**chosen, **options})


def cifar_records(images, *labels):
    """Returns the bytes of the official format: labels, then rows of each channel."""
    planes = np.moveaxis(images, -1, 1).reshape(len(images), -1)
    return np.column_stack([*labels, planes]).astype(np.uint8).tobytes()


def write_tar(path, members, mode="w:gz"):
    """Writes name -> bytes; returns the path, which may be an open file."""
    file = {"fileobj" if isinstance(path, io.IOBase) else "name": path}
    with tarfile.open(mode=mode, **file) as archive:
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
