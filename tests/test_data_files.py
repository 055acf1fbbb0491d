"""Image files that keep their bytes: folders, archives, classes, interruptions."""

import errno
import gzip
import io
import os
import shutil
import tarfile
import threading

import numpy as np
import pytest
from archives import image_file, opened, write_files, write_originals, write_tar
from PIL import Image

from invariance_jax import data
from invariance_jax.data import __main__ as command
from invariance_jax.data import writing
from invariance_jax.data.originals import prepare_files

IMAGE = image_file((8, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_originals(tmp_path_factory.mktemp("originals") / "train")


def prepare(data_dir, *train, **options):
    return prepare_files("mine", data_dir, **{"train": train, "test": train, **options})


def give(form, path, files):
    """Writes name -> bytes as a folder or as a tar file; returns its path."""
    return write_files(path, files) if form == "folder" else write_tar(path, files, "w")


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_archives_within_archives_are_classes_and_a_list_chooses_them(tmp_path, capsys):
    def written(name, count):
        files = {f"{number}.jpg": IMAGE for number in range(count)}
        return write_tar(tmp_path / name, files, "w")

    names = [f"{name}.tar" for name in ("cat", "dog", "owl")]
    inner = {name: written(name, 5).read_bytes() for name in names}
    write_tar(tmp_path / "train.tar", inner, "w")
    written("test.tar", 4)
    (tmp_path / "keep").write_text("owl\ncat\n")
    (tmp_path / "truth").write_text("owl\ndog\ncat\nowl\n")
    files = {"classes": "keep", "test_classes": "truth", "data_dir": ""}
    files |= {"train": "train.tar", "test": "test.tar"}
    command.main(["mine", *(f"--{n}={tmp_path / file}" for n, file in files.items())])
    printed = capsys.readouterr().out
    assert "10 training and 3 test images, 8 x 8 x 3, 2 classes (cat, owl)" in printed
    assert opened(tmp_path, "test", size=None).labels.tolist() == [1, 0, 1]
    images, labels = data.load_arrays(
        "mine", "train", data_dir=tmp_path, validation_examples=0
    )
    assert images.shape == (10, 8, 8, 3) and labels.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (("a/images/1.jpg", "b/images/2.jpg", "b/3.jpg"), ["a", "b", "b"]),
        (("train/a/images/1.jpg", "./train/b/2.jpg"), ["a", "b"]),
        (("train/a/1.jpg", "train/a/2.jpg"), []),
        (("train/a/images/1.jpg", "train/a/x/2.jpg", "train/b/3.jpg"), ["a", "a", "b"]),
        (("a/1.jpg", "a/2.jpg"), []),
    ],
)
@pytest.mark.parametrize("form", ["folder", "tar"])
def test_the_first_folder_that_differs_is_the_class(form, paths, expected, tmp_path):
    given = [tmp_path / f"{number}.tar" for number in range(len(paths))]
    if form == "tar":  # an archive for each
        for path, name in zip(given, paths, strict=True):
            write_tar(path, {name: IMAGE}, "w")
    elif "train/" in paths[0]:
        pytest.skip("a folder is given with the classes in it")
    else:
        given = [write_files(tmp_path / "all", dict.fromkeys(paths, IMAGE))]
    prepare(tmp_path, *given, index=True)
    names = data.describe("mine", data_dir=tmp_path).class_names or ()
    labels = opened(tmp_path).labels
    assert [names[n] for n in (() if labels is None else labels)] == expected


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("with_test", [False, True])
def test_files_beside_class_folders_are_named(with_test, form, folder, tmp_path):
    paths = sorted(folder.rglob("*.jpg"))
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    files |= dict.fromkeys(("n.jpg", "o.jpg", "p.jpg"), IMAGE)
    given = give(form, tmp_path / "given", files)
    splits = {"train": [folder], "test": [given]} if with_test else {"test": ()}
    place = f"{given}/n.jpg" if form == "folder" else f"{given}: n.jpg"
    message = f"^{place} is in no class folder, but other .* hide it and 2 more, or"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, given, **splits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": []}, "^classes has 0 names; expected one or more"),
        ({"test_classes": ["a", "d", "c"] * 4}, "of train; found 'c', 'd': add images"),
        ({"test_classes": ["a"], "test": ()}, "test_classes needs test"),
    ],
)
def test_classes_that_do_not_fit_are_named(changes, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path, folder, **changes)


def test_test_images_without_folders_need_their_classes(folder, tmp_path):
    options = {"train": [folder], "test": [folder / "a"]}
    with pytest.raises(ValueError, match="a/00.jpg is in no .* or give test_classes"):
        prepare(tmp_path, **options)
    prepare(tmp_path, **options, test_classes=["b"] * 6)
    assert opened(tmp_path, "test").labels.tolist() == [1] * 6


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_hidden_files_and_all_in_hidden_folders_are_left_out(form, tmp_path):
    hidden = (".notebook/1.jpg", "b/.notebook/1.jpg", ".notebook/c.tar", "a/.1.jpg")
    files = {name: IMAGE for name in ("a/1.jpg", "b/1.jpg")}
    files |= dict.fromkeys(hidden, b"no image")
    if form == "tar":
        files = {f"../{name}": body for name, body in files.items()}
    prepare(tmp_path, give(form, tmp_path / "all", files))
    found = data.describe("mine", data_dir=tmp_path)
    assert (found.num_train, found.class_names) == (2, ("a", "b"))


def test_preparing_continues_after_a_full_disk_and_refuses_other_files(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(writing, "SHARD_BYTES", 2000)
    monkeypatch.setattr(writing, "cores", lambda: 1)
    replace = os.replace

    def full_at_the_third(path, target):
        full() if "-00002-of" in str(target) else replace(path, target)

    monkeypatch.setattr(os, "replace", full_at_the_third)
    for _ in range(2):
        with pytest.raises(OSError, match="mine was not .*No space left .*continues"):
            prepare(tmp_path, folder)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("mine/*/*-0000[01]-*")}
    monkeypatch.undo()
    monkeypatch.setattr(writing, "SHARD_BYTES", 2000)
    with pytest.raises(ValueError, match="incomplete was begun from other files or w"):
        prepare(tmp_path, folder / "a")
    path = prepare(tmp_path, folder)
    for file, changed in times.items():
        assert (path / file.name).stat().st_mtime_ns == changed
    assert len(times) == 2 and len(opened(tmp_path)) == 12


@pytest.mark.parametrize("index", [False, True])
def test_preparing_continues_when_a_file_that_is_no_image_is_removed(
    index, folder, tmp_path
):
    given = shutil.copytree(folder, tmp_path / "given")
    empty = given / "b" / "99.jpg"
    empty.touch()
    with pytest.raises(ValueError, match="99.jpg is not an image .* or remove it"):
        prepare(tmp_path, given, index=index)
    assert not [*tmp_path.glob("mine/*/*record*")]
    empty.unlink()
    prepare(tmp_path, given, index=index)
    assert len(opened(tmp_path)) == 12


def test_an_index_that_was_begun_from_other_files_is_written_again(
    folder, tmp_path, monkeypatch
):
    info = writing.tfds.core.DatasetInfo
    monkeypatch.setattr(info, "write_to_directory", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(tmp_path, folder, index=True)
    monkeypatch.undo()
    prepare(tmp_path, folder / "a", index=True)
    assert len(opened(tmp_path)) == 6


def test_shards_that_are_written_at_once_keep_their_images(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(writing, "SHARD_BYTES", 1)  # an image in each
    monkeypatch.setattr(writing, "cores", lambda: 12)
    together, begin = threading.Barrier(12, timeout=30), writing.ArrayRecordWriter

    def slow(*options):
        together.wait()  # every shard is begun
        return begin(*options)

    monkeypatch.setattr(writing, "ArrayRecordWriter", slow)
    prepare(tmp_path, folder)
    found = opened(tmp_path).store.records
    expected = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    assert [found.read(number) for number in range(12)] == expected


def deep():
    file = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.float32)).save(file, "TIFF")
    return file.getvalue()


def read_folder(data_dir, folder):
    data.prepare_folder("mine", data_dir, train=folder)


def copy_files(data_dir, folder):
    prepare(data_dir, folder, test=())


both = pytest.mark.parametrize("function", [read_folder, copy_files])


@both
def test_all_files_that_are_no_images_are_named_at_once(function, tmp_path):
    bad = {f"{number}.txt": b"text" for number in range(7)}
    files = {"a.jpg": IMAGE, "b.jpg": IMAGE, **bad, "0.tif": deep()}
    given = write_files(tmp_path / "train", files)
    with pytest.raises(ValueError) as caught:
        function(tmp_path, given)
    message = str(caught.value)
    assert message.count("is not an image that can be read") == 5
    assert (
        "txt is not an image that can be read (its format is unknown); rep" in message
    )
    assert message.endswith(" ... and 3 more")
    for name in bad:
        (given / name).unlink()
    with pytest.raises(ValueError, match=r"0.tif is .*\(its mode F has more than"):
        function(tmp_path, given)


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_images_that_are_given_twice_are_refused(form, tmp_path):
    """One of both could become a test image."""
    given = give(form, tmp_path / "given", {"1.jpg": IMAGE, "2.jpg": IMAGE})
    with pytest.raises(ValueError, match="given.* is given twice; expected each"):
        prepare(tmp_path / "sets", given, given)


def test_a_list_of_classes_that_is_no_text_is_named(tmp_path):
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    flags = [f"--train={tmp_path}", f"--classes={tmp_path / 'list'}"]
    with pytest.raises(ValueError, match="list is no text; expected a name on each"):
        command.main(["mine", *flags])


@both
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "train (does not exist|is not a folder); expected a folder"),
        ({".hidden/1.jpg": IMAGE}, "train has no images"),
        ({"1.jpg": IMAGE}, "there is one image; expected 2 or more"),
        ({"a/1.jpg": IMAGE, "b/1.jpg": IMAGE}, "of train; found '.': add images to"),
    ],
)
def test_too_few_images_are_refused(function, files, message, tmp_path):
    write_files(tmp_path / "train", files or {})
    with pytest.raises(ValueError, match=message):
        function(tmp_path, tmp_path / "train")


def test_class_folders_without_images_are_left_out_if_files_are_kept(tmp_path):
    given = write_files(tmp_path / "train", {"a/1.jpg": IMAGE, "b/.hidden": IMAGE})
    with pytest.raises(ValueError, match="train/b has no images; add"):
        read_folder(tmp_path, given)
    other = write_files(tmp_path / "other", {"b/2.jpg": IMAGE})
    prepare(tmp_path, given, other, test=[given])
    found = data.describe("mine", data_dir=tmp_path)
    assert (found.num_train, found.class_names) == (2, ("a", "b"))


@both
def test_a_link_that_leads_nowhere_is_named(function, tmp_path):
    given = write_files(tmp_path / "train", {"1.jpg": IMAGE, "2.jpg": IMAGE})
    (given / "3.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(ValueError, match="^[^ ]*3.jpg is not an image .*No such file"):
        function(tmp_path, given)


LONG = write_tar(io.BytesIO(), {f"{n}/1.png": bytes(300) for n in "abcd"}, "w")
LONG = LONG.getvalue()
DAMAGED = {
    "header": LONG[:2048] + b"!" + LONG[2049:],
    "between": LONG[:2048],
    "within": LONG[:2100],
    "noise": b"x" * 2048,
    "gzip": gzip.compress(b"x"),
    "empty": bytes(1024),
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("nested", [False, True])
def test_a_damaged_archive_is_named(body, nested, tmp_path):
    path, message = (
        tmp_path / "train.tar",
        "cut or damaged at byte|not an unc|no images",
    )
    path.write_bytes(body)
    if nested:
        write_tar(path, {"cat.tar": body}, "w")
        message = "the archive of cat is cut or damaged at byte"
    with pytest.raises(ValueError, match=f"train.tar.*({message})"):
        prepare(tmp_path, path)


def test_a_link_within_an_archive_is_named(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as made:
        entry = tarfile.TarInfo("a/1.png")
        entry.type, entry.linkname = tarfile.LNKTYPE, "a/0.png"
        made.addfile(entry)
    with pytest.raises(ValueError, match=r"train.tar: a/1.png is a link"):
        prepare(tmp_path, tmp_path / "train.tar")


def test_a_folder_that_cannot_be_listed_stops(folder, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="train/b"):
        prepare(tmp_path, folder)
