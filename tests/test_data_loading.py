"""Sets that TFDS has prepared: what is read, which split, and what is refused."""

import errno
import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from archives import opened
from PIL import Image
from tiny import image_arrays

from invariance_jax import data
from invariance_jax.data import decoding, limits, records, streams, writing

FEATURES = {
    "image": tfds.features.Image(shape=(4, 4, 3)),
    "label": tfds.features.ClassLabel(num_classes=3),
}


class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set as somebody else prepares it: images handed over as PIL images."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, name, splits, features, **settings):
        self.name, self.splits, self.features = name, splits, features
        super().__init__(**{"file_format": "array_record", **settings})

    def _info(self):
        features = tfds.features.FeaturesDict(self.features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(s) for name, s in self.splits.items()}

    def _generate_examples(self, examples):
        for index, (image, label) in enumerate(examples):
            example = {"image": image, "label": label}
            yield index, {key: example[key] for key in self.features}


def examples(num, size=(4, 4), mode="RGB"):
    """Returns images of one colour, and labels that go with the colour."""
    return [(Image.new(mode, size, (i, 2 * i, 3 * i)), i % 3) for i in range(num)]


def make(data_dir, *, name="foreign", splits=None, features=FEATURES, **settings):
    splits = splits or {"train": examples(20), "test": examples(6)}
    return writing.write(Foreign(name, splits, features, data_dir=data_dir, **settings))


def load(data_dir, split, *, name="foreign", validation_examples=5):
    return data.load_arrays(
        name, split, data_dir=data_dir, validation_examples=validation_examples
    )


def describe(data_dir, name="foreign"):
    return data.describe(name, data_dir=data_dir)


def values(images):
    return {int(image[0, 0, 0]) for image in images}


def shard(path):
    (file,) = path.glob("*train*record*")
    return file


@pytest.mark.parametrize("shards", [1, 3])
def test_foreign_set_is_read_in_the_order_of_tfds(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", 3)
    splits = {"train": examples(20), "test": examples(8)}
    builder = Foreign("foreign", splits, FEATURES, data_dir=tmp_path)
    config = tfds.download.DownloadConfig(num_shards=shards, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    assert len([*builder.data_path.glob("*train*")]) == shards
    images, labels = load(tmp_path, "test")
    assert (images.shape, images.dtype) == ((8, 4, 4, 3), np.uint8)
    assert labels.dtype == np.int32
    assert not images.flags.writeable
    source = builder.as_data_source("test")
    np.testing.assert_array_equal(images, [example["image"] for example in source])
    np.testing.assert_array_equal(labels, [example["label"] for example in source])
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 3)
    assert values(images) == {*range(8)}


def test_sets_larger_than_the_buffer_of_tfds_need_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.shuffle, "MAX_MEM_BUFFER_SIZE", 10)
    make(tmp_path)
    assert values(load(tmp_path, "test")[0]) == {*range(6)}
    assert tfds.core.shuffle.MAX_MEM_BUFFER_SIZE == 10


@pytest.mark.parametrize("labelled", [True, False])
def test_foreign_set_is_described(labelled, tmp_path):
    make(tmp_path, features=FEATURES if labelled else {"image": FEATURES["image"]})
    found = describe(tmp_path)
    assert (found.name, found.image_shape) == ("foreign", (4, 4, 3))
    assert found.class_names == (("0", "1", "2") if labelled else ())
    assert found.num_classes == (3 if labelled else None)
    assert (found.num_train, found.num_test) == (20, 6)
    pixels = np.arange(20)[:, None] * np.array([1, 2, 3])[None] / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-12)


def test_validation_split_serves_as_test_split(tmp_path):
    make(tmp_path, splits={"train": examples(9), "validation": examples(4)})
    assert describe(tmp_path).num_test == 4
    assert values(load(tmp_path, "test")[0]) == {0, 1, 2, 3}


@pytest.mark.parametrize("count", [0, np.int64(5)])
def test_train_and_validation_make_up_the_training_split(count, tmp_path):
    make(tmp_path)
    train, validation = (
        load(tmp_path, split, validation_examples=count)
        for split in ("train", "validation")
    )
    assert (len(train[0]), len(validation[0])) == (20 - count, count)
    assert values(train[0]) | values(validation[0]) == {*range(20)}
    for images, labels in (train, validation):
        np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 3)


def test_records_are_decoded_once(tmp_path, monkeypatch):
    make(tmp_path)
    first, _ = load(tmp_path, "train")
    monkeypatch.delattr(decoding, "decode")
    second, _ = load(tmp_path, "train")
    np.testing.assert_array_equal(first, second)


def test_highest_version_is_read_unless_one_is_named(tmp_path, monkeypatch):
    assert make(tmp_path).name == "1.0.0"
    for version, num in (("2.0.0", 7), ("10.0.0", 8)):
        monkeypatch.setattr(Foreign, "VERSION", tfds.core.Version(version))
        make(tmp_path, splits={"train": examples(num), "test": examples(3)})
    assert describe(tmp_path).num_train == 8
    assert describe(tmp_path, "foreign:2.0.0").num_train == 7


def test_configuration_is_named(tmp_path):
    path = make(tmp_path)
    (tmp_path / "foreign" / "small").mkdir()
    path.rename(tmp_path / "foreign" / "small" / "1.0.0")
    assert describe(tmp_path, "foreign/small").num_train == 20
    with pytest.raises(ValueError, match="not prepared in .*, which has foreign/small"):
        describe(tmp_path)


def test_default_folder_is_that_of_tfds_and_tilde_is_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    make(tmp_path)
    assert data.describe("foreign").num_train == 20
    assert describe(f"~/{tmp_path.name}").num_train == 20


def test_no_home_folder_stops_only_what_needs_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    make(tmp_path)
    assert describe(tmp_path).num_train == 20
    with pytest.raises(ValueError, match="data_dir is '~.*, but there is no home"):
        data.describe("foreign")


SIZES = {
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "svhn_cropped": (73_257, 26_032),
}


@pytest.mark.parametrize("name", data.NAMES)
def test_known_sets_are_described_without_a_file(name, tmp_path):
    found = data.known(name)
    assert found == describe(tmp_path, name) and found.class_names is None
    assert (found.num_train, found.num_test) == SIZES[name]
    features = tfds.builder_cls(name)(data_dir=tmp_path).info.features
    assert found.image_shape == features["image"].shape
    assert found.num_classes == features["label"].num_classes
    assert len(found.mean) == len(found.std) == 3
    assert not [*tmp_path.iterdir()]
    assert data.known("foreign") is data.known("food101") is data.known("") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foreing", "'foreing' is not prepared in .*, which has foreign. From fold"),
        ("", "'' is not prepared"),
        ("food101", "Tensor.* once: tfds build food101 --data_dir=.*=array_record"),
        ("spirograph", "python -m invariance_jax.data spirograph --data_dir="),
        ("mnist:9.9.9", "'mnist:9.9.9' is not prepared"),
    ],
)
def test_set_that_is_not_there_names_those_that_are(name, message, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        describe(tmp_path, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("foreign", "format tfrecord, which only Tensor.*tfds build foreign"),
        ("mnist", "format tfrecord, .*python -m invariance_jax.data mnist --data_dir"),
    ],
)
def test_set_in_another_format_says_how_to_prepare_it(name, message, tmp_path):
    file = make(tmp_path, name=name) / "dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=message):
        describe(tmp_path, name)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"splits": 3}', "null"])
def test_damaged_set_is_named(file, content, tmp_path):
    path = make(tmp_path)
    (path / file).write_text(content)
    with pytest.raises(ValueError, match="foreign.*(is not a set|must have)") as error:
        describe(tmp_path)
    assert "\n" not in str(error.value)


ALPHA = tfds.features.Image(shape=(4, 4, 4))
NUMBER = tfds.features.Scalar(np.int64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": {"label": FEATURES["label"]}},
            "feature image; found .*lab",
        ),
        (
            {"features": {**FEATURES, "label": NUMBER}},
            "label of foreign must be",
        ),
        (
            {
                "features": {**FEATURES, "image": ALPHA},
                "splits": dict.fromkeys(["train", "test"], examples(3, mode="RGBA")),
            },
            "1 or 3 channels; found uint8 with 4",
        ),
        (
            {"splits": {"train": examples(3), "extra": examples(3)}},
            "splits train and test .* found extra, train",
        ),
    ],
)
def test_sets_of_another_kind_are_refused(changes, message, tmp_path):
    make(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/job/task", {"job/memory.max": 5000, "job/task/memory.max": "max"}),
        ("0::/job/task", {"job/task/memory.max": 5000}),
        ("7:memory:/job", {"memory/job/memory.limit_in_bytes": 5000}),
        ("7:memory:/away", {"memory/memory.limit_in_bytes": 5000}),
        ("0::/", {"memory.max": 5000}),
        ("4:cpu:/job", {"memory.max": "max"}),
        (None, {}),
    ],
)
def test_the_memory_is_that_of_the_job(line, files, tmp_path, monkeypatch):
    for name, limit in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    groups = tmp_path / "groups"
    if line is not None:
        groups.write_text(f"{line}\n")
    monkeypatch.setattr(limits, "PROCESS_GROUPS", groups)
    monkeypatch.setattr(limits, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    assert limits.machine_memory() == (5000 if 5000 in files.values() else 10_000)


def test_set_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: 40)
    with pytest.raises(
        ValueError, match="Decoding foreign train: 20 images take 9.6e-07"
    ):
        load(tmp_path, "train")


def test_image_that_is_not_as_declared_is_named(tmp_path):
    make(tmp_path, splits={"train": examples(3, (5, 4)), "test": examples(3)})
    with pytest.raises(ValueError, match=r"train.*record \d is corrupt.*4 x 5.*4 x 4"):
        load(tmp_path, "train", validation_examples=1)


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_label_outside_the_classes_is_named(label, tmp_path):
    # ClassLabel would refuse it; another writer may not.
    train = [(Image.new("RGB", (4, 4)), label)] * 2
    splits = {"train": train, "test": examples(3)}
    path = make(tmp_path, splits=splits, features={**FEATURES, "label": NUMBER})
    other = make(tmp_path / "other")
    (path / "features.json").write_text((other / "features.json").read_text())
    with pytest.raises(ValueError, match=f"its label is {label}; expected 0 to 2"):
        load(tmp_path, "train", validation_examples=1)


def test_corrupt_record_is_named(tmp_path):
    file = shard(make(tmp_path))
    content = bytearray(file.read_bytes())
    position = content.find(b"\x89PNG", 2000)
    content[position : position + 40] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file}: record [1-9]\d* is corrupt: \w+"):
        load(tmp_path, "train")
    assert len(load(tmp_path, "test")[0]) == 6


@pytest.mark.parametrize("content", [None, b"", b"text", bytes(70_000)])
def test_file_that_holds_no_records_is_named(content, tmp_path):
    file = shard(make(tmp_path))
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} cannot be read as a file of records"):
        load(tmp_path, "train")


def test_missing_records_are_counted(tmp_path):
    path, shorter = make(tmp_path), make(tmp_path / "b", splits={"train": examples(3)})
    shard(path).write_bytes(shard(shorter).read_bytes())
    with pytest.raises(ValueError, match=f"{shard(path)} has 3 records; expected 20"):
        load(tmp_path, "train")


@pytest.mark.parametrize("count", [-1, 20, 5000, 10**12, 5.0, True])
def test_validation_examples_must_leave_training_examples(count, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=f"validation_examples must .*found {count}"):
        load(tmp_path, "train", validation_examples=count)


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split must be one of .* found 'dev'"):
        load(tmp_path, "dev")


ARRAYS = image_arrays(0, num_examples=12)


@pytest.fixture
def mine(tmp_path):
    """The folder of a set whose labels are stored."""
    return data.prepare_arrays("mine", tmp_path, train=ARRAYS, test=ARRAYS)


def labels_of(folder):
    return opened(folder.parents[1]).labels.tolist()


def test_labels_that_cannot_be_kept_leave_no_file(mine, monkeypatch):
    (mine / "train.npz").unlink()
    before = {*mine.iterdir()}

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    assert labels_of(mine) == ARRAYS[1].tolist()
    assert {*mine.iterdir()} == before


def test_labels_are_read_again_if_older_records_replace_theirs(mine, tmp_path):
    images, labels = ARRAYS
    splits = dict.fromkeys(("train", "test"), (images, labels[::-1]))
    other = data.prepare_arrays("mine", tmp_path / "other", **splits)
    assert labels_of(mine) == labels.tolist()  # and stored
    os.utime(shard(other), (0, 0))
    shutil.copy2(shard(other), shard(mine))  # keeps the time
    assert labels_of(mine) == labels[::-1].tolist()


def test_labels_that_were_prepared_or_stored_are_not_read_again(mine):
    kind, read = records.ShardRecords, records.ShardRecords.read_labels
    with mock.patch.object(kind, "read_labels", autospec=True, side_effect=read) as spy:
        expected = labels_of(mine)
        for file in mine.glob("*record*"):  # as a copy through a tar archive does
            os.utime(file, (0, file.stat().st_mtime_ns // 10**9))
        assert labels_of(mine) == expected
        spy.assert_not_called()
        (mine / "train.npz").unlink()
        for _ in range(2):
            assert labels_of(mine) == expected
        spy.assert_called_once()


def test_labels_are_kept_only_if_all_could_be_read(mine, monkeypatch):
    expected, kept = labels_of(mine), mine / "train.npz"
    example = records.ShardRecords.example

    def fail(self, index):
        if index == 11:
            raise streams.Corrupt("Input/output error")
        return example(self, index)

    kept.unlink()
    monkeypatch.setattr(records.ShardRecords, "example", fail)
    assert labels_of(mine)[11] == 0 and not kept.exists()
    monkeypatch.undo()
    assert labels_of(mine) == expected
    np.savez(kept, labels=expected[:5])  # of files of records that it does not name
    assert labels_of(mine) == expected
    kept.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"cannot be read \(ValueError\); remove the"):
        labels_of(mine)
    kept.unlink()
    shard(mine).unlink()
    with pytest.raises(ValueError, match="as a file of records .* again.$") as caught:
        labels_of(mine)
    assert str(caught.value).count("cannot be read") == 1  # for all of its records


def test_a_set_that_was_prepared_anew_in_the_same_process_is_read_anew(mine, tmp_path):
    images, labels = ARRAYS
    before = load(tmp_path, "train", name="mine", validation_examples=0)
    np.testing.assert_array_equal(before[1], labels)
    shutil.rmtree(mine)
    other = images, labels[::-1]
    data.prepare_arrays("mine", tmp_path, train=other, test=other)
    found = load(tmp_path, "train", name="mine", validation_examples=0)
    np.testing.assert_array_equal(found[1], labels[::-1])
