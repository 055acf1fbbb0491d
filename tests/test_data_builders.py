"""The sets that are prepared from original files: formats, checksums, the command."""

import functools
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import (
    CIFAR10,
    cache_download,
    cifar10_archive,
    cifar_records,
    draw,
    register_checksum,
    write_tar,
)
from scipy.io import savemat
from tensorflow_datasets.core.download import checksums, downloader

from invariance_jax import data
from invariance_jax.data import __main__ as command
from invariance_jax.data import idx, sources

CIFAR100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
SVHN = "http://ufldl.stanford.edu/housenumbers/"
IDX = ("images-idx3-ubyte.gz", "labels-idx1-ubyte.gz")


def rows(images, labels):
    """Returns the examples as a sorted list, whatever their order."""
    return sorted(
        (int(label), image.tobytes())
        for image, label in zip(images, labels, strict=True)
    )


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def write_idx(folder, train, test):
    for split, arrays in (("train", train), ("t10k", test)):
        for name, array in zip(IDX, arrays, strict=True):
            content = idx_bytes(array)
            (folder / f"{split}-{name}").write_bytes(gzip.compress(content, mtime=0))


@pytest.fixture
def register(monkeypatch):
    """Registers the checksum of a file as that of an address."""
    return functools.partial(register_checksum, monkeypatch)


@pytest.fixture
def offline(monkeypatch):
    def refuse(url, **kwargs):
        raise ConnectionError(url)

    monkeypatch.setattr(downloader, "_open_url", refuse)


@pytest.fixture
def cifar10(tmp_path, register):
    """A tiny archive in the official format: (path, train, test)."""
    train, test = draw(0, 23), draw(1, 7)
    path = tmp_path / "original" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    cifar10_archive(path, train, test)
    register(CIFAR10, path)
    return path, train, test


def load(name, split, data_dir, validation_examples=0):
    return data.load_arrays(
        name, split, data_dir=data_dir, validation_examples=validation_examples
    )


def check(name, data_dir, train, test):
    """Checks that a set holds the examples of both splits."""
    assert rows(*load(name, "train", data_dir)) == rows(*train)
    assert rows(*load(name, "test", data_dir)) == rows(*test)


def test_known_names_have_a_builder_of_that_name():
    assert data.NAMES == tuple(sources.BUILDERS)


@pytest.mark.parametrize("name", data.NAMES)
def test_builders_agree_with_those_of_tfds(name, tmp_path):
    ours = sources.BUILDERS[name](data_dir=tmp_path)
    theirs = tfds.builder(name, data_dir=tmp_path)
    assert type(theirs) is not type(ours)
    assert ours.data_dir == theirs.data_dir
    assert ours.info.features.to_json() == theirs.info.features.to_json()
    registered = checksums.get_all_url_infos() | (theirs.url_infos or {})
    assert {registered[url].filename for url in ours.urls.values()} == {*ours.urls}
    assert {**checksums.get_all_url_infos(), **(ours.url_infos or {})} == registered


def test_cifar10_goes_from_the_download_cache_to_arrays(tmp_path, cifar10, offline):
    path, train, test = cifar10
    cache_download(path, tmp_path / "sets")
    check("cifar10", tmp_path / "sets", train, test)


@pytest.mark.parametrize("folder", ["manual", "manual/cifar10"])
def test_cifar10_is_read_from_the_manual_folder(folder, tmp_path, cifar10, offline):
    path, train, test = cifar10
    manual = tmp_path / "sets" / "downloads" / folder
    manual.mkdir(parents=True)
    os.rename(path, manual / path.name)
    check("cifar10", tmp_path / "sets", train, test)


def test_cifar10_is_read_from_a_source_and_described(tmp_path, cifar10, offline):
    path, train, test = cifar10
    found = data.prepare("cifar10", data_dir=tmp_path, source=path.parent)
    assert found == tmp_path / "cifar10" / "3.0.2"
    check("cifar10", tmp_path, train, test)
    described = data.describe("cifar10", data_dir=tmp_path)
    assert described.name == "cifar10"
    assert described.image_shape == (32, 32, 3)
    assert (described.num_classes, described.num_train, described.num_test) == (
        10,
        23,
        7,
    )
    assert described.class_names == tuple(f"class {i}" for i in range(10))
    assert described.mean == (0.4914, 0.4822, 0.4465)
    assert described.std == (0.2023, 0.1994, 0.2010)
    assert described.num_bytes == 30 * 32 * 32 * 3


def test_prepared_set_is_read_by_tfds_itself(tmp_path, cifar10):
    path, train, _ = cifar10
    data.prepare("cifar10", data_dir=tmp_path, source=path.parent)
    source = tfds.data_source("cifar10", split="train", data_dir=tmp_path)
    example = source[0]
    index = int(example["id"].decode().removeprefix("train_"))
    np.testing.assert_array_equal(example["image"], train[0][index])
    assert example["label"] == train[1][index]


def test_preparing_needs_no_tensorflow_and_a_second_time_nothing(tmp_path, cifar10):
    path, *_ = cifar10
    data.prepare("cifar10", data_dir=tmp_path, source=path.parent)
    path.unlink()
    data.prepare("cifar10", data_dir=tmp_path, source=path.parent)
    assert "tensorflow" not in sys.modules


def test_cifar100_has_both_labels(tmp_path, register):
    (train, fine), (test, fine_test) = draw(2, 9, num_classes=100), draw(3, 4)
    prefix = "cifar-100-binary/"
    path = tmp_path / "cifar-100-binary.tar.gz"
    write_tar(
        path,
        {
            prefix + "coarse_label_names.txt": "\n".join(map(str, range(20))).encode(),
            prefix + "fine_label_names.txt": "\n".join(map(str, range(100))).encode(),
            prefix + "train.bin": cifar_records(train, fine // 5, fine),
            prefix + "test.bin": cifar_records(test, fine_test // 5, fine_test),
        },
    )
    register(CIFAR100, path)
    data.prepare("cifar100", data_dir=tmp_path, source=tmp_path)
    check("cifar100", tmp_path, (train, fine), (test, fine_test))
    assert data.describe("cifar100", data_dir=tmp_path).std == (0.2009, 0.1984, 0.2023)
    for example in tfds.data_source("cifar100", split="train", data_dir=tmp_path):
        assert example["coarse_label"] == example["label"] // 5


def test_idx_set_goes_to_arrays_and_moments(tmp_path, register):
    train, test = draw(4, 12, (28, 28)), draw(5, 5, (28, 28))
    write_idx(tmp_path, train, test)
    for split in ("train", "t10k"):
        for name in IDX:
            register(f"{FASHION}{split}-{name}", tmp_path / f"{split}-{name}")
    data.prepare("fashion_mnist", data_dir=tmp_path, source=tmp_path)
    check("fashion_mnist", tmp_path, train, test)
    described = data.describe("fashion_mnist", data_dir=tmp_path)
    assert described.image_shape == (28, 28, 1)
    assert described.class_names[0] == "T-shirt/top"
    np.testing.assert_allclose(described.mean, 3 * [np.mean(train[0] / 255)], rtol=1e-9)
    np.testing.assert_allclose(described.std, 3 * [np.std(train[0] / 255)], rtol=1e-9)


def test_files_compressed_again_are_recognized_by_their_content(tmp_path, monkeypatch):
    train, test = draw(4, 12, (28, 28)), draw(5, 5, (28, 28))
    write_idx(tmp_path, train, test)
    contents = {path.name: idx.hash_of_content(path) for path in tmp_path.glob("*.gz")}
    monkeypatch.setattr(sources.FashionMnist, "contents", contents)
    data.prepare("fashion_mnist", data_dir=tmp_path, source=tmp_path)
    check("fashion_mnist", tmp_path, train, test)


def test_svhn_is_read_from_mat_files(tmp_path, monkeypatch):
    splits = {
        split: (draw(seed, num)[0], np.arange(num))
        for split, seed, num in (("train", 6, 10), ("test", 7, 4))
    }
    infos = {}
    for split, (images, labels) in splits.items():
        path = tmp_path / f"{split}_32x32.mat"
        # The digit 0 has the label 10.
        column = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(path, {"X": np.moveaxis(images, 0, -1), "y": column})
        infos[SVHN + path.name] = checksums.compute_url_info(path)
    monkeypatch.setattr(sources.SvhnCropped, "url_infos", infos)
    data.prepare("svhn_cropped", data_dir=tmp_path, source=tmp_path)
    check("svhn_cropped", tmp_path, splits["train"], splits["test"])


def test_offline_error_names_files_and_folder_and_leaves_no_set(tmp_path, offline):
    with pytest.raises(ValueError) as error:
        data.describe("mnist", data_dir=tmp_path)
    message = str(error.value)
    assert "\n" not in message and "ConnectionError" in message
    for split in ("train", "t10k"):
        for name in IDX:
            assert f"{split}-{name}" in message
    assert str(tmp_path / "downloads" / "manual" / "mnist") in message
    assert f"--data_dir={tmp_path} --source=FOLDER" in message
    assert not [*tmp_path.glob("mnist/*")]


def test_another_file_of_the_name_is_refused(tmp_path, cifar10):
    path, *_ = cifar10
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="is not the original file of cifar10.*SHA"):
        data.prepare("cifar10", data_dir=tmp_path, source=path.parent)
    assert not [*tmp_path.glob("cifar10/*")]


def test_another_file_in_the_common_manual_folder_is_refused(tmp_path, offline):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    write_idx(manual, draw(4, 12, (28, 28)), draw(5, 5, (28, 28)))
    with pytest.raises(ValueError, match="is not the original file of fashion_mnist"):
        data.describe("fashion_mnist", data_dir=tmp_path)


def test_source_that_lacks_files_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").mkdir()
    with pytest.raises(ValueError, match="lacks: train-images.*t10k-labels"):
        data.prepare("mnist", data_dir=tmp_path, source=tmp_path)


def test_archive_with_half_a_record_is_refused(tmp_path, register):
    path = tmp_path / "cifar-10-binary.tar.gz"
    prefix = "cifar-10-batches-bin/"
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    members = {prefix + file: bytes(3074) for file in files}
    names = "\n".join(map(str, range(10)))
    write_tar(path, {**members, prefix + "batches.meta.txt": names.encode()})
    register(CIFAR10, path)
    with pytest.raises(ValueError, match="records of 3073 bytes; found 15370 bytes"):
        data.prepare("cifar10", data_dir=tmp_path, source=tmp_path)
    assert not [*tmp_path.glob("cifar10/*")]


def test_archive_without_a_member_is_refused(tmp_path, register):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, {"readme": b"text"})
    register(CIFAR10, path)
    with pytest.raises(ValueError, match="is not as expected: .*batches.meta.txt"):
        data.prepare("cifar10", data_dir=tmp_path, source=tmp_path)


def test_labels_that_disagree_with_images_are_refused(tmp_path, monkeypatch):
    images, labels = draw(4, 12, (28, 28))
    write_idx(tmp_path, (images, labels[:-1]), (images, labels))
    contents = {path.name: idx.hash_of_content(path) for path in tmp_path.glob("*.gz")}
    monkeypatch.setattr(sources.FashionMnist, "contents", contents)
    with pytest.raises(ValueError, match=r"found \[12, 28, 28\] and \[11\]"):
        data.prepare("fashion_mnist", data_dir=tmp_path, source=tmp_path)


@pytest.mark.parametrize("name, message", [("cifar", "name must be one of"), (3, "3")])
def test_only_known_sets_are_prepared_by_name(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.prepare(name, data_dir=tmp_path)


def test_source_must_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match="source must be a folder"):
        data.prepare("mnist", data_dir=tmp_path, source=tmp_path / "none")


def test_idx_gives_bytes_back(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "array.gz"
    path.write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(idx.read_idx(path), array)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"text", "is not a gzip file"),
        (gzip.compress(b"text", mtime=0), "does not begin as an idx file"),
        (gzip.compress(b"\0\0\x08", mtime=0), "does not begin as an idx file"),
        (
            gzip.compress(b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", mtime=0),
            "type 0x08; found 0x0d",
        ),
        (
            gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc", mtime=0),
            r"\[5\].*5 bytes; found 3",
        ),
        (gzip.compress(b"a" * 99, mtime=0)[:-8], "is not a gzip file"),
    ],
)
def test_bad_idx_is_refused(content, message, tmp_path):
    path = tmp_path / "array.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        idx.read_idx(path)


def test_several_runs_may_prepare_at_once(tmp_path, cifar10, monkeypatch):
    path, train, test = cifar10
    original = sources.Cifar10._name_classes

    def slow(self, paths):
        """Lets another run finish first."""
        monkeypatch.setattr(sources.Cifar10, "_name_classes", original)
        data.prepare("cifar10", data_dir=tmp_path, source=path.parent)
        original(self, paths)

    monkeypatch.setattr(sources.Cifar10, "_name_classes", slow)
    data.prepare("cifar10", data_dir=tmp_path, source=path.parent)
    check("cifar10", tmp_path, train, test)


def test_command_prepares_from_a_source(tmp_path, cifar10, capsys):
    path, *_ = cifar10
    command.main(["cifar10", f"--data_dir={tmp_path}", f"--source={path.parent}"])
    printed = capsys.readouterr().out
    assert "cifar10: 23 training and 7 test images, 32 x 32 x 3, 10 classes" in printed
    assert f"--config.data.name=cifar10 --config.data.data_dir={tmp_path}" in printed


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--train=a"], "--train and --test go together"),
        (["--image_size=4"], "--image_size goes with"),
        (["--train=a", "--test=b", "--source=c"], "--source does not go with"),
    ],
)
def test_command_refuses_flags_that_do_not_go_together(flags, message, capsys):
    with pytest.raises(SystemExit):
        command.main(["name", *flags])
    assert message in capsys.readouterr().err


def test_command_ends_with_one_line_at_an_error(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "invariance_jax.data", "nope", f"--data_dir={tmp_path}"],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: name must be one of cifar10, ")
