"""The rows of the logs and the progress bar, from the sums of the steps."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from invariance_jax.runs.metrics import MetricsWriter
from invariance_jax.training import parallel
from invariance_jax.training.optimizers import make_schedule

Sums = dict[str, tuple[float, float]]
"""Name -> (sum, count)."""


class Rows:
    """Turns the sums of the steps into a row of each seed's log and into the bar.

    Of seeds that train as one, `seconds` is the time that passed, which they share, and
    `examples_per_second` counts the examples of one of them; the bar shows the means
    over them.
    """

    def __init__(
        self,
        settings: Sequence[Any],
        writers: Sequence[MetricsWriter],
        bar: tqdm,
        *,
        first_step: int,
        pending: Sequence[dict[str, Any]],
    ):
        """Begins after the last rows.

        Args:
          settings: of each seed, the result of `training.settings.resolve`.
          writers: of each seed.
          bar: the progress bar.
          first_step: finished steps of the state that training starts from.
          pending: what `pending` was at that step, of each seed.
        """
        self._settings, self._writers, self._bar = settings, writers, bar
        self._schedule = make_schedule(settings[0])
        self._last, self._sums = first_step, []
        self._pending: list[Sums] = [dict(sums) for sums in pending]
        self._since = time.monotonic()
        # As if the run had never been stopped.
        self._started = [self._since - writer.seconds for writer in writers]
        self._compiled = False

    def add(self, sums: Any) -> None:
        """Takes the metrics of a call, which stay on the device for now.

        Args:
          sums: the replicated metrics of `parallel.make_train`.
        """
        self._sums.append(sums)

    def pending(self) -> list[Sums]:
        """Returns the sums over the steps since the last row, of each seed."""
        count = len(self._pending)
        for sums in map(parallel.one_replica, self._sums):
            for own, more in zip(
                self._pending, parallel.unstack(sums, count), strict=True
            ):
                for name, (total, number) in more.items():
                    before = own.get(name, (0.0, 0.0))
                    own[name] = before[0] + float(total), before[1] + float(number)
        self._sums = []
        return [dict(sums) for sums in self._pending]  # orbax writes it later

    def write(self, step: int) -> None:
        """Writes a row of each seed, unless there was none to add.

        Args:
          step: finished steps.

        Raises:
          FloatingPointError: if a mean is not finite; then no seed has a row.
        """
        totals = self.pending()
        if not totals[0]:
            return
        means = [
            # No step of a short row may have had the penalty.
            {name: total / count for name, (total, count) in sums.items() if count}
            for sums in totals
        ]
        self._check_finite(means, step)
        now = time.monotonic()
        examples = (step - self._last) * self._settings[0].batch_size
        speed = examples / (now - self._since) if self._compiled else None
        rate = float(self._schedule(step - 1))
        shared = {"learning_rate": rate, "examples_per_second": speed}
        for writer, own, started in zip(
            self._writers, means, self._started, strict=True
        ):
            writer.write(step, own | shared | {"seconds": now - started})
        self._show(means, speed)
        self._bar.update(step - self._last)
        self._last, self._since = step, now
        self._pending = [{} for _ in self._pending]
        self._compiled = True

    def write_others(self, step: int, rows: Sequence[dict[str, float]]) -> None:
        """Writes rows that say nothing of the speed, and leaves their time out of it.

        Args:
          step: finished steps.
          rows: of each seed, name -> number.
        """
        for writer, row in zip(self._writers, rows, strict=True):
            writer.write(step, row)
        self._since = time.monotonic()

    def _check_finite(self, means: list[dict[str, float]], step: int) -> None:
        for settings, own in zip(self._settings, means, strict=True):
            bad = [name for name, value in own.items() if not np.isfinite(value)]
            if bad:
                seed = f" of seed {settings.seed}" if len(means) > 1 else ""
                raise FloatingPointError(
                    f"{bad[0]}{seed} is not finite between steps {self._last} and "
                    f"{step}; lower optimizer.learning_rate or penalty.weight, or set "
                    "a penalty.example_limit. Older checkpoints are kept."
                )

    def _show(self, means: list[dict[str, float]], speed: float | None) -> None:
        shown = {
            name: f"{np.mean([own[name] for own in means]):.4g}"
            for name in ("loss", "penalty")
            if name in means[0]
        }
        if speed:
            shown["examples/s"] = f"{speed:.0f}"
        self._bar.set_postfix(shown, refresh=False)
