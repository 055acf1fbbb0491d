"""What a stop costs a run: the restart, and the checkpoint that it starts from.

A restart is a new Python process that continues a run which was stopped; what is timed
is the way to the first step that it has finished: imports, data, restoring and
compiling, with the programs of the earlier start kept or not. A checkpoint is that of
the same run; what is timed is how long the training loop waits for it, against how long
the write takes.
"""

import copy
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from invariance_jax.benchmarks.timing import Options, Row, Timer, compare
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.workdir import claim
from invariance_jax.settings import Config, resolve
from invariance_jax.training.build import build, initial_state

# What a cluster's job does: nothing is left of the process that was there before.
_TRAIN = """
import sys
from invariance_jax import train
from invariance_jax.runs.workdir import read_config
train.run(read_config(sys.argv[1]), sys.argv[1])
"""

_SECONDS = 600.0


class Clock:
    """The time in seconds, less what does not belong to a measurement."""

    _left_out = 0.0

    def __call__(self) -> float:
        """Returns the time."""
        return time.perf_counter() - self._left_out

    def leave_out(self, function: Callable[[], object]) -> None:
        """Calls a function as if it took no time."""
        start = time.perf_counter()
        function()
        self._left_out += time.perf_counter() - start


def run(options: Options) -> Iterator[Row]:
    """Yields cold over warm restarts, and a whole write over the wait for it.

    Raises:
      RuntimeError: if a run of the configuration fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        stopped = Stopped(options.config, Path(folder))
        clock = Clock()
        timer = options.timer._replace(min_seconds=0.0, clock=clock)
        cold, warm = timer(
            lambda: stopped.restart(clock, warm=False),
            lambda: stopped.restart(clock, warm=True),
        )
        names = "programs compiled", "programs kept"
        yield compare("restart to the first step", (names[0], cold), (names[1], warm))
        write, wait = time_saves(options.config, Path(folder, "saves"), timer, clock)
        yield compare("checkpoint", ("whole write", write), ("wait of the loop", wait))


class Stopped:
    """A run that was stopped by a signal, with the programs that it compiled."""

    def __init__(self, config: Config, folder: Path):
        """Starts a run and stops it after a step.

        Args:
          config: of the run; its length and cadences are replaced.
          folder: where its files go.
        """
        self._run, self._cache = folder / "run", folder / "cache"
        endless = copy.deepcopy(config)
        endless.epochs, endless.steps, endless.seeds = None, 10**6, 1
        endless.penalty.warmup_steps, endless.steps_per_call = 0, 1
        endless.logging.every_steps, endless.logging.probe_every_steps = 1, 0
        endless.logging.wandb_project, endless.logging.profile_steps = None, ""
        endless.checkpoints.every_steps = 10**6
        endless.compilation_cache = str(self._cache)
        claim(resolve(endless), self._run)
        process = self._spawn()
        self._wait_for_a_row(process, 0)
        process.send_signal(signal.SIGTERM)
        process.wait(_SECONDS)
        self._kept = folder / "kept"
        for path in (self._run, self._cache):
            shutil.copytree(path, self._kept / path.name)

    def restart(self, clock: Clock, *, warm: bool) -> None:
        """Continues the run until it has finished a step; the rest is left out."""
        clock.leave_out(lambda: self._put_back(warm))
        rows = self._rows()
        process = self._spawn()
        try:
            self._wait_for_a_row(process, rows)
        finally:
            clock.leave_out(lambda: _kill(process))

    def _put_back(self, warm: bool) -> None:
        for path in (self._run, self._cache):
            shutil.rmtree(path, ignore_errors=True)
            if warm or path == self._run:
                shutil.copytree(self._kept / path.name, path)

    def _rows(self) -> int:
        path = self._run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def _spawn(self) -> "subprocess.Popen[str]":
        own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        return subprocess.Popen(
            [sys.executable, "-c", _TRAIN, str(self._run)],
            env=own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _wait_for_a_row(self, process: "subprocess.Popen[str]", rows: int) -> None:
        """Waits for a row more than these; raises a RuntimeError if there is none."""
        while self._rows() <= rows:
            if process.poll() is not None:
                _, said = process.communicate()
                raise RuntimeError(f"the run failed: {said.strip().splitlines()[-1:]}")
            time.sleep(0.002)


def _kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def time_saves(config: Config, folder: Path, timer: Timer, clock: Clock) -> np.ndarray:
    """Returns the seconds of whole writes and of waits, `[2, R]`.

    Args:
      config: of the run whose state is saved.
      folder: a new one.
      timer: with the clock.
      clock: leaves out what the loop does not wait for.
    """
    checkpoints = Checkpoints(folder, keep=2)
    state, steps = initial_state(build(resolve(config))), iter(range(10**9))

    def save() -> None:
        checkpoints.save(next(steps), state)

    def write() -> None:
        save()
        checkpoints.wait()

    def wait() -> None:
        save()
        clock.leave_out(checkpoints.wait)

    times = timer(write, wait)
    checkpoints.close()
    return times
