"""Images that threads decode on demand.

`Pictures` can be used in place of an array `[N, H, W, C]`: it has a length, and is
indexed like an array. What `load` returns depends only on the rows, never on the number
of threads. A set may therefore be larger than the memory. Images of several sizes are
squashed to S x S, and their height and width are kept. A record that cannot be decoded
is logged once, counted, and replaced by the next record of its class in the split.
"""

import atexit
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import NamedTuple, Protocol

import jax
import numpy as np

from invariance_jax.data import limits
from invariance_jax.transforms import Squashed
from invariance_jax.types import PyTree

_log = logging.getLogger(__name__)

_PATIENCE, _PATIENCE_AT_THE_END = 300.0, 10.0
"""Seconds without a decoded image after which waiting for a batch fails, and most that
a program that ends waits for the images that are being decoded."""

_TICK, _LONGEST_TICK = 0.01, 1.0
"""Seconds between checks of whether the devices are busy, and most that one counts."""

_MAX_PER_JOB, _MAX_PER_LOAD = 8, 1000
"""Most images of one job of a thread, and of one call of `load` by `in_memory`."""

Loaded = np.ndarray | Squashed
"""A batch of images: uint8 `[..., H, W, C]`, or `Squashed` if they were squashed."""


class Records(Protocol):
    """The image files of a split; threads read them in any order."""

    labels: np.ndarray | None  # int32 [N]

    def __len__(self) -> int:
        """Returns N."""

    def read(self, index: int) -> bytes:
        """Returns the bytes of an image file.

        Raises `Corrupt` if only this file cannot be read, else OSError or ValueError.
        """

    def where(self, index: int) -> str:
        """Returns the file that has an image, and where in it, for messages."""


class Corrupt(Exception):
    """A record cannot be read or decoded, but other records may be intact."""


@dataclass(eq=False)
class FileRecords:
    """Image files, or members of tar archives, that are read where they are."""

    files: Sequence[str]
    times: np.ndarray  # of the last change of each file, in nanoseconds
    places: np.ndarray  # [N, 3]: index of the file, first byte, number of bytes
    labels: np.ndarray | None

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.places)

    @property
    def sizes(self) -> np.ndarray:
        """Returns the number of bytes of each image."""
        return self.places[:, 2]

    def where(self, index: int) -> str:
        """Returns the file, and the first byte of an image within an archive."""
        number, start, _ = self.places[index]
        return self.files[number] + (f": byte {start}" if start else "")

    def read(self, index: int, most: int | None = None) -> bytes:
        """Returns the bytes of an image, at most the first `most` of them.

        Raises ValueError if the file has changed since it was indexed. Only a missing
        or unreadable file is `Corrupt`: other OSErrors may be temporary.
        """
        number, start, size = map(int, self.places[index])
        path = self.files[number]
        try:
            with open(path, "rb") as file:
                changed = os.fstat(file.fileno()).st_mtime_ns != self.times[number]
                file.seek(start)
                content = file.read(min(size, most or size))
        except (FileNotFoundError, PermissionError) as error:
            raise Corrupt(f"{path} cannot be read ({error.strerror})") from error
        if changed:
            raise ValueError(
                f"{path} has changed since its index was written; remove the index and "
                "write it again."
            )
        return content


_busy: dict[str, tuple[float, Callable[[], str]]] = {}
"""Name of a worker thread -> since when it reads what, for a message if it hangs."""

_last_decoded = 0.0
"""When a worker thread last decoded an image, of any batch."""


@functools.cache
def _workers(count: int) -> ThreadPool:
    """Returns the worker threads of this process; makes them once for each count."""
    pool = ThreadPool(count)
    atexit.register(_end, pool)
    return pool


def _end(pool: ThreadPool) -> None:
    """Drops the jobs that wait, so that a program can end before a batch is complete.

    A daemon that decodes while the interpreter goes may abort the process: this waits
    for those at work, but not for ever, as the file system may not respond.
    """
    pool.terminate()
    last = time.monotonic() + _PATIENCE_AT_THE_END
    while _busy and time.monotonic() < last:
        time.sleep(_TICK)


def cores() -> int:
    """Returns the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Pending(NamedTuple):
    """A batch that is being decoded."""

    jobs: "list[AsyncResult[None]]"
    batch: Loaded

    def wait(self, running: Callable[[], bool] = lambda: False) -> tuple[Loaded, float]:
        """Waits for the batch; returns it, and seconds in which running() was false."""
        idle, quiet, last_check, unfinished = 0.0, 0.0, time.monotonic(), self.jobs
        while unfinished:
            unfinished[-1].wait(_TICK)
            now, done = time.monotonic(), {job for job in unfinished if job.ready()}
            # Batches before this one in the queue count too. After a long tick, the
            # process was suspended.
            is_quiet = _last_decoded < last_check
            quiet = quiet + min(now - last_check, _LONGEST_TICK) if is_quiet else 0.0
            idle, last_check = idle + (now - last_check) * (not running()), now
            for job in done:
                job.get()
            unfinished = [job for job in unfinished if job not in done]
            if quiet > _PATIENCE:
                raise TimeoutError(_hanging(now))
        return self.batch, idle


def _hanging(now: float) -> str:
    states = [
        f"{name} has been reading {what()} for {now - since:.0f} s"
        for name, (since, what) in sorted(_busy.items())
    ]
    return (
        f"no image was decoded for {_PATIENCE:.0f} s: "
        f"{'; '.join(states) or 'none is read'}. Check that the file system responds."
    )


@dataclass(eq=False)
class Store:
    """The records of a split and how they are decoded."""

    records: Records
    channels: int  # 1 or 3
    shape: tuple[int, int]  # (H, W) of the decoded images
    max_corrupt: int  # number of records that may be replaced
    threads: int
    squashed: bool  # whether images are squashed to this shape, a square
    # Index of a corrupt record -> message.
    corrupt: dict[int, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def image_bytes(self) -> int:
        """The bytes of a decoded image."""
        return math.prod(self.shape) * self.channels

    def start(self, rows: np.ndarray, split: np.ndarray) -> Pending:
        """Begins to decode some records of a split; the split replaces corrupt ones."""
        flat = rows.ravel()
        pixels = np.empty((flat.size, *self.shape, self.channels), np.uint8)
        sizes = np.empty((flat.size, 2), np.int32)

        def decode_some(part: range) -> None:
            global _last_decoded
            name = threading.current_thread().name
            try:
                for position in part:
                    index = int(flat[position])
                    what = functools.partial(self.records.where, index)
                    _busy[name] = time.monotonic(), what
                    pixels[position], sizes[position] = self._decode(index, split)
                    _last_decoded = time.monotonic()
            finally:
                _busy.pop(name, None)

        job_size = min(_MAX_PER_JOB, -(-flat.size // (2 * self.threads)) or 1)
        parts = (
            range(start, min(start + job_size, flat.size))
            for start in range(0, flat.size, job_size)
        )
        pool = _workers(self.threads)
        jobs = [pool.apply_async(decode_some, [part]) for part in parts]
        batch: Loaded = pixels.reshape(*rows.shape, *pixels.shape[1:])
        if self.squashed:
            batch = Squashed(batch, sizes.reshape(*rows.shape, 2))
        return Pending(jobs, batch)

    def _decode(
        self, index: int, split: np.ndarray
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns the pixels and size of a record, or of its replacement."""
        for candidate in self._candidates(index, split):
            if candidate in self.corrupt:
                continue
            try:
                return self._pixels(self.records.read(candidate))
            except Corrupt as error:
                self._mark_corrupt(candidate, error)
            except MemoryError as error:
                where = self.records.where(candidate)
                raise MemoryError(f"{where} takes too much memory") from error
        where = self.records.where(index)
        raise ValueError(f"{where} and all images that may replace it are corrupt.")

    def _pixels(self, content: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        # Imported here so that runs on Spirograph need no Pillow.
        from invariance_jax.data.decoding import decode

        try:
            size = self.shape[0] if self.squashed else None
            pixels, shape = decode(content, channels=self.channels, size=size)
        except MemoryError:
            raise
        except Exception as error:  # each format of Pillow raises its own errors
            raise Corrupt(limits.reason(error)) from error
        if pixels.shape[:2] != self.shape:
            raise Corrupt(
                f"its image has {shape[0]} x {shape[1]} pixels; expected "
                f"{self.shape[0]} x {self.shape[1]}"
            )
        return pixels, shape

    def _candidates(self, index: int, split: np.ndarray) -> Iterator[int]:
        """Yields a record, then the next ones of its class in the split, cyclically."""
        yield index
        labels = self.records.labels
        others = np.roll(split, -np.flatnonzero(split == index)[0])[1:]
        if labels is not None:
            others = others[labels[others] == labels[index]]
        yield from map(int, others)

    def _mark_corrupt(self, index: int, error: Exception) -> None:
        """Records that a record is corrupt; raises ValueError if too many are."""
        text = f"{self.records.where(index)} is corrupt: {limits.reason(error)}"
        with self.lock:
            is_new = index not in self.corrupt
            self.corrupt[index] = text
            count = len(self.corrupt)
        if count > self.max_corrupt:
            raise ValueError(
                f"{text}. data.max_corrupt is {self.max_corrupt}, and {count} cannot "
                "be read; repair or remove them, or increase data.max_corrupt."
            ) from error
        if is_new:
            _log.warning("%s; another image of its class replaces it", text)


@dataclass(eq=False)
class Pictures:
    """Images that `load` and `start` decode on demand.

    Attributes:
      store: the records and how they are decoded.
      rows: int64 `[N]`, the indices of their records.
      pixels: all images if they are in memory, else None.
      split: int64, indices of the records that may replace corrupt ones; None: rows.
    """

    store: Store
    rows: np.ndarray
    pixels: Loaded | None = None
    split: np.ndarray | None = None

    def __len__(self) -> int:
        """Returns N."""
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray | None:
        """Labels int32 `[N]`, or None."""
        labels = self.store.records.labels
        return None if labels is None else labels[self.rows]

    def __getitem__(self, rows: slice | np.ndarray) -> "Pictures":
        """Returns some of the images, of the same split; decodes nothing."""
        pixels = _take_rows(self.pixels, rows)
        return Pictures(self.store, self.rows[rows], pixels, self._split)

    @property
    def _split(self) -> np.ndarray:
        return self.rows if self.split is None else self.split

    @property
    def num_corrupt(self) -> int:
        """Number of records of the split that were found to be corrupt so far."""
        return len(self.store.corrupt)

    def all(self) -> Loaded:
        """Returns all images."""
        return self.load(np.arange(len(self))) if self.pixels is None else self.pixels

    def start(self, numbers: np.ndarray) -> Pending:
        """Begins to decode the images at these indices, integers of any shape."""
        if self.pixels is not None:
            return Pending([], _take_rows(self.pixels, numbers))
        return self.store.start(self.rows[np.asarray(numbers)], self._split)

    def load(self, numbers: np.ndarray) -> Loaded:
        """Returns the images at these indices, integers of any shape."""
        return self.start(numbers).wait()[0]

    def in_memory(self, title: str) -> "Pictures":
        """Returns the same images, decoded; caches the last few results."""
        if self.pixels is not None:
            return self
        rows, split = (r.astype(np.int64).tobytes() for r in (self.rows, self._split))
        return _decoded(self.store, rows, split, title)


def _take_rows(pixels: PyTree, rows: slice | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], pixels)


@functools.lru_cache(maxsize=4)
def _decoded(store: Store, rows: bytes, split: bytes, title: str) -> Pictures:
    from invariance_jax.data.records import progress

    indices, indices_of_split = (np.frombuffer(b, np.int64) for b in (rows, split))
    pictures = Pictures(store, indices, split=indices_of_split)
    count = len(pictures)
    limits.memory(f"{title}: {count} images", count * store.image_bytes)
    parts = np.array_split(np.arange(count), -(-count // _MAX_PER_LOAD) or 1)
    batches = []

    def load(part: np.ndarray) -> int:
        batches.append(pictures.load(part))
        return len(part)

    progress(map(load, parts), count, title)
    pixels: Loaded = jax.tree.map(lambda *each: np.concatenate(each), *batches)
    for array in jax.tree.leaves(pixels):
        array.setflags(write=False)  # the cache shares it among all callers
    return replace(pictures, pixels=pixels)


def take(x: np.ndarray | Pictures, numbers: np.ndarray) -> Loaded:
    """Returns the examples at some indices of an array or of `Pictures`.

    Args:
      x: examples `[N, ...]`.
      numbers: indices, integers from 0 to N - 1, of any shape.

    Returns:
      An array, or `Squashed` for squashed images; numbers.shape comes before the shape
      of an example.

    Raises:
      ValueError: if more than `data.max_corrupt` images cannot be decoded, or a file
        has changed since it was indexed.
      TimeoutError: if no image, of any batch, is decoded for five minutes.
    """
    return x.load(numbers) if isinstance(x, Pictures) else x[numbers]
