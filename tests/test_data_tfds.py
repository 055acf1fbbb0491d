"""Sets that TFDS has prepared: what is read, which split, and what is refused."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from invariance_jax import data
from invariance_jax.data import records

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
    """Returns images of one value, and labels that go with the value."""
    color = (lambda i: i) if mode == "L" else (lambda i: (i, 2 * i, 3 * i))
    return [(Image.new(mode, size, color(i)), i % 3) for i in range(num)]


def make(data_dir, *, name="foreign", splits=None, features=FEATURES, **settings):
    if splits is None:
        splits = {"train": examples(20), "test": examples(6)}
    builder = Foreign(name, splits, features, data_dir=data_dir, **settings)
    records.write(builder)
    return builder.data_path


def load(data_dir, split, *, name="foreign", validation_examples=5):
    return data.load_arrays(
        name, split, data_dir=data_dir, validation_examples=validation_examples
    )


def values(images):
    return {int(image[0, 0, 0]) for image in images}


def corrupt(path, position):
    """Overwrites a few bytes of the only file of the training split."""
    (file,) = path.glob("*train*")
    content = bytearray(file.read_bytes())
    content[position : position + 40] = bytes(40)
    file.write_bytes(content)
    return file


def test_foreign_set_is_read(tmp_path):
    make(tmp_path)
    images, labels = load(tmp_path, "test")
    assert (images.shape, images.dtype) == ((6, 4, 4, 3), np.uint8)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 3)
    expected = np.arange(6)[:, None] * np.array([1, 2, 3])[None]
    found = images[np.argsort(images[:, 0, 0, 0])]
    np.testing.assert_array_equal(found, np.tile(expected[:, None, None], (4, 4, 1)))


def test_foreign_set_is_described(tmp_path):
    make(tmp_path)
    found = data.describe("foreign", data_dir=tmp_path)
    assert found.image_shape == (4, 4, 3) and found.class_names is None
    assert (found.num_classes, found.num_train, found.num_test) == (3, 20, 6)
    pixels = np.arange(20)[:, None] * np.array([1, 2, 3])[None] / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-12)


def test_order_is_that_of_tfds(tmp_path):
    make(tmp_path)
    builder = tfds.builder_from_directory(tmp_path / "foreign" / "1.0.0")
    source = builder.as_data_source("test")
    images, labels = load(tmp_path, "test")
    np.testing.assert_array_equal(images, [example["image"] for example in source])
    np.testing.assert_array_equal(labels, [example["label"] for example in source])


def test_several_files_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", 3)
    config = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
    splits = {"train": examples(20), "test": examples(8)}
    builder = Foreign("foreign", splits, FEATURES, data_dir=tmp_path)
    builder.download_and_prepare(download_config=config)
    assert len([*builder.data_path.glob("*train*")]) == 3
    source = builder.as_data_source("test")
    np.testing.assert_array_equal(
        load(tmp_path, "test")[0], [example["image"] for example in source]
    )


def test_grey_files_fill_three_channels_and_coloured_ones_fill_one(tmp_path):
    for mode, channels in (("L", 3), ("RGB", 1)):
        splits = {"train": examples(6, mode=mode), "test": examples(3, mode=mode)}
        image = tfds.features.Image(shape=(4, 4, channels))
        name = f"set{channels}"
        make(tmp_path, name=name, splits=splits, features={**FEATURES, "image": image})
        images, _ = load(tmp_path, "test", name=name)
        assert images.shape == (3, 4, 4, channels)


def test_validation_split_serves_as_test_split(tmp_path):
    make(tmp_path, splits={"train": examples(9), "validation": examples(4)})
    assert data.describe("foreign", data_dir=tmp_path).num_test == 4
    assert values(load(tmp_path, "test")[0]) == {0, 1, 2, 3}


def test_train_and_validation_make_up_the_training_split(tmp_path):
    make(tmp_path)
    train, validation = load(tmp_path, "train"), load(tmp_path, "validation")
    assert (len(train[0]), len(validation[0])) == (15, 5)
    assert values(train[0]) | values(validation[0]) == {*range(20)}
    for images, labels in (train, validation):
        np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 3)


def test_nothing_held_out_leaves_the_whole_training_split(tmp_path):
    make(tmp_path)
    assert len(load(tmp_path, "train", validation_examples=0)[0]) == 20
    assert len(load(tmp_path, "validation", validation_examples=0)[0]) == 0


def test_records_are_decoded_once(tmp_path, monkeypatch):
    make(tmp_path)
    first, _ = load(tmp_path, "train")
    monkeypatch.delattr(records, "decode")
    second, _ = load(tmp_path, "train")
    np.testing.assert_array_equal(first, second)


def test_decoded_arrays_cannot_be_spoilt(tmp_path):
    make(tmp_path)
    images, labels = load(tmp_path, "test")
    assert not images.flags.writeable and not labels.flags.writeable


def test_highest_version_is_read_unless_one_is_named(tmp_path):
    path = make(tmp_path)
    for version, num in (("2.0.0", 7), ("10.0.0", 8)):
        Foreign.VERSION = tfds.core.Version(version)
        try:
            make(tmp_path, splits={"train": examples(num), "test": examples(3)})
        finally:
            Foreign.VERSION = tfds.core.Version("1.0.0")
    assert path.name == "1.0.0"
    assert data.describe("foreign", data_dir=tmp_path).num_train == 8
    assert data.describe("foreign:2.0.0", data_dir=tmp_path).num_train == 7


def test_configuration_is_named(tmp_path):
    path = make(tmp_path)
    (tmp_path / "foreign" / "small").mkdir()
    path.rename(tmp_path / "foreign" / "small" / "1.0.0")
    assert data.describe("foreign/small", data_dir=tmp_path).num_train == 20
    with pytest.raises(ValueError, match="in the configurations foreign/small; name"):
        data.describe("foreign", data_dir=tmp_path)


def test_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    make(tmp_path)
    assert data.describe("foreign").num_train == 20


def test_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "sets")
    assert data.describe("foreign", data_dir="~/sets").num_train == 20


def test_unknown_set_meets_the_closest_name(tmp_path):
    with pytest.raises(ValueError, match="'cifra10' is neither .* closest is cifar10"):
        data.describe("cifra10", data_dir=tmp_path)
    make(tmp_path)
    with pytest.raises(ValueError, match="closest is foreign"):
        data.describe("foreing", data_dir=tmp_path)


def test_empty_name_is_an_unknown_set(tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match="'' is neither"):
        data.describe("", data_dir=tmp_path)


def test_set_of_tfds_that_is_not_prepared_names_the_command(tmp_path):
    command = f"`tfds build food101 --data_dir={tmp_path} --file_format=array_record`"
    with pytest.raises(ValueError) as error:
        data.describe("food101", data_dir=tmp_path)
    assert "takes TensorFlow once" in str(error.value) and command in str(error.value)


def test_set_in_another_format_names_the_format(tmp_path):
    path = make(tmp_path)
    file = path / "dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="format tfrecord, which only Tensor.*tfds"):
        data.describe("foreign", data_dir=tmp_path)


def test_known_set_in_another_format_asks_for_another_folder(tmp_path):
    path = make(tmp_path, name="mnist")
    file = path / "dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="Give another data_dir: .* without"):
        data.describe("mnist", data_dir=tmp_path)


def test_spirograph_is_no_classification_set(tmp_path):
    with pytest.raises(ValueError, match="spirograph has no `label`"):
        data.describe("spirograph", data_dir=tmp_path)


@pytest.mark.parametrize("missing", ["image", "label"])
def test_set_without_a_feature_is_refused(missing, tmp_path):
    features = {name: value for name, value in FEATURES.items() if name != missing}
    make(tmp_path, features=features)
    (left,) = features
    with pytest.raises(ValueError, match=f"features image and label.*found {left}"):
        data.describe("foreign", data_dir=tmp_path)


def test_label_that_is_no_class_is_refused(tmp_path):
    make(tmp_path, features={**FEATURES, "label": tfds.features.Scalar(np.int64)})
    with pytest.raises(ValueError, match="label, a class"):
        data.describe("foreign", data_dir=tmp_path)


def test_images_of_varying_size_are_refused_with_the_sizes(tmp_path):
    features = {**FEATURES, "image": tfds.features.Image(shape=(None, None, 3))}
    several = examples(3, (4, 4)) + examples(3, (6, 5))
    make(tmp_path, splits={"train": several, "test": several}, features=features)
    with pytest.raises(ValueError, match="one size; found 4 x 4, 5 x 6 pixels"):
        data.describe("foreign", data_dir=tmp_path)


def test_other_channels_are_refused(tmp_path):
    features = {**FEATURES, "image": tfds.features.Image(shape=(4, 4, 4))}
    color = [(Image.new("RGBA", (4, 4)), 0)]
    make(tmp_path, splits={"train": color, "test": color}, features=features)
    with pytest.raises(ValueError, match="1 or 3 channels; found uint8 with 4"):
        data.describe("foreign", data_dir=tmp_path)


def test_other_splits_are_refused(tmp_path):
    make(tmp_path, splits={"train": examples(3), "extra": examples(3)})
    with pytest.raises(ValueError, match="splits train and test .* found extra, train"):
        data.describe("foreign", data_dir=tmp_path)


def test_image_that_is_not_as_declared_is_named(tmp_path):
    make(tmp_path, splits={"train": examples(3, (5, 4)), "test": examples(3)})
    with pytest.raises(ValueError, match="train.*record 0 is corrupt.*4 x 5.*4 x 4"):
        load(tmp_path, "train", validation_examples=1)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_outside_the_classes_is_named(label, tmp_path):
    # ClassLabel would refuse it; another writer may not.
    features = {**FEATURES, "label": tfds.features.Scalar(np.int64)}
    path = make(
        tmp_path,
        splits={"train": [(Image.new("RGB", (4, 4)), label)] * 2, "test": examples(3)},
        features=features,
    )
    other = make(tmp_path / "other")
    (path / "features.json").write_text((other / "features.json").read_text())
    with pytest.raises(ValueError, match=f"corrupt: its label is {label}, of 3"):
        load(tmp_path, "train", validation_examples=1)


def test_image_that_cannot_be_decoded_is_named(tmp_path, monkeypatch):
    splits = {
        "train": (np.zeros((4, 4, 4, 3), np.uint8), [0, 1, 0, 1]),
        "test": (np.zeros((2, 4, 4, 3), np.uint8), [0, 1]),
    }
    encode = records._encode
    monkeypatch.setattr(records, "_encode", lambda image: encode(image)[:45])
    data.prepare_arrays("broken", tmp_path, **splits)
    with pytest.raises(ValueError, match="broken-test.*record 0 is corrupt"):
        load(tmp_path, "test", name="broken", validation_examples=0)


def test_corrupt_record_is_named(tmp_path):
    path = make(tmp_path)
    (file,) = path.glob("*train*")
    position = file.read_bytes().find(b"\x89PNG", 2000)
    corrupt(path, position)
    with pytest.raises(ValueError, match=rf"{file}: record [1-9]\d* is corrupt: \w+"):
        load(tmp_path, "train")
    assert len(load(tmp_path, "test")[0]) == 6


@pytest.mark.parametrize("content", [b"", b"text", bytes(70_000)])
def test_file_that_holds_no_records_is_named(content, tmp_path):
    path = make(tmp_path)
    (file,) = path.glob("*train*")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} is not a file of records"):
        load(tmp_path, "train")


def test_missing_file_of_records_is_named(tmp_path):
    path = make(tmp_path)
    (file,) = path.glob("*train*")
    file.unlink()
    with pytest.raises(ValueError, match=f"{file} is not a file of records"):
        load(tmp_path, "train")


def test_missing_records_are_counted(tmp_path):
    path, shorter = make(tmp_path), make(tmp_path / "b", splits={"train": examples(3)})
    (file,), (other,) = path.glob("*train*"), shorter.glob("*train*")
    file.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=f"{file} has 3 records; expected 20"):
        load(tmp_path, "train")


@pytest.mark.parametrize("count", [-1, 20, 5000])
def test_validation_examples_must_leave_training_examples(count, tmp_path):
    make(tmp_path)
    with pytest.raises(ValueError, match=f"less than the 20 .*found {count}"):
        load(tmp_path, "train", validation_examples=count)


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="split must be one of .* found 'dev'"):
        load(tmp_path, "dev")


def test_hold_out_is_the_same_for_ever():
    train, validation = data.hold_out(10, validation_examples=3)
    # Drawn with NumPy 2.4; `RandomState` promises the same for every version.
    assert validation.tolist() == [2, 4, 8]
    assert train.tolist() == [0, 1, 3, 5, 6, 7, 9]


def test_larger_hold_out_contains_the_smaller():
    _, few = data.hold_out(1000, validation_examples=10)
    train, many = data.hold_out(1000, validation_examples=100)
    assert {*few.tolist()} < {*many.tolist()}
    assert sorted([*train, *many]) == [*range(1000)]


LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 40, 9]))


@pytest.mark.parametrize(
    "fraction, counts",
    [(1.0, [100, 40, 9]), (0.1, [10, 4, 1]), (0.06, [6, 2, 1]), (0.5, [50, 20, 5])],
)
def test_label_fraction_takes_a_share_of_each_class(fraction, counts):
    chosen = data.label_fraction(LABELS, fraction, seed=0)
    assert np.all(np.diff(chosen) > 0)
    np.testing.assert_array_equal(np.bincount(LABELS[chosen]), counts)


def test_label_fractions_of_one_seed_are_nested():
    shares = [data.label_fraction(LABELS, f, seed=3) for f in (0.06, 0.1, 0.37, 1.0)]
    for small, large in zip(shares, shares[1:], strict=False):
        assert {*small.tolist()} < {*large.tolist()}


def test_label_fraction_depends_on_the_seed():
    first, second = (data.label_fraction(LABELS, 0.2, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, data.label_fraction(LABELS, 0.2, seed=0))


@pytest.mark.parametrize(
    "labels, fraction, message",
    [
        (LABELS, 0.05, "fraction 0.05 leaves class 2 empty: it has 9 examples"),
        (LABELS, 0.0, "above 0 and at most 1; found label fraction 0.0"),
        (LABELS, 1.5, "above 0 and at most 1; found label fraction 1.5"),
        (LABELS, float("nan"), "found label fraction nan"),
        (LABELS * 1.0, 0.5, r"integers \[N\]; found float64 \[149\]"),
        (LABELS[None], 0.5, r"integers \[N\]; found int64 \[1, 149\]"),
    ],
)
def test_bad_label_fraction_is_refused(labels, fraction, message):
    with pytest.raises(ValueError, match=message):
        data.label_fraction(labels, fraction, seed=0)


def test_importing_the_data_sets_imports_no_reader():
    code = "import sys, invariance_jax.data; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    packages = {name.split(".")[0] for name in result.stdout.split()}
    assert not packages & {"tensorflow_datasets", "tensorflow", "PIL", "array_record"}
