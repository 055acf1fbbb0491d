"""Sets that are decoded when they are needed: rows, threads, files that fail."""

import errno
import gzip
import io
import os
import resource
import shutil
import tarfile
import threading
import time
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from archives import write_tar
from PIL import Image
from processes import rows
from tiny import image_arrays, image_config

from invariance_jax import check, data, train
from invariance_jax.data import __main__ as command
from invariance_jax.data import decoding, originals, records, streams
from invariance_jax.data.originals import prepare_files
from invariance_jax.settings import resolve
from invariance_jax.tasks import make_task
from invariance_jax.training import parallel
from invariance_jax.training.batches import Streamed, make_sampler
from invariance_jax.transforms import Squashed, image
from invariance_jax.transforms.crops import crop_family

SIZES = [(9, 14), (16, 11), (30, 30), (1, 1), (12, 40), (17, 17)]
RANDOM = np.random.default_rng(0)
LONG_COMMENT = b"\xff\xfe\x20\x02" + bytes(0x2000)


def content(size, mode="RGB", form="JPEG", **options):
    """Returns the file of a smooth random image."""
    noise = RANDOM.integers(0, 256, (3, 3, 3), np.uint8)
    file, picture = io.BytesIO(), Image.fromarray(noise).resize(size[::-1])
    picture.convert(mode).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images of six sizes in two classes."""
    path = tmp_path_factory.mktemp("originals") / "train"
    for number in range(12):
        file = path / "ab"[number % 2] / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(SIZES[number % 6], quality=95))
    return path


def opened(data_dir, split="train", *, size=8, **options):
    chosen = {"data_dir": data_dir, "validation_examples": 0, "size": size}
    streams._decoded.cache_clear()
    data.loading._pictures.cache_clear()
    return data.open_pictures("mine", split, **{**chosen, **options})


@pytest.fixture(params=[True, False], ids=["index", "records"])
def data_dir(request, folder, tmp_path):
    """The set "mine" of these images."""
    prepare_files("mine", tmp_path, train=[folder], test=[folder], index=request.param)
    return tmp_path


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("size", [None, 5, 20, 100])
@pytest.mark.parametrize("shape", [(1, 1), (333, 501), (800, 17), (410, 400)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_decoders_give_the_same_bits(shape, size, mode, monkeypatch):
    pytest.importorskip("simplejpeg")
    file = content(shape, mode, quality=80, progressive=size == 20)
    fast, found = decoding.decode(file, channels=3, size=size)
    monkeypatch.setattr(decoding, "simplejpeg", None)
    slow, expected = decoding.decode(file, channels=3, size=size)
    assert found == expected == shape
    np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize(
    ("mode", "form"),
    [("CMYK", "JPEG"), ("P", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("I;16", "PNG")],
)
def test_other_modes_become_colours_or_grey(mode, form):
    shown = 255 if mode == "1" else 200
    value = shown * 257 if mode == "I;16" else shown
    picture = Image.new("L" if mode != "I;16" else mode, (6, 4), value)
    picture = picture if mode == "I;16" else picture.convert(mode)
    file = io.BytesIO()
    picture.save(file, form)
    for channels in (1, 3):
        pixels, shape = decoding.decode(file.getvalue(), channels=channels, size=3)
        assert (pixels.shape, shape) == ((3, 3, channels), (4, 6))
        np.testing.assert_allclose(pixels, shown, atol=2)


def test_orientation_turns_and_transparency_is_white():
    exif = Image.Exif()
    exif[0x0112] = 6
    late = content((8, 4), exif=exif).replace(
        b"\xff\xe1", LONG_COMMENT + b"\xff\xe1", 1
    )
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    for file in (
        content((8, 4), exif=exif),
        late,
        content((8, 4), xmp=xmp),
    ):
        assert decoding.decode(file, channels=3, size=2)[1] == (4, 8)
    clear = io.BytesIO()
    Image.new("RGBA", (2, 2), (9, 9, 9, 0)).save(clear, "PNG")
    pixels, _ = decoding.decode(clear.getvalue(), channels=3, size=None)
    assert (pixels == 255).all()


def test_rows_are_those_of_the_files(data_dir, folder):
    found = opened(data_dir)
    files = sorted(folder.rglob("*.jpg"), key=lambda file: (file.parent.name, file))
    expected = [
        decoding.decode(file.read_bytes(), channels=3, size=8) for file in files
    ]
    chosen = np.array([[3, 0], [11, 3]])
    batch = found.load(chosen)
    same(batch.pixels, np.array([pixels for pixels, _ in expected])[chosen])
    same(batch.sizes, np.array([shape for _, shape in expected])[chosen])
    assert found.labels.tolist() == [file.parent.name == "b" for file in files]
    assert data.describe("mine", data_dir=data_dir).image_shape == (0, 0, 3)
    with pytest.raises(ValueError, match=r"mine have several sizes; .*data.store_size"):
        opened(data_dir, size=None)


@pytest.mark.parametrize("generator", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("threads", [1, 8])
def test_any_step_gives_the_same_batch_however_it_is_reached(
    threads, generator, data_dir
):
    found, key = opened(data_dir, threads=threads), jax.random.key(3, impl=generator)
    sampler = make_sampler(num_examples=12, batch_size=4)
    devices = jax.devices()[:2]
    batches = Streamed(
        found, sampler, key, batch_size=4, num_devices=2, prefetch=threads
    )
    for step in (0, 1, 2, 70, 5, 6):
        batch = batches.load(step, devices)
        indices = np.asarray(sampler(key, jnp.int32(step))).reshape(2, 2)
        same(batch, found.in_memory("test").load(indices))
    assert batches.report()["waited"] > 0 == batches.report()["waited"]


def test_corrupt_files_are_named_counted_and_replaced_within_their_class(
    folder, tmp_path, caplog
):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    bad = copy / "a" / "10.jpg"  # the last of its class
    bad.write_bytes(bad.read_bytes()[:-40])
    prepare_files("mine", tmp_path, train=[copy], test=[copy], index=True)
    for threads in (1, 8):
        found = opened(tmp_path, max_corrupt=1, threads=threads)
        batch = found.load(np.arange(12))
        same(batch.pixels[5], batch.pixels[0])
        same(found.in_memory("test").all(), batch)
        assert found.num_corrupt == 1
    assert f"{bad} is corrupt" in caplog.text
    with pytest.raises(ValueError, match=r"10.jpg is corrupt: .*max_corrupt is 0"):
        opened(tmp_path).load(np.arange(12))
    (copy / "b" / "01.jpg").unlink()
    with pytest.raises(ValueError, match=r"max_corrupt is 1, and 2 cannot be read"):
        opened(tmp_path, max_corrupt=1).load(np.arange(12))


def test_the_images_of_a_run_replace_corrupt_ones_also_those_of_a_slice(tmp_path):
    def examples(source):
        few = {"data.train_examples": 20, "data.max_corrupt": 1, "data.source": source}
        return make_task(resolve(image_config(tmp_path, few))).examples("train")

    x, y = examples("stream")
    x.store.corrupt[int(x.rows[0])] = "damaged"
    expected = x.load(1 + np.flatnonzero(y[1:] == y[0])[:1])
    for found in (x, x[:1], x[np.array([0])], x[:1].in_memory("test")):
        same(found.load(np.array([0])), expected)
    same(examples("memory").x[:1].all(), expected)
    x.store.corrupt |= dict.fromkeys(x.rows.tolist(), "damaged")
    with pytest.raises(ValueError, match="all images that may replace it are corrupt"):
        x.load(np.array([0]))  # not even by one of the 100 others of the split


def test_no_validation_image_replaces_one_of_training(tmp_path):
    image_config(tmp_path)
    options = {"data_dir": tmp_path, "validation_examples": 30, "size": None}
    found = data.open_pictures("bars", "train", **options, max_corrupt=150)
    found.store.corrupt |= dict.fromkeys(found.rows.tolist(), "damaged")
    with pytest.raises(ValueError, match="all images that may replace it are corrupt"):
        found.load(np.array([0]))


def test_an_error_of_the_file_system_is_no_corrupt_image(folder, tmp_path, monkeypatch):
    def broken(path, mode):
        raise OSError(errno.EIO, "Input/output error", path)

    prepare_files("mine", tmp_path, train=[folder], test=[folder], index=True)
    found = opened(tmp_path, max_corrupt=12)
    monkeypatch.setattr(streams, "open", broken, raising=False)
    with pytest.raises(OSError, match=r"error: '.*00.jpg'"):
        found.load(np.arange(1))
    assert found.num_corrupt == 0


def test_an_image_that_takes_too_much_memory_is_named(data_dir, monkeypatch):
    def huge(content, **settings):
        raise MemoryError

    monkeypatch.setattr(decoding, "decode", huge)
    with pytest.raises(MemoryError, match=r"mine|00.jpg .*takes too much memory"):
        opened(data_dir, max_corrupt=12).load(np.arange(1))


def test_as_many_files_as_allowed_may_stay_open():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] // 2, before[1]))
        records.ShardRecords([], None)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1],) * 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_index_older_than_a_file_and_a_shard_that_vanished_stop(
    data_dir, folder, monkeypatch
):
    index = "places" in np.load(data_dir / "mine" / "1.0.0" / "train.npz")
    found = opened(data_dir, max_corrupt=12)
    if index:
        monkeypatch.setattr(found.store.records, "times", np.zeros(12, np.int64))
    else:
        next((data_dir / "mine" / "1.0.0").glob("*train*00000-of*")).unlink()
    message = "has changed since its index" if index else "cannot be read as a file of"
    with pytest.raises(ValueError, match=message):
        found.load(np.arange(12))


def test_a_thread_that_does_not_answer_is_named(data_dir, monkeypatch):
    found, event = opened(data_dir, threads=3), threading.Event()
    monkeypatch.setattr(streams, "_PATIENCE", 0.2)
    monkeypatch.setattr(found.store.records, "read", lambda index: event.wait())
    message = r"Thread-\d+ \S+ has been reading .*(mine|train)"
    with pytest.raises(TimeoutError, match=message):
        found.load(np.arange(12))
    event.set()


def test_a_batch_waits_as_long_as_others_before_it_are_decoded(data_dir, monkeypatch):
    found = opened(data_dir, threads=1)
    read = found.store.records.read
    monkeypatch.setattr(streams, "_PATIENCE", 0.5)
    monkeypatch.setattr(
        found.store.records, "read", lambda index: time.sleep(0.05) or read(index)
    )
    before = [found.start(np.arange(12)) for _ in range(2)]  # take 1.2 s
    found.load(np.arange(1))
    assert all(job.ready() for pending in before for job in pending.jobs)


def test_a_process_that_was_suspended_does_not_hang(data_dir, monkeypatch):
    found, passed = opened(data_dir), [0.0]
    read = found.store.records.read

    def suspended(index):
        time.sleep(0.05)
        passed[0] += 1000
        time.sleep(0.05)
        return read(index)

    clock = mock.Mock(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr(streams, "time", clock)
    monkeypatch.setattr(found.store.records, "read", suspended)
    found.load(np.arange(1))


ENDING = """
import atexit, threading
atexit.register(lambda: print(len(streams._busy), [job.ready() for job in jobs][-1]))
import numpy as np
from invariance_jax import data
from invariance_jax.data import streams
options = {"data_dir": %r, "validation_examples": 0, "size": 8}
found = data.open_pictures("mine", "train", **options, threads=8)
read, begun = found.store.records.read, threading.Event()
found.store.records.read = lambda index: begun.set() or time.sleep(0.05) or read(index)
import time
jobs = found.start(np.arange(12).repeat(99)).jobs
begun.wait()
"""


def test_a_process_that_ends_waits_for_no_batch_but_lets_each_thread_finish(data_dir):
    # A thread that decodes while the interpreter goes may abort the process.
    shown = ["-W", "default::ResourceWarning"]
    process = processes.start([*shown, "-c", ENDING % str(data_dir)])
    assert processes.finish(process) == ([0], ["0 False\n"])


def test_boxes_have_the_aspect_of_the_image_as_it_was():
    unit = RANDOM.random((200, 22), np.float32)
    options = {"area": (0.08, 1.0), "aspect": (3 / 4, 4 / 3), "whole_pixels": False}
    squashed = crop_family(source_size=(64, 64), squashed=True, **options)
    for shape in [(30, 50), (400, 100), (20, 2000), (9, 9)]:
        plain = crop_family(source_size=shape, **options)
        boxes = squashed.draw_sized(unit, np.tile(np.int32(shape), (200, 1)))
        scale = np.tile(np.array(shape) / 64, 2)
        np.testing.assert_allclose(
            boxes * scale[None], plain.draw(unit), rtol=1e-3, atol=1e-3 * max(shape)
        )


def test_plain_squashed_image_is_the_central_square_of_the_image():
    make = {"image_size": 8, "mean": (0,), "std": (1,), "strength": 0.5}
    make |= {"jitter_probability": 0.0, "gray_probability": 0.0, "crop": True}
    made = image.make_transformation(
        source_size=16, flip=False, differentiate=(), squashed=True, **make
    )
    wide = np.zeros((16, 16, 3), np.uint8)  # was 10 x 40: the middle quarter is white
    wide[:, 6:10] = 255
    x = Squashed(wide[None], np.array([[10, 40]], np.int32))
    shown = made.plain(jax.tree.map(jnp.asarray, x))
    np.testing.assert_allclose(shown[0, :, 1:-1], 1, atol=0.05)
    boxes = made.draw(jax.random.key(0), x).held["crop"]
    assert boxes.shape == (1, 4) and float(boxes[0, 3]) < 14


def test_archives_within_archives_are_classes_and_a_list_chooses_them(tmp_path, capsys):
    def written(name, count):
        files = {f"{number}.jpg": content((8, 8)) for number in range(count)}
        return write_tar(tmp_path / name, files, "w")

    names = [f"{name}.tar" for name in ("cat", "dog", "owl")]
    inner = {name: written(name, 5).read_bytes() for name in names}
    write_tar(tmp_path / "train.tar", inner, "w")
    written("test.tar", 4)
    (tmp_path / "keep").write_text("owl\ncat\n")
    (tmp_path / "truth").write_text("owl\ndog\ncat\nowl\n")
    flags = [f"--{n}={tmp_path / f}" for n, f in (("classes", "keep"),)]
    flags += [f"--test_classes={tmp_path / 'truth'}", f"--data_dir={tmp_path}"]
    splits = [f"--train={tmp_path}/train.tar", f"--test={tmp_path}/test.tar"]
    command.main(["mine", *splits, *flags])
    assert "10 training and 3 test images, 8 x 8 x 3, 2" in capsys.readouterr().out
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
    files = {path: content((8, 8)) for path in paths}
    given = []
    if form == "tar":
        for number, (name, body) in enumerate(files.items()):  # an archive for each
            given.append(write_tar(tmp_path / f"{number}.tar", {name: body}, "w"))
    elif "train/" in paths[0]:
        pytest.skip("a folder is given with the classes in it")
    else:
        given.append(tmp_path / "all")
        for name, body in files.items():
            (given[0] / name).parent.mkdir(parents=True, exist_ok=True)
            (given[0] / name).write_bytes(body)
    prepare_files("mine", tmp_path, train=given, test=given, index=True)
    names = data.describe("mine", data_dir=tmp_path).class_names or ()
    labels = opened(tmp_path).labels
    assert [names[n] for n in (() if labels is None else labels)] == expected


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("with_test", [False, True])
def test_a_file_beside_class_folders_is_named(with_test, form, folder, tmp_path):
    given = shutil.copytree(folder, tmp_path / "given")
    (given / "notes.jpg").write_bytes(content((8, 8)))
    if form == "tar":
        paths = given.rglob("*.jpg")
        files = {str(path.relative_to(given)): path.read_bytes() for path in paths}
        given = write_tar(tmp_path / "given.tar", files, "w")
    splits = {"train": [folder], "test": [given]} if with_test else {"train": [given]}
    place = f"{given}/notes.jpg" if form == "folder" else f"{given}: notes.jpg"
    with pytest.raises(ValueError, match=f"^{place} is in no class folder, but other"):
        prepare_files("mine", tmp_path, **splits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": []}, "^classes has 0 names; expected one or more"),
        ({"test_classes": ["a", "c"] * 6}, "those of train; found 'c'"),
    ],
)
def test_classes_that_do_not_fit_are_named(changes, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        prepare_files("mine", tmp_path, train=[folder], test=[folder], **changes)


def test_test_images_without_folders_need_their_classes(folder, tmp_path):
    options = {"train": [folder], "test": [folder / "a"]}
    with pytest.raises(ValueError, match="a/00.jpg is in no .* or give test_classes"):
        prepare_files("mine", tmp_path, **options)
    prepare_files("mine", tmp_path, **options, test_classes=["b"] * 6)
    assert opened(tmp_path, "test").labels.tolist() == [1] * 6


def test_classes_of_no_test_images_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="test_classes needs test"):
        prepare_files("mine", tmp_path, train=[folder], test_classes=["a"])


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_hidden_files_and_all_in_hidden_folders_are_left_out(form, tmp_path):
    hidden = (".notebook/1.jpg", "b/.notebook/1.jpg", ".notebook/c.tar", "a/.1.jpg")
    files = {name: content((8, 8)) for name in ("a/1.jpg", "b/1.jpg")}
    files |= dict.fromkeys(hidden, b"no image")
    if form == "tar":
        above = {f"../{name}": body for name, body in files.items()}
        given = write_tar(tmp_path / "all.tar", above, "w")
    else:
        given = tmp_path / "all"
        for name, body in files.items():
            (given / name).parent.mkdir(parents=True, exist_ok=True)
            (given / name).write_bytes(body)
    prepare_files("mine", tmp_path, train=[given], test=[given])
    found = data.describe("mine", data_dir=tmp_path)
    assert (found.num_train, found.class_names) == (2, ("a", "b"))


def test_preparing_continues_and_refuses_other_files(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(originals, "_SHARD_BYTES", 2000)
    written, copy = [], originals._copy

    def full(part, rows, path):
        if len(written) == 2:
            raise OSError("No space left on device")
        written.append(path)
        return copy(part, rows, path)

    monkeypatch.setattr(originals, "cores", lambda: 1)
    monkeypatch.setattr(originals, "_copy", full)
    with pytest.raises(OSError, match="mine was not .*No space left .*continues"):
        prepare_files("mine", tmp_path, train=[folder], test=[folder])
    times = {path: os.stat(path).st_mtime_ns for path in written}
    with pytest.raises(ValueError, match="was begun from other files"):
        prepare_files("mine", tmp_path, train=[folder / "a"], test=[folder / "a"])
    monkeypatch.setattr(originals, "_copy", copy)
    monkeypatch.setattr(originals, "cores", lambda: 8)
    path = prepare_files("mine", tmp_path, train=[folder], test=[folder])
    for file, changed in times.items():
        assert os.stat(path / file.name).st_mtime_ns == changed
    assert len(opened(tmp_path)) == 12


@pytest.mark.parametrize("index", [False, True])
def test_preparing_continues_when_a_file_that_is_no_image_is_removed(
    index, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(originals, "_SHARD_BYTES", 2000)
    given = shutil.copytree(folder, tmp_path / "given")
    empty = given / "b" / "99.jpg"
    empty.touch()
    options = {"train": [given], "test": [folder], "index": index}
    with pytest.raises(ValueError, match="99.jpg is not an image .* or remove it"):
        prepare_files("mine", tmp_path, **options)
    assert not [*tmp_path.glob("mine/*/*record*")]
    empty.unlink()
    prepare_files("mine", tmp_path, **options)
    assert len(opened(tmp_path)) == 12


def test_an_index_that_was_begun_from_other_files_is_written_again(
    folder, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(originals, "_write_metadata", full)
    with pytest.raises(OSError, match="No space left"):
        prepare_files("mine", tmp_path, train=[folder], index=True)
    monkeypatch.undo()
    part = folder / "a"
    prepare_files("mine", tmp_path, train=[part], test=[part], index=True)
    assert len(opened(tmp_path)) == 6


def test_shards_that_are_written_at_once_keep_their_images(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(originals, "_SHARD_BYTES", 1)  # an image in each
    monkeypatch.setattr(originals, "cores", lambda: 12)
    together, begin = threading.Barrier(12, timeout=30), originals.ArrayRecordWriter

    def slow(*options):
        together.wait()  # every shard is begun
        return begin(*options)

    monkeypatch.setattr(originals, "ArrayRecordWriter", slow)
    prepare_files("mine", tmp_path, train=[folder], test=[folder])
    found = opened(tmp_path).store.records
    expected = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]
    assert [found.read(number) for number in range(12)] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [("notes.txt", "notes.txt is not an image"), ("", "does not exist")],
)
def test_what_is_no_image_is_named(name, message, tmp_path):
    (tmp_path / "train").mkdir()
    if name:
        (tmp_path / "train" / "a.jpg").write_bytes(content((3, 3)))
        (tmp_path / "train" / name).write_text("text")
    train = tmp_path / ("train" if name else "nowhere")
    with pytest.raises(ValueError, match=message):
        prepare_files("mine", tmp_path, train=[train])


LATE = {
    "steps": 12,
    "logging.probe_every_steps": 0,
    "checkpoints.every_steps": 4,
    "augmentation.differentiate": ("crop", "color"),
    "data.store_size": 12,
}


@pytest.fixture
def optimized(request):
    """Compiles as a run does: the sums of a log differ in the last bit otherwise."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    quick = not request.config.getoption("--optimized")
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.mark.usefixtures("compiled_once", "optimized")
def test_a_streamed_run_that_was_killed_has_the_losses_of_memory(tmp_path, monkeypatch):
    train.run(image_config(tmp_path, LATE), tmp_path / "memory")
    load = Streamed.load

    def die(self, step, *rest):
        if step == 6:
            raise KeyboardInterrupt
        return load(self, step, *rest)

    stream = {**LATE, "data.source": "stream", "data.threads": 8}
    monkeypatch.setattr(Streamed, "load", die)
    with pytest.raises(KeyboardInterrupt):
        train.run(image_config(tmp_path, stream), tmp_path / "stream")
    monkeypatch.undo()
    again = {**stream, "data.threads": 1, "data.prefetch": 1}
    train.run(image_config(tmp_path, again), tmp_path / "stream")
    found, expected = (rows(tmp_path / name) for name in ("stream", "memory"))
    assert found == expected
    last = rows(tmp_path / "stream", without=())[-1]
    assert 0 <= last["waited"] <= 1 and last["corrupt"] == 0


def test_the_check_tells_the_rate_of_the_host_beside_that_of_the_step(tmp_path):
    found = check.run(image_config(tmp_path, {"data.source": "stream"}))
    assert found.decoded > 0 and found.stepped > 0
    assert found.memory.data == 16 // jax.device_count() * 10 * 10 * 3
    table = check.table(found)
    assert "decoded here" in table
    assert "host memory        24 kB, of batches decoded ahead" in table


def test_batches_decoded_ahead_that_do_not_fit_into_memory_are_refused(
    tmp_path, monkeypatch
):
    config = image_config(tmp_path, {"data.source": "stream", "data.prefetch": 1000})
    monkeypatch.setattr(data.limits, "machine_memory", lambda: 2 * 1000 * 16 * 300)
    with pytest.raises(ValueError, match="data.prefetch: the next 16016 images take"):
        check.run(config)
    with pytest.raises(ValueError, match="data.prefetch: the next 16016 images take"):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_read_their_shares_of_the_batch_of_one(tmp_path):
    image_config(tmp_path)
    changes = LATE | {"data.name": "bars", "data.data_dir": tmp_path, "batch_size": 16}
    changes |= dict.fromkeys(("data.source_size", "data.num_classes", "data.mean"))
    changes |= {"data.train_examples": 120, "data.validation_examples": 30}
    changes |= {"data.test_examples": 45, "data.std": None, "data.image_size": 8}
    flags = [f"--config.{name}={value}" for name, value in changes.items()]
    run = ["launch.py", "--mode=train", "--config=configs/stamps.py:smoke", *flags]
    for count in (1, 2):
        arguments = [*run, f"--workdir={tmp_path}/{count}"]
        processes.run(arguments, processes=count, devices=2 // count)
    one, two = (rows(tmp_path / name) for name in "12")
    assert one == two


def test_results_that_take_much_memory_lie_in_a_file(monkeypatch):
    monkeypatch.setattr(parallel, "_SHARE_OF_MEMORY", 0)
    double = parallel.make_map(
        lambda factor, x, indices, stream: factor * x[None], jax.devices(), axis=1
    )
    x = np.arange(22.0, dtype=np.float32).reshape(11, 2)
    found = double(np.float32(2), x, 0, batch_size=1)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, 2 * x[None])
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for features of 8.8e-08 GB \(TMPDIR\)"):
        double(np.float32(2), x, 0, batch_size=1)


DAMAGES = {
    "header": lambda body: body[:2048] + b"!" + body[2049:],
    "between": lambda body: body[:2048],
    "within": lambda body: body[:2100],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_damaged_archive_is_named(damage, nested, tmp_path):
    files = {f"{name}/1.png": bytes(300) for name in "abcd"}
    path = write_tar(tmp_path / "train.tar", files, "w")
    path.write_bytes(damage(path.read_bytes()))
    if nested:
        inner = {"cat.tar": path.read_bytes()}
        path = write_tar(tmp_path / "outer.tar", inner, "w")
    with pytest.raises(ValueError, match="tar: the archive.* cut or damaged at byte"):
        prepare_files("mine", tmp_path, train=[path])


INNER = {"noise": b"x" * 2048, "gzip": gzip.compress(b"x"), "empty": bytes(1024)}


@pytest.mark.parametrize("content", INNER.values(), ids=INNER)
def test_an_archive_within_one_that_holds_none_is_named(content, tmp_path):
    path = write_tar(tmp_path / "train.tar", {"cat.tar": content}, "w")
    with pytest.raises(ValueError, match="the archive of cat is cut or damaged"):
        prepare_files("mine", tmp_path, train=[path])


def test_a_link_within_an_archive_is_named(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as made:
        entry = tarfile.TarInfo("a/1.png")
        entry.type, entry.linkname = tarfile.LNKTYPE, "a/0.png"
        made.addfile(entry)
    with pytest.raises(ValueError, match=r"train.tar: a/1.png is a link"):
        prepare_files("mine", tmp_path, train=[tmp_path / "train.tar"])


def test_a_folder_that_cannot_be_listed_stops(folder, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="train/b"):
        prepare_files("mine", tmp_path, train=[folder])


@pytest.mark.parametrize("file", ["plan.txt", "-00000-of-00001"])
def test_preparation_goes_on_after_a_full_disk(file, folder, tmp_path, monkeypatch):
    replace = Path.replace

    def refuse(path, target):
        if str(target).endswith(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match=r"1.0.0.incomplete .*the same command conti"):
            prepare_files("mine", tmp_path, train=[folder])
    monkeypatch.undo()
    prepare_files("mine", tmp_path, train=[folder])
    assert len(opened(tmp_path)) == 10


def test_a_copy_that_was_not_renamed_is_not_taken_for_one_of_other_files(
    folder, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="not empty"):
        prepare_files("mine", tmp_path, train=[folder])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="was begun from other files"):
        prepare_files("mine", tmp_path, train=[folder / "a"])
    path = prepare_files("mine", tmp_path, train=[folder])
    assert len(opened(tmp_path)) == 10 and not (path / "plan.txt").exists()


def test_labels_that_cannot_be_kept_leave_no_file(folder, tmp_path, monkeypatch):
    path = prepare_files("mine", tmp_path, train=[folder], test=[folder])
    (path / "train.npz").unlink()
    before = {*path.iterdir()}

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    assert len(opened(tmp_path).labels) == 12
    assert {*path.iterdir()} == before


def test_labels_are_read_again_if_older_records_replace_theirs(tmp_path):
    images, labels = image_arrays(0, num_examples=12)
    for name, y in {"other": labels[::-1], "mine": labels}.items():
        path = data.prepare_arrays(name, tmp_path, train=(images, y), test=(images, y))
    assert opened(tmp_path).labels.tolist() == labels.tolist()  # and stored
    (shard,) = path.glob("*train*record*")
    other = Path(str(shard).replace("mine", "other"))
    os.utime(other, (0, 0))
    shutil.copy2(other, shard)  # keeps the time
    assert opened(tmp_path).labels.tolist() == labels[::-1].tolist()


def test_labels_that_were_prepared_or_stored_are_not_read_again(folder, tmp_path):
    path = prepare_files("mine", tmp_path, train=[folder], test=[folder])
    kind, read = records.ShardRecords, records.ShardRecords.read_labels
    with mock.patch.object(kind, "read_labels", autospec=True, side_effect=read) as spy:
        expected = opened(tmp_path).labels.tolist()
        for shard in path.glob("*record*"):  # as a copy through a tar archive does
            os.utime(shard, (0, shard.stat().st_mtime_ns // 10**9))
        assert opened(tmp_path).labels.tolist() == expected
        spy.assert_not_called()
        (path / "train.npz").unlink()
        for _ in range(2):
            assert opened(tmp_path).labels.tolist() == expected
        spy.assert_called_once()


def test_labels_are_kept_only_if_all_could_be_read(folder, tmp_path, monkeypatch):
    path = prepare_files("mine", tmp_path, train=[folder], test=[folder])
    expected, kept = opened(tmp_path).labels, path / "train.npz"
    example = records.ShardRecords.example

    def fail(self, index):
        if index == 11:
            raise streams.Corrupt("Input/output error")
        return example(self, index)

    kept.unlink()
    monkeypatch.setattr(records.ShardRecords, "example", fail)
    assert opened(tmp_path).labels[11] == 0 and not kept.exists()
    monkeypatch.undo()
    np.testing.assert_array_equal(opened(tmp_path).labels, expected)
    np.savez(kept, labels=expected[:5])  # of files of records that it does not name
    np.testing.assert_array_equal(opened(tmp_path).labels, expected)
    kept.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"cannot be read \(ValueError\); remove the"):
        opened(tmp_path)
    kept.unlink()
    next(path.glob("*train*record*")).unlink()
    with pytest.raises(ValueError, match="cannot be read as a file of records"):
        opened(tmp_path).load(np.arange(1))
