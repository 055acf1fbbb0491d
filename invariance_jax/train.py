"""The training program: from a configuration to checkpoints and metrics.

`run` owns iteration, cadence and output; the mathematics is in `training.objective`.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.stages import Compiled, Wrapped
from tqdm import tqdm

from invariance_jax import evaluation, experiments
from invariance_jax.data import Pictures
from invariance_jax.numerics import l2_normalize
from invariance_jax.runs.checkpoints import Checkpoint, Checkpoints
from invariance_jax.runs.log import MetricsWriter
from invariance_jax.runs.tracking import check_tracking
from invariance_jax.runs.workdir import Owner, check, claim, is_trained, one_per_seed
from invariance_jax.runtime import preemption, processes
from invariance_jax.runtime.compilation import compilation_kept
from invariance_jax.runtime.devices import all_devices, make_deterministic
from invariance_jax.runtime.files import AnyPath
from invariance_jax.runtime.profiling import Profiler
from invariance_jax.runtime.terminal import progress
from invariance_jax.settings import Config, Settings, check_devices, resolve
from invariance_jax.tasks import Examples, Task, open_set
from invariance_jax.training import cost, parallel
from invariance_jax.training.batches import Batches, InMemory
from invariance_jax.training.build import (
    Parts,
    build,
    first_state,
    read_weights,
    state_shapes,
)
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.optimizers import make_schedule
from invariance_jax.training.own_parts import check_own_parts
from invariance_jax.training.step import TrainState
from invariance_jax.types import Json, PyTree

_log = logging.getLogger(__name__)


def run(config: Config, workdir: AnyPath) -> None:
    """Trains the run of a configuration, or resumes it.

    The work directory is a new folder, or the folder of an earlier start of the same
    run. Several seeds train one after the other, each in its own folder. Writes
    `config.json`, `checkpoints/`, `metrics.jsonl` and `tensorboard/`. If the run has
    several processes, all call this function, and the main one writes.

    Raises:
      ValueError: if the configuration is invalid or does not fit the devices, or the
        work directory belongs to another run.
      OSError: if the work directory cannot be written, or has no room.
      FloatingPointError: if the loss stops being finite.
      Preempted: if a signal requests a stop; the state is saved, and the same call
        resumes the run.
    """
    make_deterministic(config.deterministic)
    with preemption.watch_signals():
        with processes.main_process_first():
            settings = open_set(resolve(config))
            parts = checked_parts(settings, jax.device_count())
            cost.check_state(parts)
            configs = one_per_seed(config, workdir)
            seeds = [(resolve(seed_config), path) for seed_config, path in configs]
            for one, path in [(settings, workdir), *seeds]:
                check(one, path)
        with compilation_kept(settings.compilation_cache, workdir):
            train = _read_examples(parts.task)
            make_batches = _make_batches(train)
            program = functools.cache(lambda: _compile(parts, make_batches(parts)))
            trained = [is_trained(*seed) for seed in seeds]
            if not all(trained):
                program()  # compiled before anything is written
            with processes.main_process_first():
                claim(settings, workdir)
                owners = [claim(seed, path) for seed, path in seeds]
            for number, ((seed, _), owner) in enumerate(
                zip(seeds, owners, strict=True), start=1
            ):
                later = trained[number:].count(False)
                _train_seed(seed, owner, train, make_batches, program, later_runs=later)


def checked_parts(settings: Settings, num_devices: int) -> Parts:
    """Returns the parts of a run, after all checks that need no data."""
    check_devices(settings, num_devices)
    read_weights(settings)
    check_tracking(settings)
    parts = build(settings)
    check_own_parts(parts, num_devices)
    experiments.load(parts.task)  # raises if evaluation would not find one
    return parts


def _train_seed(
    settings: Settings,
    owner: Owner,
    train: Examples,
    make_batches: Callable[[Parts], Batches],
    program: Callable[[], Compiled | Wrapped],
    *,
    later_runs: int,
) -> None:
    """Runs the steps of a seed that are left; program() is called only if any are."""
    parts, devices, workdir = build(settings), all_devices(), owner.workdir
    batches, final = make_batches(parts), settings.derived.steps
    chosen = dataclasses.asdict(settings.checkpoints)
    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir, owner=owner, **chosen)
        stack.callback(checkpoints.close)
        step, state, note = _first_checkpoint(parts, checkpoints, workdir)
        if step == final:
            return
        checkpoints.remove_after(step)  # those are damaged
        saved = [stop for stop in boundaries(settings, 0) if _is_saved(stop, settings)]
        checkpoints.check_room(state, saved, later_runs=later_runs)
        traced = settings.derived.profile_steps
        profiler = Profiler(traced, workdir, first_step=step)
        run_steps = parallel.make_train(program(), batches, devices)
        rows = stack.enter_context(_open_rows(settings, owner, batches, step, note))
        stack.enter_context(profiler)
        encoder = FrozenEncoder(parts, devices)
        replicated = parallel.replicate(state, devices)
        for stop in boundaries(settings, step):
            profiler.before(step, replicated)
            replicated, sums = run_steps(replicated, parts.key, step, stop - step)
            profiler.after(stop, replicated)
            rows.add(sums)
            step, is_saved = stop, _is_saved(stop, settings)
            if is_saved or _is_due(step, settings.logging.every_steps):
                rows.write(step)
            if _is_due(step, settings.logging.probe_every_steps):
                state, started = parallel.one_replica(replicated), time.monotonic()
                row = _probe_row(parts, encoder, state, train)
                rows.write_others(step, row, seconds=time.monotonic() - started)
            checkpoints.check()
            stops = step < final and preemption.stop_is_asked()
            # After the rows: a resumed run does not write those of this step.
            if stops or is_saved:
                state = parallel.one_replica(replicated)
                checkpoints.save(step, state, note=rows.note())
            if stops:
                checkpoints.wait()
                raise preemption.stop(f"{workdir} is saved at step {step}")


def _first_checkpoint(
    parts: Parts, checkpoints: Checkpoints, workdir: epath.Path
) -> Checkpoint[TrainState]:
    newest = checkpoints.newest(state_shapes(parts))
    if newest is not None:
        _log.info("%s: resumed at step %d", workdir, newest.step)
        return newest
    origin = parts.settings.encoder.weights or "the seed"
    _log.info("%s: initialized from %s", workdir, origin)
    # On different processors, the initial values may differ in the last bits.
    return Checkpoint(0, processes.from_main(first_state(parts)), {})


@contextlib.contextmanager
def _open_rows(
    settings: Settings, owner: Owner, batches: Batches, step: int, note: Json
) -> Iterator["Rows"]:
    """Opens the log after the rows up to a step; note is that of its checkpoint."""
    count, pending = note.get("rows", 0), note.get("pending", {})
    writer = MetricsWriter(owner, first_step=step, rows=count, settings=settings)
    bar = progress("training", settings.derived.steps, initial=step, unit="step")
    with contextlib.closing(writer), bar:
        report = batches.report
        yield Rows(settings, writer, bar, step, pending=pending, report=report)


def _is_due(step: int, every_steps: int) -> bool:
    return bool(every_steps) and step % every_steps == 0


def _is_saved(step: int, settings: Settings) -> bool:
    every_steps = settings.checkpoints.every_steps
    return _is_due(step, every_steps) or step == settings.derived.steps


def _probe_row(
    parts: Parts, encoder: FrozenEncoder, state: TrainState, train: Examples
) -> dict[str, float]:
    """Returns the online probe's metric and the normalized variance, by name."""
    settings, task = parts.settings, parts.task
    variables = encoder_variables(state, settings.evaluation.network)
    held_out = task.examples("validation")
    held_out = held_out.first(settings.logging.probe_validation_examples)
    views = l2_normalize(encoder.views(variables, held_out.x, stream=1))
    row = {"variance_normalized": float(evaluation.invariance(views).normalized)}
    train = train.first(settings.logging.probe_train_examples)
    if train.y is None or held_out.y is None:
        return row
    h, h_test = (
        encoder.features(variables, part.x, num_views=(1,), stream=stream)[0]
        for stream, part in enumerate((train, held_out))
    )
    score = task.score(task.fit(h, train.y), h_test, held_out.y)
    return row | {f"probe_{task.metric}": score.values[task.metric]}


def _read_examples(task: Task) -> Examples:
    train, settings = task.examples("train"), task.settings
    expected = settings.data.train_examples
    if len(train.x) != expected:
        raise ValueError(
            f"data.train_examples is {expected}; expected at most {len(train.x)}, the "
            f"number in {settings.data.name}."
        )
    task.check_fractions(train)
    return train


def _make_batches(train: Examples) -> Callable[[Parts], Batches]:
    """Returns parts -> batches; all seeds share a data set that is in memory."""
    if isinstance(train.x, Pictures) and train.x.pixels is None:
        pictures, count = train.x, len(all_devices())
        return lambda parts: parts.make_stream(pictures, count)
    x = train.x.all() if isinstance(train.x, Pictures) else train.x
    cost.check_data(cost.bytes_of(x), all_devices())
    memory = InMemory(x, parallel.replicate)
    return lambda _: memory


def _compile(parts: Parts, batches: Batches) -> Compiled | Wrapped:
    """Returns the training program; of one process, compiled and checked to fit."""
    devices = all_devices()
    if jax.process_count() > 1:
        _log.info("the first call compiles the step; its memory is not checked before")
        return cost.make_program(parts, batches, devices)
    _log.info("compiling the training step")
    program = cost.compile_train(parts, batches, devices)
    cost.check_program(program, devices)
    return program


def boundaries(settings: Settings, step: int) -> Iterator[int]:
    """Yields the steps after `step` at which calls to the devices end.

    They depend on the settings only, so a resumed run makes the same calls as an
    uninterrupted one.
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


class Rows:
    """Turns the summed metrics of steps into rows of the log and the progress bar."""

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
        """Starts with the sums since the last row; report is `Batches.report`."""
        self._writer, self._bar, self._report = writer, bar, report
        self._batch_size, self._schedule = settings.batch_size, make_schedule(settings)
        self._last, self._sums = first_step, list[PyTree]()
        penalty = settings.penalty
        # A penalty of this mean has no gradient; None: no limit, or already warned.
        self._limit = penalty.example_limit if penalty.limit_shape == "hard" else None
        self._pending = dict(pending)
        self._since = time.monotonic()
        # The time of earlier starts counts too.
        self._started = self._since - writer.seconds
        self._compiled = False

    def add(self, sums: PyTree) -> None:
        """Adds the replicated metrics of a call, which stay on the devices for now."""
        self._sums.append(sums)

    def pending(self) -> dict[str, tuple[float, float]]:
        """Returns name -> (sum, count) of the steps since the last row."""
        for sums in map(parallel.one_replica, self._sums):
            for name, (total, count) in sums.items():
                before = self._pending.get(name, (0.0, 0.0))
                new = before[0] + float(total), before[1] + float(count)
                self._pending[name] = new
        self._sums = []
        return dict(self._pending)  # a copy, as orbax writes it later

    def note(self) -> Json:
        """Returns the note of a checkpoint: a resumed run continues the log from it."""
        return {"rows": self._writer.count, "pending": self.pending()}

    def write(self, step: int) -> None:
        """Writes the row of a step, unless no step was added since the last row."""
        sums = self.pending()
        if not sums:
            return
        # A count is 0 if no step of the row had this metric, such as the penalty.
        means = {name: total / n for name, (total, n) in sums.items() if n}
        diverged = [name for name, value in means.items() if not np.isfinite(value)]
        if diverged:
            raise FloatingPointError(
                f"{diverged[0]} is not finite between steps {self._last} and {step}; "
                "lower optimizer.learning_rate or penalty.weight, or set a "
                "penalty.example_limit. Older checkpoints are kept."
            )
        self._warn_of_limit(step, means.get("penalty", 0.0))
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
        names: list[str] = [name for name in ("loss", "penalty") if name in means]
        shown = {name: f"{means[name]:.4g}" for name in names}
        if speed:
            shown["examples/s"] = f"{speed:.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._last)
        self._last, self._since = step, now
        self._pending, self._compiled = {}, True

    def _warn_of_limit(self, step: int, penalty: float) -> None:
        """Warns, once, if the mean penalty of the row is a hard limit of each example.

        No example is above it, so all are at it, but for the rounding of the mean.
        """
        if self._limit is not None and np.isclose(penalty, self._limit, 1e-5, 0):
            _log.warning(
                "steps %d to %d: practically every example is at penalty.example_limit "
                "(%g), where the penalty has no gradient; raise it or use "
                "penalty.limit_shape=log",
                *(self._last + 1, step, self._limit),
            )
            self._limit = None

    def write_others(self, step: int, row: dict[str, float], seconds: float) -> None:
        """Writes a row whose measurement took some seconds, excluded from the speed."""
        self._writer.write(step, dict(row))
        self._since += seconds
