"""The training program: from a configuration to checkpoints and metrics.

`run` owns iteration, cadence and output; the mathematics is in `training.steps`.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from invariance_jax.runs.metrics import MetricsWriter
from invariance_jax.runs.rows import Rows
from invariance_jax.runs.tracking import check_package
from invariance_jax.runs.workdir import claim, one_per_seed
from invariance_jax.runtime import processes
from invariance_jax.runtime.compilation import compilation_kept
from invariance_jax.runtime.devices import log_determinism, make_deterministic
from invariance_jax.runtime.preemption import Preempted, Watch
from invariance_jax.runtime.profiling import Profiler
from invariance_jax.training import memory, parallel
from invariance_jax.training.components import Examples, make_examples
from invariance_jax.training.frozen import FrozenEncoder, encoder_variables
from invariance_jax.training.protocols import (
    check_label_fractions,
    fit_and_score,
    probe_examples,
)
from invariance_jax.training.seeds import Seed, newest_common, parts
from invariance_jax.training.settings import check_devices, resolve
from invariance_jax.training.start import read_weights, step_and_draw
from invariance_jax.training.steps import TrainState


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Trains, or continues to train, the run of a configuration.

    With several seeds, each has its own folder; they train one after the other or as
    one, see `training.seeds`. Writes `config.json`, `checkpoints/`, `metrics.jsonl` and
    `tensorboard/`. Every process of a run over several calls it; the main one writes.

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
            seeds, devices = [Seed(*one) for one in each], parallel.all_devices()
            train = _read_examples(settings, devices)
            for part in parts(seeds, train.x, devices):
                _Run(part, train, watch).train()


class _Run:
    """Seeds that train as one: mostly a single one."""

    def __init__(self, seeds: Sequence[Seed], train: Examples, watch: Watch):
        self._seeds, self._train, self._watch = seeds, train, watch
        self._settings = seeds[0].settings
        self._devices = parallel.all_devices()
        self._probe = FrozenEncoder(self._settings, self._devices)

    def train(self) -> None:
        with contextlib.ExitStack() as stack:
            for seed in self._seeds:
                stack.enter_context(seed)
            each = [seed.checkpoints for seed in self._seeds]
            step = newest_common([checkpoints.steps() for checkpoints in each])
            states = [seed.state(step) for seed in self._seeds]
            if step == self._settings.derived.steps:
                return
            for checkpoints in each:
                checkpoints.check_room(states)
                # Before the rows: a seed that is ahead trains these steps once more.
                checkpoints.remove_after(step)
            rows = self._rows(step, stack)
            profiler = Profiler(self._settings, self._seeds[0].workdir, first_step=step)
            self._loop(states, rows, stack.enter_context(profiler))

    def _rows(self, step: int, stack: contextlib.ExitStack) -> Rows:
        """Returns the open logs, after the rows until a step."""
        writers, pending = [], []
        for seed in self._seeds:
            pending.append(seed.checkpoints.note(step) if step else {})
            writer = MetricsWriter(
                seed.workdir, first_step=step, settings=seed.settings
            )
            writers.append(stack.enter_context(contextlib.closing(writer)))
        bar = tqdm(
            total=self._settings.derived.steps,
            initial=step,
            unit="step",
            ncols=100,
            disable=not processes.is_main_process(),
        )
        return Rows(
            [seed.settings for seed in self._seeds],
            writers,
            stack.enter_context(bar),
            first_step=step,
            pending=pending,
        )

    def _loop(
        self, states: Sequence[TrainState], rows: Rows, profiler: Profiler
    ) -> None:
        settings, step = self._settings, int(states[0].step)
        count = len(self._seeds)
        train = parallel.make_train(
            *step_and_draw(settings), self._devices, seeds=count
        )
        seeds = [jax.random.key(seed.settings.seed) for seed in self._seeds]
        key = parallel.stack([jax.random.fold_in(seed, 1) for seed in seeds])
        replicated = parallel.replicate(parallel.stack(states), self._devices)
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
                states = parallel.unstack(parallel.one_replica(replicated), count)
                rows.write_others(step, [self._probe_row(state) for state in states])
            for seed in self._seeds:
                seed.checkpoints.check()
            leaves = step < settings.derived.steps and self._watch.is_asked()
            if leaves or self._saves(step):  # after the rows: no resumed run repeats it
                states = parallel.unstack(parallel.one_replica(replicated), count)
                self._save(step, states, rows.pending())
            if leaves:
                self._leave(step)

    def _save(
        self, step: int, states: Sequence[TrainState], notes: Sequence[dict[str, Any]]
    ) -> None:
        for seed, state, note in zip(self._seeds, states, notes, strict=True):
            seed.save(step, state, note=note)

    def _leave(self, step: int) -> None:
        for seed in self._seeds:
            seed.checkpoints.wait()
        where = ", ".join(str(seed.workdir) for seed in self._seeds)
        raise Preempted(
            f"{where}: {self._watch.reason}; saved at step {step}, the same command "
            "continues"
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


def _read_examples(settings: Any, devices: Sequence[jax.Device]) -> Examples:
    """Returns the training examples, after checking what only they tell."""
    train = make_examples(settings, "train")
    wanted = settings.data.train_examples
    if len(train.x) != wanted:
        raise ValueError(
            f"data.train_examples is {wanted}; expected at most {len(train.x)}, what "
            f"{settings.data.name} has."
        )
    probe_examples(settings, train)
    check_label_fractions(settings, train)
    memory.check_data(train.x, devices)
    return train


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
