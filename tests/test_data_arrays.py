"""A user's own images as a set: arrays, folders, and what is refused."""

import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from invariance_jax import data
from invariance_jax.data import __main__ as command
from invariance_jax.data import records


def draw(seed, num, shape=(6, 5, 3), num_classes=3):
    random = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    return random.integers(0, 256, (num, *shape), dtype=np.uint8), labels


TRAIN, TEST = draw(0, 9), draw(1, 4)


def load(name, split, data_dir):
    return data.load_arrays(name, split, data_dir=data_dir, validation_examples=0)


def prepare(data_dir, **changes):
    settings = {"train": TRAIN, "test": TEST, **changes}
    return data.prepare_arrays(settings.pop("name", "mine"), data_dir, **settings)


def write_images(folder, images, labels, names=("a", "b", "c"), suffix="png"):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / names[label] / f"{i}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)


@pytest.fixture
def folders(tmp_path):
    """Two folders of class folders, as flags of `prepare_folder`."""
    for split, arrays in (("train", TRAIN), ("test", TEST)):
        write_images(tmp_path / split, *arrays)
    return {"train": tmp_path / "train", "test": tmp_path / "test"}


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_come_back_in_their_order(channels, tmp_path):
    train, test = draw(0, 9, (6, 5, channels)), draw(1, 4, (6, 5, channels))
    path = prepare(tmp_path, train=train, test=test)
    assert path == tmp_path / "mine" / "1.0.0"
    for split, arrays in (("train", train), ("test", test)):
        images, labels = load("mine", split, tmp_path)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(images, arrays[0])
        np.testing.assert_array_equal(labels, arrays[1])


def test_more_arrays_than_a_chunk_come_back_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_CHUNK", 2)
    prepare(tmp_path)
    np.testing.assert_array_equal(load("mine", "train", tmp_path)[0], TRAIN[0])


def test_description_of_arrays(tmp_path):
    prepare(tmp_path, class_names=["x", "y", "z"])
    found = data.describe("mine", data_dir=tmp_path)
    assert found.image_shape == (6, 5, 3)
    assert (found.num_classes, found.num_train, found.num_test) == (3, 9, 4)
    assert found.class_names == ("x", "y", "z")
    pixels = TRAIN[0].reshape(-1, 3) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-12)


def test_moments_of_arrays_are_read_without_decoding(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.delattr(records, "decode")
    assert len(data.describe("mine", data_dir=tmp_path).mean) == 3


def test_classes_without_names_have_none(tmp_path):
    prepare(tmp_path)
    assert data.describe("mine", data_dir=tmp_path).class_names is None


def test_sets_larger_than_the_buffer_of_tfds_need_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds.core.shuffle, "MAX_MEM_BUFFER_SIZE", 10)
    prepare(tmp_path)
    np.testing.assert_array_equal(load("mine", "train", tmp_path)[0], TRAIN[0])
    assert tfds.core.shuffle.MAX_MEM_BUFFER_SIZE == 10


def test_existing_set_is_not_overwritten(tmp_path):
    prepare(tmp_path)
    with pytest.raises(ValueError, match="'mine' is taken by the set in .*mine/1.0.0"):
        prepare(tmp_path, train=TEST, test=TRAIN)
    assert data.describe("mine", data_dir=tmp_path).num_train == 9


def test_failed_preparation_leaves_no_set(tmp_path, monkeypatch):
    encode = records._encode

    def fail(image):
        if np.array_equal(image, TEST[0][1]):
            raise OSError("disk full")
        return encode(image)

    monkeypatch.setattr(records, "_encode", fail)
    with pytest.raises(OSError, match="disk full"):
        prepare(tmp_path)
    with pytest.raises(ValueError, match="'mine' is neither"):
        data.describe("mine", data_dir=tmp_path)
    monkeypatch.undo()
    prepare(tmp_path)


def test_temporary_folder_of_a_killed_preparation_is_not_read(tmp_path):
    path = prepare(tmp_path)
    os.rename(path, path.parent / "incomplete.ABCDEF_1.0.0")
    with pytest.raises(ValueError, match="'mine' is neither"):
        data.describe("mine", data_dir=tmp_path)
    prepare(tmp_path)
    assert data.describe("mine", data_dir=tmp_path).num_train == 9


@pytest.mark.parametrize("name", ["Mine", "my-set", "1st", "", "a/b", "../a", None])
def test_names_are_snake_case(name, tmp_path):
    with pytest.raises(ValueError, match="name must be lower-case letters.*found"):
        prepare(tmp_path, name=name)


@pytest.mark.parametrize("name", [*data.NAMES, "spirograph"])
def test_known_names_are_taken(name, tmp_path):
    with pytest.raises(ValueError, match=f"name '{name}' is taken"):
        prepare(tmp_path, name=name)


BAD_ARRAYS = {
    "float": ({"train": (TRAIN[0] / 255, TRAIN[1])}, "train must be uint8.*float64"),
    "rank": ({"test": (TEST[0][0], TEST[1])}, r"test must be \[N, H, W, 1 or 3\]"),
    "channels": ({"train": (TRAIN[0][..., :2], TRAIN[1])}, r"found \[9, 6, 5, 2\]"),
    "empty": ({"test": (TEST[0][:0], TEST[1][:0])}, r"not empty; found \[0, 6, 5, 3\]"),
    "lengths": ({"train": (TRAIN[0], TRAIN[1][:-1])}, r"must be \[9\].*found \[8\]"),
    "label rank": ({"train": (TRAIN[0], np.eye(9, dtype=int))}, r"found \[9, 9\]"),
    "label dtype": ({"test": (TEST[0], TEST[1] * 1.0)}, "integers; found float64"),
    "bool": ({"test": (TEST[0], TEST[1] > 0)}, "integers; found bool"),
    "negative": ({"train": (TRAIN[0], TRAIN[1] - 1)}, "0 or more; found -1"),
    "gap": ({"train": (TRAIN[0], TRAIN[1] * 2)}, "no example of 1, 3"),
    "unknown": ({"test": (TEST[0], TEST[1] + 3)}, "labels of test .* found 3, 4, 5"),
    "one class": ({"train": (TRAIN[0], TRAIN[1] * 0)}, "2 classes or more; found 1"),
    "sizes": ({"test": (TEST[0][:, :5], TEST[1])}, r"\[6, 5, 3\] and \[5, 5, 3\]"),
    "few names": ({"class_names": ["a", "b"]}, "less than the 2 classes; found 2"),
    "many names": ({"class_names": list("abcd")}, "no example of 3"),
    "same names": ({"class_names": list("aba")}, "class_names must be different"),
    "empty name": ({"class_names": ["a", "b", " "]}, "class_names must be different"),
    "long name": ({"class_names": ["a", "b", "c\nd"]}, "class_names must be of one"),
    "no pair": ({"train": TRAIN[0]}, r"train must be \(images, labels\)"),
}


@pytest.mark.parametrize("changes, message", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_are_refused_and_leave_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, **changes)
    assert not [*tmp_path.iterdir()]


def test_many_missing_classes_are_counted(tmp_path):
    with pytest.raises(ValueError, match="no example of 1, 2, 3, 5, 6 and 1 more"):
        prepare(tmp_path, train=(TRAIN[0], TRAIN[1] * 4))


def test_folders_come_back_with_their_classes(tmp_path, folders):
    data.prepare_folder("mine", tmp_path / "sets", **folders)
    found = data.describe("mine", data_dir=tmp_path / "sets")
    assert found.class_names == ("a", "b", "c")
    for split, (images, labels) in (("train", TRAIN), ("test", TEST)):
        given = {
            image.tobytes(): label for image, label in zip(images, labels, strict=True)
        }
        images, labels = load("mine", split, tmp_path / "sets")
        assert len(images) == len(given)
        assert all(
            given[image.tobytes()] == label
            for image, label in zip(images, labels, strict=True)
        )


def test_folders_are_not_ordered_by_class(tmp_path, folders):
    data.prepare_folder("mine", tmp_path / "sets", **folders)
    _, labels = load("mine", "train", tmp_path / "sets")
    assert np.any(np.diff(labels) < 0)


def test_grey_folders_have_one_channel(tmp_path):
    train, test = draw(0, 6, (4, 4, 1)), draw(1, 3, (4, 4, 1))
    for split, arrays in (("train", train), ("test", test)):
        write_images(tmp_path / split, *arrays)
    data.prepare_folder(
        "mine", tmp_path, train=tmp_path / "train", test=tmp_path / "test"
    )
    assert data.describe("mine", data_dir=tmp_path).image_shape == (4, 4, 1)


def test_one_coloured_image_makes_the_set_coloured(tmp_path, folders):
    Image.new("L", (5, 6), 77).save(folders["train"] / "a" / "grey.png")
    data.prepare_folder("mine", tmp_path, **folders)
    images, _ = load("mine", "train", tmp_path)
    assert images.shape == (10, 6, 5, 3)
    assert any(np.all(image == 77) for image in images)


def test_hidden_files_are_left_out(tmp_path, folders):
    (folders["train"] / ".hidden").mkdir()
    (folders["train"] / "a" / ".DS_Store").write_bytes(b"")
    data.prepare_folder("mine", tmp_path, **folders)
    assert data.describe("mine", data_dir=tmp_path).num_train == 9


def test_varying_sizes_name_two_files(tmp_path, folders):
    Image.new("RGB", (7, 6)).save(folders["train"] / "b" / "wide.png")
    with pytest.raises(ValueError) as error:
        data.prepare_folder("mine", tmp_path, **folders)
    assert "wide.png" in str(error.value) and "6 x 7 pixels" in str(error.value)
    assert "6 x 5 pixels" in str(error.value) and "image_size" in str(error.value)
    assert not (tmp_path / "mine").exists()


def test_image_size_scales_the_shorter_side_and_cuts_the_centre(tmp_path):
    # Columns of three blocks; the outer ones are cut off.
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16, 0], image[:, 16:, 1] = 200, 100
    for split in ("train", "test"):
        write_images(tmp_path / split, [image, image[:, 8:]], [0, 1])
    data.prepare_folder(
        "mine",
        tmp_path,
        train=tmp_path / "train",
        test=tmp_path / "test",
        image_size=4,
    )
    images, labels = load("mine", "test", tmp_path)
    assert images.shape == (2, 4, 4, 3)
    whole = images[list(labels).index(0)]
    # Only the filter's reach blends the blocks that are cut off.
    np.testing.assert_allclose(whole[..., 0], 200, atol=12)
    np.testing.assert_allclose(whole[..., 1], 0, atol=12)
    cut = images[list(labels).index(1)].astype(int)
    assert cut[0, 0, 0] > 190 and cut[0, -1, 1] > 90 and cut[0, -1, 0] < 10


def test_photographs_are_turned_upright(tmp_path):
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, :4] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by a quarter, clockwise.
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            file = tmp_path / split / name / "photo.png"
            Image.fromarray(image).save(file, exif=exif)
    data.prepare_folder(
        "mine", tmp_path, train=tmp_path / "train", test=tmp_path / "test"
    )
    images, _ = load("mine", "test", tmp_path)
    np.testing.assert_array_equal(images[0, :4], 250)
    np.testing.assert_array_equal(images[0, 4:], 0)


def test_file_that_is_no_image_is_named(tmp_path, folders):
    (folders["test"] / "a" / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match="notes.txt is not an image"):
        data.prepare_folder("mine", tmp_path, **folders)


def test_classes_of_both_splits_must_be_the_same(tmp_path, folders):
    (folders["test"] / "d").mkdir()
    with pytest.raises(ValueError, match="same class folders; only one .* has 'd'"):
        data.prepare_folder("mine", tmp_path, **folders)


def test_empty_class_folder_is_refused(tmp_path, folders):
    for folder in folders.values():
        (folder / "d").mkdir()
    with pytest.raises(ValueError, match="d has no images"):
        data.prepare_folder("mine", tmp_path, **folders)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train": "/nonexistent"}, "/nonexistent is not a folder"),
        ({"image_size": 0}, "image_size must be positive; found 0"),
    ],
)
def test_bad_folders_are_refused(changes, message, tmp_path, folders):
    with pytest.raises(ValueError, match=message):
        data.prepare_folder("mine", tmp_path, **{**folders, **changes})


def test_folder_without_classes_is_refused(tmp_path, folders):
    with pytest.raises(ValueError, match="has no class folders"):
        data.prepare_folder(
            "mine", tmp_path, train=folders["train"] / "a", test=folders["test"]
        )


def test_command_prepares_folders(tmp_path, folders, capsys):
    command.main(
        [
            "mine",
            f"--data_dir={tmp_path}",
            f"--train={folders['train']}",
            f"--test={folders['test']}",
            "--image_size=4",
        ]
    )
    assert (
        "mine: 9 training and 4 test images, 4 x 4 x 3, 3 classes"
        in capsys.readouterr().out
    )
