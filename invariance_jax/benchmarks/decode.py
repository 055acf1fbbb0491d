"""Decoding of JPEG files in threads against worker processes and the decoder alone.

Files of 500 x 375 pixels become squares of 256 x 256, from which the device crops its
views. The decoder alone does not resize: it bounds the speed of all others.
"""

import contextlib
import functools
import importlib
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from invariance_jax.benchmarks.timing import Options, Row
from invariance_jax.data import decoding
from invariance_jax.data.streams import FileRecords, Pictures, Store, cores

_SIZE = 256
_TARGETS = {"DataLoader": "target 1", "Grain": "target 1.5"}

Peer = Callable[[], object]


def time_decode(options: Options, *, count: int = 128) -> Iterator[Row]:
    """Yields the time of each peer over the time of our threads, for one batch."""
    workers, context = cores(), get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(workers, context) as processes,
        ThreadPoolExecutor(workers) as threads,
    ):
        records = _write(Path(folder), count)
        store = Store(records, 3, (_SIZE, _SIZE), 0, workers, squashed=True)
        contents = [records.read(index) for index in range(count)]

        def with_pillow() -> np.ndarray:
            return np.stack([*processes.map(_read, records.files, chunksize=8)])

        peers: dict[str, Peer] = {f"Pillow, {workers} processes": with_pillow}
        for name, make in (("DataLoader", _in_torch), ("Grain", _in_grain)):
            with contextlib.suppress(ImportError):
                peers[f"{name}, {workers} processes"] = make(records, workers)
        peers["the decoder alone"] = lambda: [*threads.map(_decode, contents)]
        decoder = "simplejpeg" if decoding.simplejpeg else "Pillow"
        case = f"{count} JPEG of 500 x 375 to {_SIZE}, {decoder}"
        ours = f"ours, {workers} threads", Pictures(store, np.arange(count)).all
        for name, peer in peers.items():
            target = _TARGETS.get(name.split(",")[0], "")
            yield options.versus(case, (name, peer), ours, target)


def _write(folder: Path, count: int) -> FileRecords:
    """Writes JPEG files with as much detail as photographs, about 50 kB each."""
    random = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for path in files:
        coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((500, 375)), np.int16)
        noisy = image + random.integers(-14, 15, image.shape)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=85)
    stats = [path.stat() for path in files]
    places = np.array([(n, 0, stat.st_size) for n, stat in enumerate(stats)])
    times = np.array([stat.st_mtime_ns for stat in stats])
    return FileRecords([str(path) for path in files], times, places, None)


def _read(path: str) -> np.ndarray:
    """Returns the image of a file, decoded and resized by Pillow."""
    with Image.open(path) as file:
        image = file.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _decode(content: bytes) -> None:
    if decoding.simplejpeg is None:
        Image.open(io.BytesIO(content)).load()
    else:
        decoding.simplejpeg.decode_jpeg(content, "RGB")


def _collate(paths: Sequence[str]) -> object:
    data = importlib.import_module("torch.utils.data")
    return data.default_collate([_read(path).copy() for path in paths])  # writable


def _in_torch(records: FileRecords, workers: int) -> Peer:
    data = importlib.import_module("torch.utils.data")
    loader = data.DataLoader(
        records.files,
        collate_fn=_collate,
        batch_size=max(1, len(records) // (4 * workers)),
        num_workers=workers,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )
    return lambda: np.concatenate([batch.numpy() for batch in loader])


def _with_ours(records: FileRecords, index: int) -> np.ndarray:
    return decoding.decode(records.read(index), channels=3, size=_SIZE)[0]


def _in_grain(records: FileRecords, workers: int) -> Peer:
    grain = importlib.import_module("grain")
    count = len(records)
    data = grain.MapDataset.range(count).map(functools.partial(_with_ours, records))
    data = data.repeat().to_iter_dataset(grain.ReadOptions(num_threads=0))
    started = iter(data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers)))
    return lambda: np.stack([next(started) for _ in range(count)])
