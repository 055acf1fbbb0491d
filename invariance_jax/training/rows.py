"""The rows of the log and the progress bar, from the sums of the steps."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import optax
from tqdm import tqdm

from invariance_jax.runs.log import MetricsWriter
from invariance_jax.training import parallel
from invariance_jax.types import Json, PyTree

Sums = dict[str, tuple[float, float]]
"""Name -> (sum, count)."""


class Rows:
    """Turns the sums of the steps into rows of the log and into the bar."""

    def __init__(
        self,
        writer: MetricsWriter,
        bar: "tqdm[Any]",
        schedule: optax.Schedule,
        *,
        batch_size: int,
        first_step: int,
        pending: Json,
        report: Callable[[], dict[str, float]] = dict,
    ):
        """Begins after the last row; report: of the loading, `Batches.report`."""
        self._report = report
        self._writer, self._bar, self._schedule = writer, bar, schedule
        self._batch_size, self._last = batch_size, first_step
        self._sums: list[PyTree] = []
        self._pending: Sums = dict(pending)
        self._since = time.monotonic()
        # As if the run had never been stopped.
        self._started = self._since - writer.seconds
        self._compiled = False

    def add(self, sums: PyTree) -> None:
        """Takes the replicated metrics of a call, which stay on the device for now."""
        self._sums.append(sums)

    def pending(self) -> Sums:
        """Returns the sums over the steps since the last row."""
        for sums in map(parallel.one_replica, self._sums):
            for name, (total, number) in sums.items():
                before = self._pending.get(name, (0.0, 0.0))
                added = before[0] + float(total), before[1] + float(number)
                self._pending[name] = added
        self._sums = []
        return dict(self._pending)  # orbax writes it later

    def write(self, step: int) -> None:
        """Writes a row, unless there is nothing to add."""
        sums = self.pending()
        if not sums:
            return
        # No step of a short row may have had the penalty.
        means = {name: total / n for name, (total, n) in sums.items() if n}
        bad = [name for name, value in means.items() if not np.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{bad[0]} is not finite between steps {self._last} and {step}; lower "
                "optimizer.learning_rate or penalty.weight, or set a "
                "penalty.example_limit. Older checkpoints are kept."
            )
        now = time.monotonic()
        examples = (step - self._last) * self._batch_size
        speed = examples / (now - self._since) if self._compiled else None
        row: dict[str, float | None] = {
            **means,
            "learning_rate": float(self._schedule(step - 1)),
            "examples_per_second": speed,
            "seconds": now - self._started,
        }
        loading = self._report()
        if "waited" in loading:
            loading["waited"] /= now - self._since
        row |= loading
        self._writer.write(step, row)
        names: list[str] = [one for one in ("loss", "penalty") if one in means]
        shown = {name: f"{means[name]:.4g}" for name in names}
        if speed:
            shown["examples/s"] = f"{speed:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._last)
        self._last, self._since = step, now
        self._pending, self._compiled = {}, True

    def write_others(self, step: int, row: dict[str, float], seconds: float) -> None:
        """Writes a row that took so long, which is left out of the speed."""
        self._writer.write(step, dict(row))
        self._since += seconds
