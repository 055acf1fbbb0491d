"""Times calls in turns, so that a busy machine slows them all; shows them in a table.

A ratio is computed for each pair of neighbouring measurements; the table shows the
median, smallest and largest ratio.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from invariance_jax.runs.workdir import provenance
from invariance_jax.settings import Config
from invariance_jax.sweeps.variants import Sweep
from invariance_jax.types import Array, Json

Row = dict[str, str | float]
"""Column -> cell of the table; the column's name contains the unit."""

# Options M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h; the largest C int.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGE = -1, -3, 2**31 - 1


class Timer(NamedTuple):
    """Times calls in turns."""

    repeats: int  # number of rounds R
    min_seconds: float  # minimum time of a measurement, which repeats the call
    clock: Callable[[], float] = time.perf_counter

    def __call__(self, *calls: Callable[[], object]) -> np.ndarray:
        """Returns the seconds of each call in each round, `[len(calls), R]`.

        Each call runs before the first round, which compiles it. Every second round
        runs in reverse order, so that no call always follows the same other call.
        """
        counts = []
        for call in calls:
            self._seconds(call, 1)
            once = self._seconds(call, 1) if self.min_seconds else math.inf
            counts.append(max(1, math.ceil(self.min_seconds / max(once, 1e-9))))
        times = np.empty((len(calls), self.repeats))
        for repeat in range(self.repeats):
            order = range(len(calls))
            for i in reversed(order) if repeat % 2 else order:
                times[i, repeat] = self._seconds(calls[i], counts[i])
        return times

    def _seconds(self, call: Callable[[], object], count: int) -> float:
        start = self.clock()
        for _ in range(count):
            jax.block_until_ready(call())
        return (self.clock() - start) / count


class Options(NamedTuple):
    """Options of a benchmark from the command line."""

    timer: Timer
    config: Config  # the run whose steps are timed
    cases: tuple[str, ...] = ()  # texts in the names of the cases to run, (): all cases
    seconds: float = math.inf  # after which no further case starts
    sweep: Sweep | None = None  # variants of the step; None: forms of the penalty

    def at_most(self, repeats: int) -> "Options":
        """Returns the same options with at most this number of rounds."""
        rounds = min(self.timer.repeats, repeats)
        return self._replace(timer=self.timer._replace(repeats=rounds))

    def versus(
        self,
        case: str,
        first: tuple[str, Callable[[], object]],
        second: tuple[str, Callable[[], object]],
        note: str = "",
    ) -> Row:
        """Times two named calls; returns the row of the first over the second."""
        times = self.timer(first[1], second[1])
        return compare(case, (first[0], times[0]), (second[0], times[1]), note)


def configuration(name: str, *variant: str) -> Config:
    """Returns a configuration from the checkout in the current directory."""
    path = Path("configs", f"{name}.py")
    if not path.is_file():
        raise ValueError(
            f"there is no {path}; expected to be started in a checkout of the project."
        )
    return importlib.import_module(f"configs.{name}").get_config(*variant)


def compare(
    case: str,
    first: tuple[str, np.ndarray],
    second: tuple[str, np.ndarray],
    note: str = "",
) -> Row:
    """Returns the row of two named measurements, seconds `[R]` of the same rounds."""
    ratios = first[1] / second[1]
    return {
        "case": case,
        "first": first[0],
        "first, ms": 1e3 * float(np.median(first[1])),
        "second": second[0],
        "second, ms": 1e3 * float(np.median(second[1])),
        "first / second": float(np.median(ratios)),
        "min": float(ratios.min()),
        "max": float(ratios.max()),
        "n": len(ratios),
        "note": note,
    }


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table, with three significant digits."""
    shown = [_of_pair(row) if "second" in row else row for row in rows]
    columns = [*dict.fromkeys(column for row in shown for column in row)]
    cells = [columns, *([_text(row.get(c, "")) for c in columns] for row in shown)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(map(str.ljust, line, widths))} |" for line in cells
    )


def _of_pair(row: Row) -> Row:
    """Returns the row of a comparison with fewer columns, for people."""
    texts = {column: _text(cell) for column, cell in row.items()}
    return {
        "case": row["case"],
        "first / second": f"{row['first']} / {row['second']}",
        "ms": f"{texts['first, ms']} / {texts['second, ms']}",
        "ratio": f"{texts['first / second']} ({texts['min']} to {texts['max']})",
        "n": row["n"],
        "note": row["note"],
    }


def _text(cell: str | float) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:.0f}"


def check_same(
    what: str, found: ArrayLike, expected: ArrayLike, tolerance: float
) -> None:
    """Raises AssertionError unless |found - expected| <= tolerance max |expected|."""
    peer, ours = np.asarray(found), np.asarray(expected)
    assert np.isfinite(ours).all(), f"{what} of ours: {ours}"
    assert peer.shape == ours.shape, f"{what} of the peer: {peer.shape}, {ours.shape}"
    atol = tolerance * np.abs(ours).max()
    np.testing.assert_allclose(peer, ours, 0, atol, err_msg=f"{what} of the peer")


@functools.cache
def product_rate(precision: str) -> float:
    """Returns the operations per second of a large matrix product on the device."""
    size, products = (8192, 20) if jax.default_backend() == "gpu" else (2048, 1)
    # Random entries: with ones a device draws less power and is faster than in a step.
    a = jax.random.normal(jax.random.key(0), (size, size), precision) / size**0.5

    @jax.jit
    def product(a: Array) -> Array:
        return jax.lax.fori_loop(0, products, lambda _, b: a @ b, a)

    (times,) = Timer(5, 0.0)(lambda: product(a))
    return float(2 * size**3 * products / times.min())


@functools.cache
def copy_rate() -> float:
    """Returns the bytes per second that a copy on the device reads and writes."""
    x, copy = jnp.ones(2**25), jax.jit(lambda x: x + 1)
    (times,) = Timer(5, 0.0)(lambda: copy(x))
    return float(2 * x.nbytes / times.min())


def keep_freed_memory() -> None:
    """Makes the C library keep the memory of large arrays that are freed, on Linux.

    Otherwise it may return this memory to the system after a call. The next call then
    waits for new pages, for 12 MB of results longer than for their computation.
    """
    with contextlib.suppress(AttributeError, OSError):
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            ctypes.CDLL("libc.so.6").mallopt(option, _LARGE)


def has_torch() -> bool:
    """Returns whether PyTorch, which most peers need, is installed."""
    return importlib.util.find_spec("torch") is not None


def machine() -> Json:
    """Returns versions, devices, processor, cores and the load average of a minute."""
    return {
        **provenance()["environment"],
        **({"torch": metadata.version("torch")} if has_torch() else {}),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
