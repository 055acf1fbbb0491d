"""A user's own images as a set: arrays, folders, and what is refused."""

import functools
import os
import shutil
import struct
from unittest import mock

import numpy as np
import pytest
from archives import assert_holds, draw
from PIL import Image

from invariance_jax import data
from invariance_jax.data import __main__ as command
from invariance_jax.data import decoding, writing


def small(seed, num, shape=(6, 5, 3)):
    return draw(seed, num, shape, num_classes=3)


TRAIN, TEST = small(0, 9), small(1, 4)


def load(split, data_dir):
    return data.load_arrays("mine", split, data_dir=data_dir, validation_examples=0)


def describe(data_dir):
    return data.describe("mine", data_dir=data_dir)


def prepare(data_dir, **changes):
    settings = {"train": TRAIN, "test": TEST, **changes}
    return data.prepare_arrays(settings.pop("name", "mine"), data_dir, **settings)


def write_images(folder, images, labels=None):
    """Writes PNG files into the class folders a, b and c, or into the folder."""
    for i, image in enumerate(images):
        path = folder / ("" if labels is None else "abc"[labels[i]]) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
    return folder


@pytest.fixture
def folders(tmp_path):
    """Two folders of class folders, as flags of `prepare_folder`."""
    splits = {"train": TRAIN, "test": TEST}
    return {name: write_images(tmp_path / name, *splits[name]) for name in splits}


check = functools.partial(assert_holds, "mine")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("chunk", [2, 500])
def test_arrays_come_back_in_their_order(
    channels, labelled, chunk, tmp_path, monkeypatch
):
    monkeypatch.setattr(writing, "SHARD_BYTES", chunk)
    splits = {
        "train": small(0, 9, (6, 5, channels)),
        "test": small(1, 4, (6, 5, channels)),
    }
    if not labelled:
        splits = {name: (images, None) for name, (images, _) in splits.items()}
    assert prepare(tmp_path, **splits) == tmp_path / "mine" / "1.0.0"
    for split, (images, labels) in splits.items():
        found, found_labels = load(split, tmp_path)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, images)
        if labelled:
            assert found_labels.dtype == np.int32
            np.testing.assert_array_equal(found_labels, labels)
        else:
            assert found_labels is None


NAMES = ["e\u0301\u00e9", "a  b\tc", "\u65e5\u672c \U0001f468\u200d\U0001f469"]


@pytest.mark.parametrize(
    ("changes", "num_classes", "names"),
    [
        ({"class_names": NAMES}, 3, tuple(NAMES)),
        ({"class_names": np.array(["x", "y", "z"])}, 3, ("x", "y", "z")),
        ({}, 3, ("0", "1", "2")),
        ({"train": (TRAIN[0], None), "test": (TEST[0], None)}, None, ()),
    ],
)
def test_arrays_are_described_without_decoding(
    changes, num_classes, names, tmp_path, monkeypatch
):
    prepare(tmp_path, **changes)
    monkeypatch.delattr(decoding, "decode")
    found = describe(tmp_path)
    assert found.image_shape == (6, 5, 3)
    assert (found.num_train, found.num_test) == (9, 4)
    assert (found.num_classes, found.class_names) == (num_classes, names)
    pixels = TRAIN[0].reshape(-1, 3) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(axis=0), rtol=1e-12)


def test_existing_set_is_not_overwritten(tmp_path):
    prepare(tmp_path)
    with pytest.raises(ValueError, match="'mine' is taken by the set in .*mine/1.0.0"):
        prepare(tmp_path, train=TEST, test=TRAIN)
    assert describe(tmp_path).num_train == 9


def test_a_set_that_another_process_wrote_meanwhile_is_kept(tmp_path, monkeypatch):
    write = writing.write_set

    def write_late(*about):
        monkeypatch.undo()
        prepare(tmp_path, train=TEST, test=TRAIN)
        write(*about)

    monkeypatch.setattr(writing, "write_set", write_late)
    path = prepare(tmp_path)
    assert [*path.parent.iterdir()] == [path]
    assert describe(tmp_path).num_train == len(TEST[0])


def full(root):
    raise OSError("disk full\nmore")


@pytest.mark.parametrize("fault", [full, shutil.rmtree])
def test_failed_preparation_is_one_sentence_and_leaves_no_set(
    fault, tmp_path, monkeypatch
):
    root = tmp_path / "sets"
    monkeypatch.setattr(writing, "_encode", lambda image: fault(root) or b"")
    message = (
        f"mine was not written to {root}/mine/1.0.0 .*folder has room, .*not removed"
    )
    with pytest.raises(OSError, match=message) as error:
        prepare(root)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'mine' is not prepared"):
        describe(root)
    monkeypatch.undo()
    prepare(root)


def test_temporary_folder_of_a_killed_preparation_is_not_read(tmp_path):
    path = prepare(tmp_path)
    os.rename(path, path.parent / "incomplete.ABCDEF_1.0.0")
    with pytest.raises(ValueError, match="'mine' is not prepared"):
        describe(tmp_path)
    prepare(tmp_path)
    assert describe(tmp_path).num_train == 9


@pytest.mark.parametrize("folder", ["try[1]", "a@2", "st*r?", "{a,b}", "x[0:3]"])
def test_paths_are_no_patterns(folder, tmp_path):
    for name, arrays in {"train": TRAIN, "test": TEST}.items():
        write_images(tmp_path / folder / name, *arrays)
    root = tmp_path / folder
    data.prepare_folder("mine", root, train=root / "train", test=root / "test")
    check(root, "train", *TRAIN)


@pytest.mark.parametrize("name", ["Mine", "my-set", "1st", "", "a/b", "../a", None])
def test_names_are_snake_case_and_not_taken(name, tmp_path):
    with pytest.raises(ValueError, match="name must be lower-case letters.*found"):
        prepare(tmp_path, name=name)
    for taken in (*data.NAMES, "spirograph"):
        with pytest.raises(ValueError, match=f"name '{taken}' is taken"):
            prepare(tmp_path, name=taken)


def labelled(images, labels):
    return {"train": (images, labels), "test": (images, labels)}


BAD_ARRAYS = {
    "float": ({"train": (TRAIN[0] / 255, TRAIN[1])}, "train must be uint8.*float64"),
    "rank": ({"test": (TEST[0][0], TEST[1])}, r"test must be uint8 \[N, H, W, 1 or 3"),
    "channels": ({"train": (TRAIN[0][..., :2], TRAIN[1])}, r"found uint8 \[9, 6, 5, 2"),
    "empty": ({"test": (TEST[0][:0], TEST[1][:0])}, r"not empty; .*\[0, 6, 5, 3\]"),
    "lengths": ({"train": (TRAIN[0], TRAIN[1][:-1])}, r"\[9\].*found int64 \[8\]"),
    "label rank": ({"train": (TRAIN[0], np.eye(9, dtype=int))}, r"int64 \[9, 9\]"),
    "label dtype": ({"test": (TEST[0], TEST[1] * 1.0)}, "integers .*found float64"),
    "bool": ({"test": (TEST[0], TEST[1] > 0)}, "integers .*found bool"),
    "negative": ({"train": (TRAIN[0], TRAIN[1] - 1)}, "0 or more; found -1"),
    "gap": ({"train": (TRAIN[0], TRAIN[1] * 4)}, r"of 6 of them, .*\[1, 2, 3, 5, 6\]"),
    "huge": (labelled(TRAIN[0], TRAIN[1] + 10**15), r"of 1\d* of .*\[0, 1, 2, 3, 4\]"),
    "unsigned": (
        labelled(TRAIN[0], np.uint64(2**63) + TRAIN[1].astype(np.uint64)),
        "no example of",
    ),
    "unknown": ({"test": (TEST[0], TEST[1] + 3)}, r"found 3 others, .*\[3, 4, 5\]"),
    "one class": ({"train": (TRAIN[0], TRAIN[1] * 0)}, "2 classes or more.*found 1"),
    "sizes": ({"test": (TEST[0][:, :5], TEST[1])}, r"\[6, 5, 3\] and \[5, 5, 3\]"),
    "few names": ({"class_names": ["a", "b"]}, "found 2 classes and the label 2"),
    "many names": ({"class_names": list("abcd")}, r"no example of 1 of them.*\[3\]"),
    "same names": ({"class_names": list("aba")}, "class_names must be different"),
    "no pair": ({"train": TRAIN[0]}, r"train must be \(images, labels\)"),
    "half": ({"test": (TEST[0], None)}, "both train and test, or for neither"),
    "names only": (
        {**labelled(TRAIN[0], None), "class_names": ["a", "b"]},
        "for neither and then without class_names",
    ),
    **{
        f"name {name!r}": ({"class_names": ["a", "b", name]}, "must each be one line")
        for name in ("", " ", "c ", "\tc", "c\nd", "c\rd", "c\r", "\udce9", "\u2028", 3)
    },
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays_are_refused_and_leave_nothing(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, **changes)
    assert not [*tmp_path.iterdir()]


def test_folders_come_back_with_their_classes_in_another_order(tmp_path, folders):
    (folders["train"] / ".hidden").mkdir()
    (folders["train"] / "a" / ".DS_Store").write_bytes(b"")
    within = folders["train"] / "c" / "images"
    within.mkdir()
    for file in [*within.parent.glob("*.*")]:
        file.rename(within / file.name)
    data.prepare_folder("mine", tmp_path / "sets", **folders)
    assert describe(tmp_path / "sets").class_names == ("a", "b", "c")
    check(tmp_path / "sets", "train", *TRAIN)
    check(tmp_path / "sets", "test", *TEST)
    assert np.any(np.diff(load("train", tmp_path / "sets")[1]) < 0)


@pytest.mark.parametrize("labels", [None, np.arange(25) % 3])
@pytest.mark.parametrize("with_test", [True, False])
def test_flat_folders_have_no_labels_and_a_tenth_may_be_put_aside(
    labels, with_test, tmp_path
):
    images, _ = small(2, 25)
    folders = {"train": write_images(tmp_path / "train", images, labels)}
    if with_test:
        folders["test"] = folders["train"]
    data.prepare_folder("mine", tmp_path, **folders)
    found = describe(tmp_path)
    named = (None, ()) if labels is None else (3, ("a", "b", "c"))
    assert (found.num_classes, found.class_names) == named
    assert (found.num_train, found.num_test) == ((25, 25) if with_test else (22, 3))
    if with_test:
        check(tmp_path, "test", images, labels)
        check(tmp_path, "train", images, labels)
        return
    given = {images[i].tobytes(): labels is None or labels[i] for i in range(25)}
    train, test = load("train", tmp_path), load("test", tmp_path)
    both = [given.pop(image.tobytes()) for image in (*train[0], *test[0])]
    assert not given and (labels is None or both == [*train[1], *test[1]])


@pytest.mark.parametrize("coloured", [False, True])
def test_grey_folders_have_one_channel_unless_one_image_has_colour(tmp_path, coloured):
    images = small(0, 6, (4, 4, 1))[0]
    write_images(tmp_path / "train", images)
    if coloured:
        Image.new("RGB", (4, 4), (7, 8, 9)).save(tmp_path / "train" / "colour.png")
    data.prepare_folder("mine", tmp_path, train=tmp_path / "train")
    assert describe(tmp_path).image_shape == (4, 4, 3 if coloured else 1)
    found = [*load("train", tmp_path)[0], *load("test", tmp_path)[0]]
    first = {image[..., 0].tobytes() for image in found if np.ptp(image[0, 0]) == 0}
    assert first == {image.tobytes() for image in images}


@pytest.mark.parametrize("size", [4, np.int64(4)])
def test_image_size_scales_the_shorter_side_and_cuts_the_centre(size, tmp_path):
    # Columns of three blocks; the outer ones are cut off.
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16, 0], image[:, 16:, 1] = 200, 100
    train = write_images(tmp_path / "train", [image, image[:, 8:]], [0, 1])
    data.prepare_folder("mine", tmp_path, train=train, test=train, image_size=size)
    images, labels = load("test", tmp_path)
    assert images.shape == (2, 4, 4, 3)
    whole, cut = images[np.argsort(labels)].astype(int)
    # Only the filter's reach blends the blocks that are cut off.
    np.testing.assert_allclose(whole[..., 0], 200, atol=12)
    np.testing.assert_allclose(whole[..., 1], 0, atol=12)
    assert cut[0, 0, 0] > 190 and cut[0, -1, 1] > 90 and cut[0, -1, 0] < 10


@pytest.mark.parametrize("tag", [0x0100, 0x011A])  # width, resolution
def test_photographs_are_turned_upright_also_by_damaged_exif(tag, tmp_path):
    entries = [(0x0112, 3, 1, b"\0\6\0\0"), (tag, 2, 4, b"abc\0")]
    body = b"".join(struct.pack(">HHI4s", *entry) for entry in sorted(entries))
    exif = b"Exif\0\0MM\0*\0\0\0\10\0\2" + body + bytes(4)
    write_images(tmp_path / "train", TRAIN[0])
    turned = Image.new("RGB", (6, 5), (9, 200, 9))
    turned.save(tmp_path / "train" / "turned.jpg", exif=exif)
    data.prepare_folder("mine", tmp_path, train=tmp_path / "train")
    assert describe(tmp_path).image_shape == (6, 5, 3)


def test_a_grey_tiff_file_is_turned_upright(tmp_path):
    """Pillow, given its path, would turn its size and not its pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = TRAIN[0][:2, ..., :1]
    folder = tmp_path / "train"
    folder.mkdir()
    for number, image in enumerate(upright[..., 0]):
        stored = Image.fromarray(np.rot90(image))
        stored.save(folder / f"{number}.tif", exif=exif)
    data.prepare_folder("mine", tmp_path, train=folder, test=folder)
    check(tmp_path, "test", upright, None)


def test_an_error_of_any_format_names_the_file(tmp_path, folders, monkeypatch):
    error = RuntimeError("Failed to decode")
    monkeypatch.setattr(Image, "open", mock.Mock(side_effect=error))
    with pytest.raises(ValueError, match=r"png is not an image .*Failed to decode\)"):
        data.prepare_folder("mine", tmp_path, **folders)


@pytest.mark.parametrize(
    ("mode", "message"), [("I;16", "more than 8 bits"), ("RGBA", "it is transparent")]
)
def test_images_that_would_lose_something_are_refused(mode, message, tmp_path):
    write_images(tmp_path / "train", TRAIN[0])
    Image.new(mode, (5, 6)).save(tmp_path / "train" / "other.png")
    with pytest.raises(ValueError, match=f"other.png is not an image .*{message}"):
        data.prepare_folder("mine", tmp_path, train=tmp_path / "train")


def test_varying_sizes_name_two_files(tmp_path, folders):
    Image.new("RGB", (7, 6)).save(folders["train"] / "b" / "wide.png")
    message = r"one size, or give image_size: .*png has 6 x [57] .*png has 6 x [57]"
    with pytest.raises(ValueError, match=message) as error:
        data.prepare_folder("mine", tmp_path, **folders)
    assert "wide.png" in str(error.value)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 0}, "image_size must be an integer of 1 or more; found 0"),
        ({"image_size": 4.0}, "image_size must be an integer of 1 or more; found 4.0"),
        ({"image_size": 10**7}, "13 images of 10000000 x 10000000 pixels take 3.9e"),
        ({"moved": "train/e\udce9"}, r"UTF-8 text .*'e\\udce9'"),
    ],
)
def test_bad_folders_are_refused(changes, message, tmp_path, folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if moved := changes.pop("moved", None):
        os.rename("train/c", moved)
        shutil.rmtree("test/c")
    with pytest.raises(ValueError, match=message):
        data.prepare_folder("mine", tmp_path, **{**folders, **changes})
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("flags", "classes"), [(["--test=test", "--image_size=4"], "3"), ([], "no")]
)
def test_command_prepares_folders(
    flags, classes, tmp_path, folders, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    train = "train" if flags else "train/a"
    command.main(["mine", f"--data_dir={tmp_path}", f"--train={train}", *flags])
    counts = "9 training and 4 test images, 4 x 4" if flags else "2 training and 1 test"
    printed = capsys.readouterr().out
    assert f"mine: {counts}" in printed and f"x 3, {classes} classes" in printed
