"""Sets that are decoded when they are needed: rows, threads, files that fail."""

import errno
import os
import resource
import shutil
import threading
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from archives import opened, write_originals
from processes import rows
from tiny import image_config

from invariance_jax import check, data, train
from invariance_jax.data import decoding, records, streams
from invariance_jax.data.originals import prepare_files
from invariance_jax.settings import resolve
from invariance_jax.tasks import make_task
from invariance_jax.training import parallel
from invariance_jax.training.batches import Streamed, make_sampler
from invariance_jax.transforms import Squashed, image
from invariance_jax.transforms.crops import crop_family

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_originals(tmp_path_factory.mktemp("originals") / "train")


@pytest.fixture(params=[True, False], ids=["index", "records"])
def data_dir(request, folder, tmp_path):
    """The set "mine" of these images."""
    prepare_files("mine", tmp_path, train=[folder], test=[folder], index=request.param)
    return tmp_path


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


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
    expected = "data.prefetch: the next 16016 images take .*; lower data.prefetch or"
    with pytest.raises(ValueError, match=expected):
        check.run(config)
    with pytest.raises(ValueError, match=expected):
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
