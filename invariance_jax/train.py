"""The training program: from a configuration to checkpoints and metrics.

`run` owns iteration, cadence and output; the mathematics is in `training.steps`.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from invariance_jax.cluster.devices import log_determinism, make_deterministic
from invariance_jax.training import parallel, processes
from invariance_jax.training.checkpoints import Checkpoints
from invariance_jax.training.compilation import compilation_kept
from invariance_jax.training.components import Examples, make_examples
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.metrics import MetricsWriter
from invariance_jax.training.optimizers import make_schedule
from invariance_jax.training.preemption import Preempted, Watch
from invariance_jax.training.profiling import Profiler
from invariance_jax.training.protocols import fit_and_score, probe_examples
from invariance_jax.training.settings import check_devices, resolve
from invariance_jax.training.start import (
    first_state,
    initial_state,
    read_weights,
    step_and_draw,
)
from invariance_jax.training.steps import TrainState
from invariance_jax.training.tracking import check_package
from invariance_jax.training.workdir import claim, one_per_seed, read_start

_log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Trains, or continues to train, the run of a configuration.

    With several seeds, one run after the other, each in its own folder. Writes
    `config.json`, `checkpoints/`, `metrics.jsonl` and `tensorboard/`. Every process of
    a run over several calls it; the main one writes.

    Args:
      config: a configuration with the keys of `configs/base.py`.
      workdir: a new folder, or one of an earlier start of the same run.

    Raises:
      ValueError: if the configuration is invalid, does not fit the devices, or the work
        directory belongs to another run.
      OSError: if the work directory cannot be written, or has no room.
      FloatingPointError: if the loss stops being finite.
      Preempted: if a signal asks for a stop; the state is saved, and the same call
        continues.
    """
    make_deterministic(config)
    with Watch() as watch:
        with processes.main_process_first():
            settings = resolve(config)
            log_determinism(settings)
            check_devices(settings, jax.device_count())
            read_weights(settings)
            check_package(settings)
            claim(settings, workdir)
            each = [(resolve(one), path) for one, path in one_per_seed(config, workdir)]
            for one, path in each:
                claim(one, path)
        with compilation_kept(settings, workdir):
            for one, path in each:
                _Run(one, path, watch).train()


class _Run:
    """One run of one seed."""

    def __init__(self, settings: Any, workdir: epath.Path, watch: Watch):
        self._settings, self._workdir, self._watch = settings, workdir, watch
        self._id, self._devices = read_start(workdir), parallel.all_devices()
        self._train = make_examples(settings, "train")
        _check_examples(settings, self._train)
        parallel.check_memory(self._train.x, self._devices)
        self._checkpoints = Checkpoints(
            workdir,
            keep=settings.checkpoints.keep,
            keep_every_steps=settings.checkpoints.keep_every_steps,
            owns=True,
        )
        self._probe = FrozenEncoder(settings, self._devices)

    def train(self) -> None:
        with contextlib.closing(self._checkpoints):
            state = self._start()
            step, total = int(state.step), self._settings.derived.steps
            if step == total:
                return
            self._checkpoints.check_room(state)
            pending = self._checkpoints.note(step) if self._checkpoints.steps() else {}
            writer = MetricsWriter(
                self._workdir, first_step=step, settings=self._settings
            )
            bar = tqdm(
                total=total,
                initial=step,
                unit="step",
                ncols=100,
                disable=not processes.is_main_process(),
            )
            rows = _Rows(self._settings, writer, bar, first_step=step, pending=pending)
            profiler = Profiler(self._settings, self._workdir, first_step=step)
            with contextlib.closing(writer), bar, profiler:
                self._loop(state, rows, profiler)

    def _start(self) -> TrainState:
        """Returns the newest checkpoint, else given weights, else the initial state."""
        if self._checkpoints.steps():
            state = self._checkpoints.restore(initial_state(self._settings))
            _log.info("%s: resumed at step %d", self._workdir, state.step)
            return state
        origin = self._settings.encoder.weights or "the seed"
        _log.info("%s: initialized from %s", self._workdir, origin)
        # Processes on different processors may initialize to different last bits.
        return processes.from_main(first_state(self._settings))

    def _loop(self, state: TrainState, rows: "_Rows", profiler: Profiler) -> None:
        settings = self._settings
        step = int(state.step)
        train = parallel.make_train(*step_and_draw(settings), self._devices)
        key = jax.random.fold_in(jax.random.key(settings.seed), 1)
        replicated = parallel.replicate(state, self._devices)
        data = parallel.replicate(self._train.x, self._devices)
        for stop in boundaries(settings, step):
            profiler.before(step, replicated)
            replicated, sums = train(replicated, key, data, stop - step)
            profiler.after(stop, replicated)
            rows.add(sums)
            step = stop
            if _due(step, settings.logging.every_steps) or self._saves(step):
                rows.write(step)
            if _due(step, settings.logging.probe_every_steps):
                state = parallel.one_replica(replicated)
                rows.write_probe(step, self._probe_row(state))
            self._checkpoints.check()
            leaves = step < settings.derived.steps and self._watch.is_asked()
            if leaves or self._saves(step):  # after the rows: no resumed run repeats it
                self._check_alone()
                state = parallel.one_replica(replicated)
                self._checkpoints.save(step, state, note=rows.pending())
            if leaves:
                self._checkpoints.wait()
                raise Preempted(
                    f"{self._workdir}: {self._watch.reason}; saved at step {step}, the "
                    "same command continues"
                )

    def _check_alone(self) -> None:
        if processes.is_main_process() and read_start(self._workdir) != self._id:
            raise OSError(
                f"{self._workdir}: the run was started a second time and goes on "
                "there; this start ends, expected one at a time."
            )

    def _saves(self, step: int) -> bool:
        every = self._settings.checkpoints.every_steps
        return _due(step, every) or step == self._settings.derived.steps

    def _probe_row(self, state: TrainState) -> dict[str, float]:
        """Returns the probe's result and variance on a few validation examples."""
        chosen, variables = self._settings.logging, encoder_variables(state)
        train = self._train.first(chosen.probe_train_examples)
        held_out = make_examples(self._settings, "validation")
        held_out = held_out.first(chosen.probe_validation_examples)
        h, h_test = (
            self._probe.features(variables, part.x, num_views=(1,), stream=stream)[0]
            for stream, part in enumerate((train, held_out))
        )
        scored = fit_and_score(self._settings, h, train.y, h_test, held_out.y)
        variance = self._probe.variance(variables, held_out.x, stream=1)
        row = {"variance_normalized": float(variance.normalized)}
        for metric in ("mse", "accuracy"):
            if metric in scored.values:
                row[f"probe_{metric}"] = scored.values[metric]
        return row


class _Rows:
    """Turns the sums of the steps into rows of the log and into the progress bar."""

    def __init__(
        self,
        settings: Any,
        writer: MetricsWriter,
        bar: tqdm,
        *,
        first_step: int,
        pending: dict[str, Any],
    ):
        self._settings, self._writer, self._bar = settings, writer, bar
        self._schedule = make_schedule(settings)
        self._last, self._sums, self._pending = first_step, [], dict(pending)
        self._since = time.monotonic()
        # As if the run had never been stopped.
        self._started = self._since - writer.seconds
        self._compiled = False

    def add(self, sums: Any) -> None:
        self._sums.append(sums)

    def pending(self) -> dict[str, tuple[float, float]]:
        """Returns name -> (sum, count) over the steps since the last row."""
        for sums in map(parallel.one_replica, self._sums):
            for name, (total, count) in sums.items():
                before = self._pending.get(name, (0.0, 0.0))
                self._pending[name] = before[0] + float(total), before[1] + float(count)
        self._sums = []
        return dict(self._pending)  # orbax writes it later

    def write(self, step: int) -> None:
        totals = self.pending()
        if not totals:
            return
        means = {name: total / count for name, (total, count) in totals.items()}
        bad = [name for name, value in means.items() if not np.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{bad[0]} is not finite between steps {self._last} and {step}; lower "
                "optimizer.learning_rate or penalty.weight, or set a "
                "penalty.example_limit. Older checkpoints are kept."
            )
        now = time.monotonic()
        examples = (step - self._last) * self._settings.batch_size
        speed = examples / (now - self._since) if self._compiled else None
        rate = float(self._schedule(step - 1))
        row = means | {"learning_rate": rate, "examples_per_second": speed}
        self._writer.write(step, row | {"seconds": now - self._started})
        shown = {name: f"{means[name]:.4g}" for name in ("loss", "penalty")}
        if speed:
            shown["examples/s"] = f"{speed:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._last)
        self._last, self._since, self._pending = step, now, {}
        self._compiled = True

    def write_probe(self, step: int, row: dict[str, float]) -> None:
        self._writer.write(step, row)
        self._since = time.monotonic()


def _check_examples(settings: Any, train: Examples) -> None:
    """Checks what only the examples tell, before they are trained on."""
    wanted = settings.data.train_examples
    if len(train.x) != wanted:
        raise ValueError(
            f"data.train_examples is {wanted}; expected at most {len(train.x)}, what "
            f"{settings.data.name} has."
        )
    probe_examples(settings, train)


def boundaries(settings: Any, step: int) -> Iterator[int]:
    """Yields the steps at which calls to the devices end.

    They depend on the settings alone, so that a run that is stopped and continued makes
    the same calls as one that is not.

    Args:
      settings: the result of `training.settings.resolve`.
      step: finished steps.

    Yields:
      Increasing steps, the last one the end of the run.
    """
    cadences = (
        settings.steps_per_call,
        settings.logging.every_steps,
        settings.checkpoints.every_steps,
        settings.logging.probe_every_steps,
    )
    while step < settings.derived.steps:
        ends = [(step // every + 1) * every for every in cadences if every]
        ends += [end for end in settings.derived.profile_steps if end > step]
        step = min(*ends, settings.derived.steps)
        yield step


def _due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
