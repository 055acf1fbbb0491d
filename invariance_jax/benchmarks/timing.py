"""How long one call takes against another: measured in alternation, shown in a table.

Both sides are timed within the same run, in turns, so that a machine that is busy or
slows down does so for both; what is reported is the median and the quartiles over the
repeats, for the ratio too. Times are in seconds, wall clock.
"""

import ctypes
import importlib.util
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from invariance_jax.benchmarks.ceilings import Ceilings

PACKAGES = ("invariance_jax", "jax", "jaxlib", "flax", "optax", "numpy", "torch")
"""The packages whose versions belong to a result, where they are installed."""

# Of malloc.h; the largest value of an int.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGE = -1, -3, 2**31 - 1


class Quartiles(NamedTuple):
    """The median of repeated measurements and how far they spread.

    Attributes:
      lower: the first quartile.
      median: the second.
      upper: the third.
    """

    lower: float
    median: float
    upper: float


@dataclass(frozen=True)
class Comparison:
    """Repeated times of ours and of a peer, taken in pairs.

    Attributes:
      name: what is compared.
      ours: what the time of ours is the time of.
      peer: what it is compared with.
      ours_seconds: `[R]`, seconds per call, one for each repeat.
      peer_seconds: `[R]`, the same of the peer.
      speedup: whether the ratio is peer / ours, how many times as fast ours is; if not,
        it is ours / peer, how many times as long ours takes.
      expected: what the ratio is meant to be, in words; may be empty.
      flops: floating-point operations that a call of ours needs, counted by hand from
        the formula, a multiply-add as two; 0: not counted.
      bytes_moved: bytes that a call of ours must at least read and write; 0: not
        counted.
    """

    name: str
    ours: str
    peer: str
    ours_seconds: np.ndarray
    peer_seconds: np.ndarray
    speedup: bool
    expected: str = ""
    flops: float = 0.0
    bytes_moved: float = 0.0

    @property
    def ratio_of(self) -> str:
        """Returns the quotient that `ratio` is."""
        return "peer / ours" if self.speedup else "ours / peer"

    @property
    def ratio(self) -> Quartiles:
        """Returns the quartiles of the ratios of the pairs."""
        quotients = self.ours_seconds / self.peer_seconds
        return quartiles(1 / quotients if self.speedup else quotients)

    def as_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold: names, quartiles and repeats, in seconds."""
        return {
            "name": self.name,
            "ours": self.ours,
            "peer": self.peer,
            "repeats": len(self.ours_seconds),
            "ours_seconds": quartiles(self.ours_seconds)._asdict(),
            "peer_seconds": quartiles(self.peer_seconds)._asdict(),
            "ratio": self.ratio._asdict(),
            "ratio_of": self.ratio_of,
            "expected": self.expected,
            "flops": self.flops,
            "bytes_moved": self.bytes_moved,
        }


def quartiles(values: np.ndarray) -> Quartiles:
    """Returns the quartiles of repeated measurements.

    Args:
      values: `[R]`, any unit.

    Returns:
      The quartiles, in the unit of values, interpolated linearly.
    """
    return Quartiles(*map(float, np.percentile(values, (25, 50, 75))))


def alternate(
    *calls: Callable[[], Any],
    repeats: int,
    min_seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Returns how long each of some calls takes, measured in turns.

    Each is called twice first, which compiles it and tells how often it must be called
    to fill min_seconds. Every second round goes backwards, so that none is always the
    one that comes after the other. A call ends when its JAX arrays are there.

    Args:
      *calls: functions of nothing, whose results are waited for.
      repeats: R, rounds.
      min_seconds: least time of one measurement, of as many calls as that takes.
      clock: the time in seconds.

    Returns:
      `[len(calls), R]`, seconds per call.

    Raises:
      ValueError: if there are no repeats.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1; found {repeats}.")

    def seconds(call: Callable[[], Any], count: int) -> float:
        start = clock()
        for _ in range(count):
            jax.block_until_ready(call())
        return (clock() - start) / count

    counts = []
    for call in calls:
        seconds(call, 1)
        once = max(seconds(call, 1), 1e-9)
        counts.append(max(1, math.ceil(min_seconds / once)))
    times = np.empty((len(calls), repeats))
    for repeat in range(repeats):
        order = range(len(calls))
        for i in reversed(order) if repeat % 2 else order:
            times[i, repeat] = seconds(calls[i], counts[i])
    return times


def keep_freed_memory() -> None:
    """Makes the C library keep the memory of large arrays that are freed, on Linux.

    Otherwise it hands them back to the system after each call, or does not, as the
    other arrays happen to lie; where it does, the next call waits for the pages, for
    12 MB of results longer than it takes to compute them. Holds for ours and the peers.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (AttributeError, OSError):
        return
    for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        mallopt(option, _LARGE)


def machine() -> dict[str, str | int | float]:
    """Returns what the times depend on: processors, devices, load, versions.

    Returns:
      Name -> value; `load` is the average number of waiting processes over the last
      minute, -1 where the system does not tell.
    """
    devices = jax.local_devices()
    versions = {
        f"{name} version": metadata.version(name)
        for name in PACKAGES
        if importlib.util.find_spec(name) and _has_metadata(name)
    }
    return {
        "processor": platform.machine(),
        "cpu cores": os.cpu_count() or 0,
        "devices": len(devices),
        "device kind": devices[0].device_kind,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0,
        "python version": platform.python_version(),
        **versions,
    }


def _has_metadata(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def table(
    results: Sequence[Comparison], facts: Mapping[str, object], ceilings: Ceilings
) -> str:
    """Returns the results and the machine as text.

    Args:
      results: one for each row.
      facts: the result of `machine`.
      ceilings: of the device; the share that ours reaches is shown where it is counted
        what a call needs.

    Returns:
      Lines of a table, times in milliseconds, and a line of facts.
    """
    header = "", "ours", "ms", "of ceiling", "peer", "ms", "ratio", "quartiles"
    rows = [(*header, "expected")]
    for result in results:
        ratio = result.ratio
        ours, peer = quartiles(result.ours_seconds), quartiles(result.peer_seconds)
        share = ceilings.share(
            flops=result.flops, bytes_moved=result.bytes_moved, seconds=ours.median
        )
        rows.append(
            (
                result.name,
                result.ours,
                f"{1e3 * ours.median:.3g}",
                f"{share:.0%}" if share else "",
                result.peer,
                f"{1e3 * peer.median:.3g}",
                f"{ratio.median:.3g} ({result.ratio_of})",
                f"{ratio.lower:.3g} to {ratio.upper:.3g}",
                result.expected,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    described = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n".join([line.rstrip() for line in lines] + ["", described])
