"""The training program: from a configuration to checkpoints and metrics.

`run` owns iteration, cadence and output; the mathematics is in `training.objective`.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled, Wrapped
from tqdm import tqdm

from invariance_jax import experiments
from invariance_jax.data import Pictures
from invariance_jax.runs.checkpoints import Checkpoint, Checkpoints, has_step
from invariance_jax.runs.log import MetricsWriter
from invariance_jax.runs.tracking import check_tracking
from invariance_jax.runs.workdir import Owner, check, claim, one_per_seed
from invariance_jax.runtime import processes
from invariance_jax.runtime.compilation import compilation_kept
from invariance_jax.runtime.devices import all_devices, make_deterministic
from invariance_jax.runtime.files import AnyPath
from invariance_jax.runtime.preemption import Watch
from invariance_jax.runtime.profiling import Profiler
from invariance_jax.runtime.terminal import progress
from invariance_jax.settings import Config, Settings, check_devices, resolve
from invariance_jax.tasks import Examples, Task, open_set
from invariance_jax.training import cost, parallel
from invariance_jax.training.batches import Batches, InMemory
from invariance_jax.training.build import (
    Parts,
    build,
    check_own_parts,
    first_state,
    read_weights,
    state_shapes,
)
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.optimizers import make_schedule
from invariance_jax.training.step import TrainState
from invariance_jax.types import Json, PyTree

_log = logging.getLogger(__name__)


def run(config: Config, workdir: AnyPath) -> None:
    """Trains, or continues to train, the run of a configuration.

    The work directory is a new folder, or one of an earlier start of the same run.
    Several seeds train one after the other, each in a folder of its own. Writes
    `config.json`, `checkpoints/`, `metrics.jsonl` and `tensorboard/`. Every process of
    a run over several calls it; the main one writes.

    Raises:
      ValueError: if the configuration is invalid, does not fit the devices, or the work
        directory belongs to another run.
      OSError: if the work directory cannot be written, or has no room.
      FloatingPointError: if the loss stops being finite.
      Preempted: if a signal asks for a stop; the state is saved, and the same call
        continues.
    """
    make_deterministic(config.deterministic)
    with Watch() as watch:
        with processes.main_process_first():
            settings = open_set(resolve(config))
            parts = checked_parts(settings, jax.device_count())
            cost.check_state(parts)
            each = [(resolve(one), path) for one, path in one_per_seed(config, workdir)]
            check(settings, workdir)
            for one, path in each:
                check(one, path)
        with compilation_kept(settings.compilation_cache, workdir):
            train = _read_examples(parts.task)
            make_batches = _make_batches(train)
            program = functools.cache(lambda: _compile(parts, make_batches(parts)))
            if not all(has_step(path, one.derived.steps) for one, path in each):
                program()  # before anything is written
            with processes.main_process_first():
                done = [has_step(path, one.derived.steps) for one, path in each]
                claim(settings, workdir, finished=all(done))
                owned = [
                    (one, claim(one, path, finished=is_done))
                    for (one, path), is_done in zip(each, done, strict=True)
                ]
            for one, owner in owned:
                with _Run(one, owner, train, make_batches, watch) as training:
                    training.make_steps(program)


def checked_parts(settings: Settings, num_devices: int) -> Parts:
    """Returns the parts of a run, after checking all that can be before any data."""
    check_devices(settings, num_devices)
    read_weights(settings)
    check_tracking(settings)
    parts = build(settings)
    check_own_parts(parts)
    experiments.load(parts.task)  # what evaluation will look for
    return parts


class _Run(contextlib.ExitStack):
    """The training of one seed; what it opens is closed at its end."""

    def __init__(
        self,
        settings: Settings,
        owner: Owner,
        train: Examples,
        make_batches: Callable[[Parts], Batches],
        watch: Watch,
    ):
        super().__init__()
        self._settings, self._owner, self._workdir = settings, owner, owner.workdir
        self._train, self._watch, self._devices = train, watch, all_devices()
        self._parts = build(settings)
        self._batches = make_batches(self._parts)
        self._probe = FrozenEncoder(self._parts, self._devices)
        kept = settings.checkpoints
        self._checkpoints = Checkpoints(
            self._workdir,
            keep=kept.keep,
            keep_every_steps=kept.keep_every_steps,
            owner=owner,
        )

    def _first(self) -> Checkpoint[TrainState]:
        """Returns what training continues or starts from."""
        found = self._checkpoints.newest(state_shapes(self._parts))
        if found is not None:
            _log.info("%s: resumed at step %d", self._workdir, found.step)
            return found
        origin = self._settings.encoder.weights or "the seed"
        _log.info("%s: initialized from %s", self._workdir, origin)
        # Processes on different processors may initialize to different last bits.
        return Checkpoint(0, processes.from_main(first_state(self._parts)), {})

    def _rows(self, step: int, note: Json) -> "Rows":
        """Returns the open log, after the rows until a step."""
        settings, rows = self._settings, note.get("rows", 0)
        writer = MetricsWriter(
            self._owner, first_step=step, rows=rows, settings=settings
        )
        self.callback(writer.close)
        steps, pending = settings.derived.steps, note.get("pending", {})
        bar = progress("training", steps, initial=step, unit="step")
        self.enter_context(bar)
        report = self._batches.report
        return Rows(settings, writer, bar, step, pending=pending, report=report)

    def make_steps(self, program: Callable[[], Compiled | Wrapped]) -> None:
        """Makes the steps that are left; the program is compiled if there are any."""
        self.callback(self._checkpoints.close)
        settings, (step, state, note) = self._settings, self._first()
        if step == settings.derived.steps:
            return
        self._checkpoints.remove_after(step)  # damaged ones
        self._checkpoints.check_room(state)
        ends = settings.derived.profile_steps
        profiler = Profiler(ends, self._workdir, first_step=step)
        train = parallel.make_train(program(), self._batches, self._devices)
        rows = self._rows(step, note)
        self.enter_context(profiler)
        replicated = parallel.replicate(state, self._devices)
        for stop in boundaries(settings, step):
            profiler.before(step, replicated)
            replicated, sums = train(replicated, self._parts.key, step, stop - step)
            profiler.after(stop, replicated)
            rows.add(sums)
            step = stop
            if _due(step, settings.logging.every_steps) or self._saves(step):
                rows.write(step)
            if _due(step, settings.logging.probe_every_steps):
                state, began = parallel.one_replica(replicated), time.monotonic()
                row = self._probe_row(state)
                rows.write_others(step, row, seconds=time.monotonic() - began)
            self._checkpoints.check()
            leaves = step < settings.derived.steps and self._watch.is_asked()
            if leaves or self._saves(step):  # after the rows: no resumed run repeats it
                state = parallel.one_replica(replicated)
                self._checkpoints.save(step, state, note=rows.note())
            if leaves:
                self._checkpoints.wait()
                raise self._watch.stop(f"{self._workdir} is saved at step {step}")

    def _saves(self, step: int) -> bool:
        every = self._settings.checkpoints.every_steps
        return _due(step, every) or step == self._settings.derived.steps

    def _probe_row(self, state: TrainState) -> dict[str, float]:
        """Returns the probe's result and variance on a few validation examples."""
        chosen, network = self._settings.logging, self._settings.evaluation.network
        variables = encoder_variables(state, network)
        task, encoder = self._parts.task, self._probe
        held_out = task.examples("validation").first(chosen.probe_validation_examples)
        variance = encoder.variance(variables, held_out.x, stream=1)
        row = {"variance_normalized": float(variance.normalized)}
        train = self._train.first(chosen.probe_train_examples)
        if train.y is None or held_out.y is None:
            return row
        h, h_test = (
            encoder.features(variables, part.x, num_views=(1,), stream=stream)[0]
            for stream, part in enumerate((train, held_out))
        )
        scored = task.score(task.fit(h, train.y), h_test, held_out.y)
        return row | {f"probe_{task.metric}": scored.values[task.metric]}


def _read_examples(task: Task) -> Examples:
    """Returns the training examples, after checking what only they tell."""
    train, settings = task.examples("train"), task.settings
    wanted = settings.data.train_examples
    if len(train.x) != wanted:
        raise ValueError(
            f"data.train_examples is {wanted}; expected at most {len(train.x)}, what "
            f"{settings.data.name} has."
        )
    task.check_fractions(train)
    return train


def _make_batches(train: Examples) -> Callable[[Parts], Batches]:
    """Returns what makes the batches of a seed; all share what is in memory."""
    if isinstance(train.x, Pictures) and train.x.pixels is None:
        pictures, count = train.x, len(all_devices())
        return lambda parts: parts.make_stream(pictures, count)
    x = train.x.all() if isinstance(train.x, Pictures) else train.x
    cost.check_data(cost.bytes_of(x), all_devices())
    memory = InMemory(x, parallel.replicate)
    return lambda _: memory


def _compile(parts: Parts, batches: Batches) -> Compiled | Wrapped:
    """Returns the training program, after checking that it fits into the memory.

    Over several processes it is neither compiled nor checked here.
    """
    devices = all_devices()
    if jax.process_count() > 1:
        _log.info("the first call compiles the step; its memory is not checked before")
        return cost.make_program(parts, batches, devices)
    _log.info("compiling the training step")
    program = cost.compile_train(parts, batches, devices)
    cost.check_program(program, devices)
    return program


def boundaries(settings: Settings, step: int) -> Iterator[int]:
    """Yields the steps at which calls to the devices end, as the settings alone say.

    So a run that is stopped and continued makes the same calls as one that is not.
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


Sums = dict[str, tuple[float, float]]
"""Name -> (sum, count)."""


class Rows:
    """Turns the sums of the steps into rows of the log and into the bar."""

    def __init__(
        self,
        settings: Settings,
        writer: MetricsWriter,
        bar: "tqdm[Any]",
        first_step: int,
        *,
        pending: Json,
        report: Callable[[], dict[str, float]] = dict,
    ):
        """Begins after the last row; report: of the loading, `Batches.report`."""
        self._writer, self._bar, self._report = writer, bar, report
        self._batch_size, self._schedule = settings.batch_size, make_schedule(settings)
        self._last, self._sums = first_step, list[PyTree]()
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

    def note(self) -> Json:
        """Returns what a checkpoint keeps, so that the log goes on where it was."""
        return {"rows": self._writer.count, "pending": self.pending()}

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
