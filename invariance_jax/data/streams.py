"""Images that are decoded when they are asked for, by threads, row by row.

`Pictures` stands where an array `[N, H, W, C]` would: it has a length, rows are chosen
as of an array, and what `load` returns depends on the rows alone, never on the number
of threads. So a set may be larger than the memory, and images may have any size: they
are squashed to S x S and carry their own height and width. A record that cannot be
decoded is named once, counted, and replaced by the next one of its class.
"""

import functools
import itertools
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import jax
import numpy as np

from invariance_jax.data import limits as checks
from invariance_jax.transforms import Squashed
from invariance_jax.types import PyTree

_log = logging.getLogger(__name__)

_PATIENCE = 300.0
"""Seconds after which a thread that has not answered is given up."""

_TICK = 0.01
"""Seconds between looks at whether the devices are still at work."""

_MOST_PER_JOB, _MOST_AT_ONCE = 8, 1000
"""Images that one thread decodes before it answers, and that one call decodes."""

Loaded = np.ndarray | Squashed
"""A batch: images uint8 `[..., H, W, C]`; of many sizes `Squashed`."""


class Records(Protocol):
    """The image files of a split, read in any order by any number of threads."""

    labels: np.ndarray | None  # int32 [N]

    def __len__(self) -> int:
        """Returns N."""

    def read(self, index: int) -> bytes:
        """Returns the bytes of an image file.

        Raises `Corrupt` if this one cannot be read, OSError or ValueError if none can.
        """

    def where(self, index: int) -> str:
        """Returns the place of an image, for messages."""


class Corrupt(Exception):
    """One record cannot be read or decoded; the others may."""


@dataclass(eq=False)
class FileRecords:
    """Parts of files that lie where they are: images, or members of tar archives."""

    files: Sequence[str]
    times: np.ndarray  # of change, of each file, in nanoseconds
    places: np.ndarray  # [N, 3]: the file, and start and size in it
    labels: np.ndarray | None

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.places)

    def where(self, index: int) -> str:
        """Returns the file, and the first byte in it where it holds several."""
        number, start, _ = self.places[index]
        return self.files[number] + (f": byte {start}" if start else "")

    def read(self, index: int, most: int | None = None) -> bytes:
        """Returns the (first) bytes of a file, which must be as old as the index.

        An OSError of the file system may be gone at the next start: it is no `Corrupt`.
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


class Workers:
    """Threads that answer in any order; a program that ends does not wait for them."""

    def __init__(self, count: int):
        """Starts the threads."""
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.busy: dict[str, tuple[float, Callable[[], str]]] = {}
        for number in range(count):
            name = f"data thread {number}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while True:
            self._jobs.get()()
            self.busy.pop(threading.current_thread().name, None)

    def note(self, what: Callable[[], str]) -> None:
        """Remembers what this thread reads now; its name is asked for if it hangs."""
        self.busy[threading.current_thread().name] = time.monotonic(), what

    def submit(self, function: Callable[[], None]) -> "futures.Future[None]":
        """Returns the future end of a function."""
        future: futures.Future[None] = futures.Future()

        def job() -> None:
            try:
                function()
            except BaseException as error:  # told where the end is waited for
                future.set_exception(error)
            else:
                future.set_result(None)

        self._jobs.put(job)
        return future


workers = functools.cache(Workers)
"""The threads of this process, by their number."""


def cores() -> int:
    """Returns the processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Pending(NamedTuple):
    """A batch that is being decoded."""

    jobs: "list[futures.Future[None]]"
    batch: Loaded
    threads: Workers | None

    def wait(self, running: Callable[[], bool] = lambda: False) -> tuple[Loaded, float]:
        """Returns the batch, and the seconds for which nothing else was running."""
        idle, last, answered = 0.0, time.monotonic(), time.monotonic()
        left = {*self.jobs}
        while left:
            done, left = futures.wait(left, timeout=_TICK)
            now = time.monotonic()
            idle, last = idle + (now - last) * (not running()), now
            answered = now if done else answered
            for job in done:
                job.result()
            self._give_up(now, answered)
        return self.batch, idle

    def _give_up(self, now: float, answered: float) -> None:
        if now - answered < _PATIENCE or self.threads is None:
            return
        each = [
            f"{name} has read {what()} for {now - since:.0f} s"
            for name, (since, what) in sorted(self.threads.busy.items())
        ]
        raise TimeoutError(
            f"no image was decoded for {_PATIENCE:.0f} s: "
            f"{'; '.join(each) or 'every data thread is gone'}. See whether the file "
            "system answers."
        )


@dataclass(eq=False)
class Store:
    """Where pixels come from: records and how each is decoded."""

    records: Records
    channels: int  # 1 or 3
    shape: tuple[int, int]  # (H, W) of what is decoded
    max_corrupt: int  # records that may be replaced
    threads: int
    squashed: bool  # whether images of many sizes are, into a square of that shape
    # Number of a record -> why it is replaced.
    corrupt: dict[int, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, rows: np.ndarray, numbers: np.ndarray) -> Pending:
        """Begins to decode some of the rows, each the number of a record."""
        flat = numbers.ravel()
        pixels = np.empty((flat.size, *self.shape, self.channels), np.uint8)
        sizes = np.empty((flat.size, 2), np.int32)
        pool = workers(self.threads)

        def decode_some(part: range) -> None:
            for place in part:
                number = int(flat[place])
                pool.note(functools.partial(self.records.where, int(rows[number])))
                pixels[place], sizes[place] = self._decode(rows, number)

        step = min(_MOST_PER_JOB, -(-flat.size // (2 * self.threads)) or 1)
        parts = (
            range(start, min(start + step, flat.size))
            for start in range(0, flat.size, step)
        )
        jobs = [pool.submit(functools.partial(decode_some, part)) for part in parts]
        batch: Loaded = pixels.reshape(*numbers.shape, *pixels.shape[1:])
        if self.squashed:
            batch = Squashed(batch, sizes.reshape(*numbers.shape, 2))
        return Pending(jobs, batch, pool)

    def _decode(
        self, rows: np.ndarray, number: int
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns the pixels of a row, or of the first one after it that is whole."""
        for row in self._candidates(rows, number):
            index = int(rows[row])
            if index in self.corrupt:
                continue
            try:
                return self._pixels(self.records.read(index))
            except Corrupt as error:
                self._replace(index, error)
            except MemoryError as error:
                where = self.records.where(index)
                raise MemoryError(f"{where} takes too much memory") from error
        raise ValueError(f"no image of {len(rows)} can be decoded.")

    def _pixels(self, content: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        # Imported here so that Spirograph needs no Pillow.
        from invariance_jax.data.decoding import decode

        try:
            size = self.shape[0] if self.squashed else None
            pixels, shape = decode(content, channels=self.channels, size=size)
        except MemoryError:
            raise
        except Exception as error:  # each format of Pillow raises its own
            raise Corrupt(checks.reason(error)) from error
        if pixels.shape[:2] != self.shape:
            raise Corrupt(
                f"its image has {shape[0]} x {shape[1]} pixels; expected "
                f"{self.shape[0]} x {self.shape[1]}"
            )
        return pixels, shape

    def _candidates(self, rows: np.ndarray, number: int) -> Iterator[int]:
        labels = self.records.labels
        for row in itertools.chain(range(number, len(rows)), range(number)):
            if labels is None or labels[rows[row]] == labels[rows[number]]:
                yield row

    def _replace(self, index: int, error: Exception) -> None:
        """Takes a note of a corrupt record; raises if there are too many."""
        text = f"{self.records.where(index)} is corrupt: {checks.reason(error)}"
        with self.lock:
            is_new = index not in self.corrupt
            self.corrupt[index] = text
            count = len(self.corrupt)
        if count > self.max_corrupt:
            raise ValueError(
                f"{text}. data.max_corrupt is {self.max_corrupt}, and {count} cannot "
                "be read; mend or remove them, or allow more."
            ) from error
        if is_new:
            _log.warning("%s; it is left out", text)


@dataclass(eq=False)
class Pictures:
    """Images that are decoded when `load` or `start` asks for them.

    Attributes:
      store: where their pixels come from.
      rows: int64 `[N]`, the numbers of their records.
      pixels: all images, if they are in memory.
    """

    store: Store
    rows: np.ndarray
    pixels: Loaded | None = None

    def __len__(self) -> int:
        """Returns N."""
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray | None:
        """Labels int32 `[N]`, or None."""
        labels = self.store.records.labels
        return None if labels is None else labels[self.rows]

    def __getitem__(self, rows: slice | np.ndarray) -> "Pictures":
        """Returns some of the images; what is not in memory is not decoded yet."""
        return Pictures(self.store, self.rows[rows], _rows(self.pixels, rows))

    @property
    def num_corrupt(self) -> int:
        """Images of the split that were found to be corrupt."""
        return len(self.store.corrupt)

    def all(self) -> Loaded:
        """Returns all images."""
        return self.load(np.arange(len(self))) if self.pixels is None else self.pixels

    def start(self, numbers: np.ndarray) -> Pending:
        """Begins to decode the images with these numbers, integers of any shape."""
        if self.pixels is not None:
            return Pending([], _rows(self.pixels, numbers), None)
        return self.store.start(self.rows, np.asarray(numbers))

    def load(self, numbers: np.ndarray) -> Loaded:
        """Returns the images with these numbers, integers of any shape."""
        return self.start(numbers).wait()[0]

    def in_memory(self, title: str) -> "Pictures":
        """Returns the same images, decoded; once in a process for the same rows."""
        if self.pixels is not None:
            return self
        return _decoded(self.store, self.rows.astype(np.int64).tobytes(), title)


def _rows(pixels: PyTree, rows: slice | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], pixels)


@functools.lru_cache(maxsize=4)
def _decoded(store: Store, rows: bytes, title: str) -> Pictures:
    from invariance_jax.data.records import progress

    pictures = Pictures(store, np.frombuffer(rows, np.int64))
    count = len(pictures)
    num_bytes = count * math.prod(store.shape) * store.channels
    checks.memory(f"{title}: {count} images", num_bytes)
    parts = np.array_split(np.arange(count), -(-count // _MOST_AT_ONCE) or 1)
    batches = []

    def load(part: np.ndarray) -> int:
        batches.append(pictures.load(part))
        return len(part)

    progress(map(load, parts), count, title)
    pixels: Loaded = jax.tree.map(lambda *each: np.concatenate(each), *batches)
    for array in jax.tree.leaves(pixels):
        array.setflags(write=False)  # all who ask share it
    return Pictures(store, pictures.rows, pixels)


def take(x: np.ndarray | Pictures, numbers: np.ndarray) -> Loaded:
    """Returns examples by their numbers, of an array or of `Pictures`.

    Args:
      x: examples `[N, ...]`.
      numbers: integers from 0 to N - 1, of any shape.

    Returns:
      An array, or of images of many sizes `Squashed`; leading axes are those of
      numbers.

    Raises:
      ValueError: if more than `data.max_corrupt` images cannot be decoded, or their
        files are not those that were indexed.
      TimeoutError: if the threads that decode do not answer.
    """
    return x.load(numbers) if isinstance(x, Pictures) else x[numbers]
