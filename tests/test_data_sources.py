"""The sets that are prepared from original files: formats, checksums, the command."""

import gzip
import os
import subprocess
import sys

import numpy as np
import processes
import pytest
import tensorflow_datasets as tfds
from archives import (
    assert_holds,
    cache_download,
    cifar10_archive,
    cifar_records,
    draw,
    register_checksums,
    write_tar,
)
from PIL import Image
from scipy.io import savemat
from tensorflow_datasets.core.download import checksums, downloader

from invariance_jax import data
from invariance_jax.data import __main__ as command
from invariance_jax.data import sources
from invariance_jax.data.stamps import prepare_stamps

TRAIN, TEST = draw(0, 23), draw(1, 7)
GREY = draw(4, 12, (28, 28)), draw(5, 5, (28, 28))


def idx_bytes(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def compress(content):
    return gzip.compress(content, mtime=0)


def write_idx(folder, train, test):
    """Writes the four files of MNIST and its relatives; returns their paths."""
    arrays = dict(zip(sources.SOURCES["mnist"].files, (*train, *test), strict=True))
    for name, array in arrays.items():
        (folder / name).write_bytes(compress(idx_bytes(array)))
    return [folder / name for name in arrays]


@pytest.fixture
def register(monkeypatch):
    """Registers files as the original ones of a set."""

    def register(name, *paths):
        files = {sources.SOURCES[name].home + path.name: path for path in paths}
        register_checksums(monkeypatch, name, files)

    return register


@pytest.fixture
def offline(monkeypatch):
    def refuse(url, **kwargs):
        raise ConnectionError(url)

    monkeypatch.setattr(downloader, "_open_url", refuse)


@pytest.fixture
def cifar10(tmp_path, register):
    """A tiny archive in the official format."""
    path = tmp_path / "original" / "cifar-10-binary.tar.gz"
    path.parent.mkdir()
    cifar10_archive(path, TRAIN, TEST)
    register("cifar10", path)
    return path


def check(name, data_dir, train=TRAIN, test=TEST):
    """Checks that a set holds the examples of both splits."""
    for split, examples in {"train": train, "test": test}.items():
        assert_holds(name, data_dir, split, *examples)


@pytest.mark.parametrize("name", data.NAMES)
def test_every_known_set_has_files_that_tfds_knows(name):
    assert data.NAMES == tuple(sources.SOURCES)
    infos = checksums.get_all_url_infos() | (tfds.builder_cls(name).url_infos or {})
    source = sources.SOURCES[name]
    assert [infos[source.home + f].filename for f in source.files] == [*source.files]


@pytest.mark.parametrize("folder", [None, "manual", "manual/cifar10"])
def test_files_that_were_downloaded_before_are_used(folder, tmp_path, cifar10, offline):
    if folder is None:
        cache_download(cifar10, tmp_path / "sets")
    else:
        manual = tmp_path / "sets" / "downloads" / folder
        manual.mkdir(parents=True)
        os.rename(cifar10, manual / cifar10.name)
    check("cifar10", tmp_path / "sets")


def test_cifar10_is_prepared_once_without_tensorflow(
    tmp_path, cifar10, offline, capsys
):
    settings = {"data_dir": tmp_path, "source": cifar10.parent}
    assert data.prepare("cifar10", **settings) == tmp_path / "cifar10" / "3.0.2"
    cifar10.unlink()
    command.main(["cifar10", f"--data_dir={tmp_path}", f"--source={cifar10.parent}"])
    printed = capsys.readouterr().out
    assert "cifar10: 23 training and 7 test images, 32 x 32 x 3, 10 classes" in printed
    assert f"--config.data.name=cifar10 --config.data.data_dir={tmp_path}" in printed
    check("cifar10", tmp_path)
    assert "tensorflow" not in sys.modules
    found = data.describe("cifar10", data_dir=tmp_path)
    names = tuple(f"class {i}" for i in range(10))
    assert found == data.known("cifar10")._replace(
        num_train=23, num_test=7, class_names=names
    )
    assert found.mean == (0.4914, 0.4822, 0.4465)
    assert found.std == (0.2023, 0.1994, 0.2010)
    # TFDS itself reads the set.
    example = tfds.data_source("cifar10", split="train", data_dir=tmp_path)[0]
    index = int(example["id"].decode().removeprefix("train_"))
    np.testing.assert_array_equal(example["image"], TRAIN[0][index])
    assert example["label"] == TRAIN[1][index]


def test_cifar100_has_both_labels(tmp_path, register):
    (train, fine), (test, fine_test) = draw(2, 9, num_classes=100), draw(3, 4)
    path = tmp_path / "cifar-100-binary.tar.gz"
    members = {
        "coarse_label_names.txt": "\n".join(map(str, range(20))).encode(),
        "fine_label_names.txt": "\n".join(map(str, range(100))).encode(),
        "train.bin": cifar_records(train, fine // 5, fine),
        "test.bin": cifar_records(test, fine_test // 5, fine_test),
    }
    write_tar(path, {f"cifar-100-binary/{name}": members[name] for name in members})
    register("cifar100", path)
    data.prepare("cifar100", data_dir=tmp_path, source=tmp_path)
    check("cifar100", tmp_path, (train, fine), (test, fine_test))
    assert data.describe("cifar100", data_dir=tmp_path).std == (0.2009, 0.1984, 0.2023)
    for example in tfds.data_source("cifar100", split="train", data_dir=tmp_path):
        assert example["coarse_label"] == example["label"] // 5


@pytest.mark.parametrize("again", [False, True])
def test_idx_files_are_known_by_checksum_or_by_content(
    again, tmp_path, register, monkeypatch
):
    paths = write_idx(tmp_path, *GREY)
    if again:  # Debian has compressed the same content again.
        contents = {path.name: sources.hash_of_content(path) for path in paths}
        source = sources.SOURCES["fashion_mnist"]._replace(contents=contents)
        monkeypatch.setitem(sources.SOURCES, "fashion_mnist", source)
    else:
        register("fashion_mnist", *paths)
    data.prepare("fashion_mnist", data_dir=tmp_path, source=tmp_path)
    check("fashion_mnist", tmp_path, *GREY)
    described = data.describe("fashion_mnist", data_dir=tmp_path)
    assert described.image_shape == (28, 28, 1)
    assert described.class_names[0] == "T-shirt/top"
    assert described.mean == data.known("fashion_mnist").mean


def test_svhn_is_read_from_mat_files(tmp_path, register):
    train, test = draw(6, 10), draw(7, 4)
    for split, (images, labels) in (("train", train), ("test", test)):
        # The digit 0 has the label 10.
        column = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        arrays = {"X": np.moveaxis(images, 0, -1), "y": column}
        savemat(tmp_path / f"{split}_32x32.mat", arrays)
    register("svhn_cropped", *tmp_path.glob("*.mat"))
    data.prepare("svhn_cropped", data_dir=tmp_path, source=tmp_path)
    check("svhn_cropped", tmp_path, train, test)


def test_offline_error_names_files_and_folder_and_leaves_no_set(tmp_path, offline):
    with pytest.raises(ValueError) as error:
        check("mnist", tmp_path)
    message = str(error.value)
    assert "\n" not in message and "ConnectionError" in message
    assert all(name in message for name in sources.SOURCES["mnist"].files)
    assert str(tmp_path / "downloads" / "manual" / "mnist") in message
    assert f"--data_dir={tmp_path} --source=FOLDER" in message
    assert not [*tmp_path.glob("mnist/*")]


def test_another_file_in_the_common_manual_folder_is_refused(tmp_path, offline):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    write_idx(manual, *GREY)
    with pytest.raises(ValueError, match="is not the original .*bytes and SHA-256"):
        check("fashion_mnist", tmp_path)


def test_source_that_lacks_files_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").mkdir()
    with pytest.raises(ValueError, match="lacks: train-images.*t10k-labels"):
        data.prepare("mnist", data_dir=tmp_path, source=tmp_path)


def test_stamps_take_the_wallpapers_of_their_package_only(tmp_path):
    for name in ("mate", "another"):
        path = tmp_path / "backgrounds" / name / "1.jpg"
        path.parent.mkdir(parents=True)
        path.touch()
    with pytest.raises(ValueError, match="has 0 stamps and 1 wallpapers; expected"):
        prepare_stamps(tmp_path / "sets", tmp_path)


HALF = {"batches.meta.txt": "\n".join(map(str, range(10))).encode()}
HALF |= {f"data_batch_{i}.bin": bytes(3074) for i in range(1, 6)}


@pytest.mark.parametrize(
    ("members", "damage", "message"),
    [
        ({"readme": b"text"}, 0, "batches.meta.txt' not found"),
        (HALF, 0, "cannot reshape array of size 15370"),
        (HALF, 20, r"\w+"),  # of zlib
    ],
)
def test_archives_of_another_content_are_named(
    members, damage, message, tmp_path, register
):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, {f"cifar-10-batches-bin/{name}": members[name] for name in members})
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes(damage) + content[40 + damage :])
    register("cifar10", path)
    with pytest.raises(ValueError, match=rf"{path}: not as expected .*\(.*{message}"):
        data.prepare("cifar10", data_dir=tmp_path, source=tmp_path)
    assert not [*tmp_path.glob("cifar10/*")]


GZIP = compress(b"text" * 99)


@pytest.mark.parametrize(
    "content",
    [b"text", b"", GZIP, GZIP[:10] + b"\xff" * 20, GZIP[:-8], compress(b"\0\0\x08")],
)
def test_bad_idx_files_are_named(content, tmp_path, register):
    paths = write_idx(tmp_path, *GREY)
    paths[0].write_bytes(content)
    message = "train-im.* is not the original file of fash.* bytes and SHA-256"
    with pytest.raises(ValueError, match=message):
        data.prepare("fashion_mnist", data_dir=tmp_path, source=tmp_path)
    register("fashion_mnist", *paths)
    with pytest.raises(ValueError, match="train-images.*: not as expected of fashion"):
        data.prepare("fashion_mnist", data_dir=tmp_path, source=tmp_path)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("cifar", None, "name must be one of .*; found 'cifar'"),
        (3, None, "found 3"),
        ("mnist", "none", "source must be a folder; found 'none'"),
    ],
)
def test_only_known_sets_are_prepared_by_name(name, source, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        data.prepare(name, data_dir=tmp_path, source=source)


def test_several_runs_may_prepare_at_once(tmp_path, cifar10, monkeypatch):
    source = sources.SOURCES["cifar10"]

    def slow(*arguments):
        """Lets another run finish first."""
        monkeypatch.setitem(sources.SOURCES, "cifar10", source)
        data.prepare("cifar10", data_dir=tmp_path, source=cifar10.parent)
        return source.read(*arguments)

    monkeypatch.setitem(sources.SOURCES, "cifar10", source._replace(read=slow))
    data.prepare("cifar10", data_dir=tmp_path, source=cifar10.parent)
    check("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--test=a"], "--test_classes, --index and --image_size need --train"),
        (["--image_size=4"], "--index and --image_size need --train"),
        (["--index"], "--index and --image_size need --train"),
        (["--train=a", "--image_size=4", "--index"], "--image_size excludes"),
        (["--train=a", "--image_size=4", "--classes=c"], "--image_size excludes"),
        (["--train=a", "--test_classes=c"], "--test_classes needs --test"),
        (["--train=a", "--source=c"], "--train excludes --source"),
    ],
)
def test_command_refuses_flags_that_do_not_go_together(flags, message, capsys):
    with pytest.raises(SystemExit):
        command.main(["name", *flags])
    assert message in capsys.readouterr().err


def start(*flags, shell=()):
    """Runs the command in a shell whose output is in ASCII."""
    command = [*shell, sys.executable, "-m", "invariance_jax.data", *map(str, flags)]
    environment = processes.environment(1, PYTHONIOENCODING="ascii")
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60
    )


def test_command_ends_with_one_line_at_an_error(tmp_path):
    result = start("nope", "--data_dir", tmp_path)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: name must be one of cifar10, ")


@pytest.fixture
def images(tmp_path):
    """Flags of a set of images, in folders that ASCII cannot show."""
    folder = tmp_path / "caf\u00e9"
    folder.mkdir()
    for index, image in enumerate(TRAIN[0]):
        Image.fromarray(image).save(folder / f"{index}.png")
    return "mine", "--train", folder, "--data_dir", folder / "sets"


def test_command_shows_a_path_that_ascii_lacks(images):
    result = start(*images)
    assert result.returncode == 0 and "caf?/sets/mine/1.0.0" in result.stdout


def test_command_says_nothing_of_an_image_that_is_large(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for side in (9, 9500):
        Image.new("L", (side, side)).save(folder / f"{side}.jpg")
    result = start("mine", "--index", "--train", folder, "--data_dir", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_command_without_space_says_so_in_one_line(images):
    shell = ("bash", "-c", 'ulimit -f 9 && exec "$@"', "bash")
    result = start(*images, shell=shell)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: mine was not written to ")
    assert "too large" in line and "check that the folder has room" in line
