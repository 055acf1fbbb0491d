"""The cost of stopping a run: the restart, and writing a checkpoint.

A restart is timed from the start of a new Python process to the end of its first step
(imports, data, restoring, compiling), with and without the compiled programs of the
earlier start.
"""

import copy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from invariance_jax.benchmarks.timing import Options, Row, compare
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.workdir import claim
from invariance_jax.settings import Config, resolve
from invariance_jax.training.build import build, initial_state

# Like a job on a cluster: nothing remains of the earlier process.
_TRAIN = """
import sys
from invariance_jax import train
from invariance_jax.runs.workdir import read_config
train.run(read_config(sys.argv[1]), sys.argv[1])
"""

_NEVER, _SECONDS = 10**6, 600.0


def time_restart(options: Options) -> Iterator[Row]:
    """Yields cold over warm restarts, and the whole write over the loop's wait."""
    rounds = range(options.timer.repeats)
    with tempfile.TemporaryDirectory() as folder:
        stopped = Stopped(options.config, Path(folder))
        pairs = [[stopped.restart(warm=warm) for warm in (False, True)] for _ in rounds]
        cold, warm = np.transpose(pairs)
        first, second = ("programs compiled", cold), ("programs kept", warm)
        yield compare("restart to the first step", first, second)
        write, wait = time_saves(options.config, Path(folder, "saves"), len(rounds))
        first, second = ("whole write", write), ("wait of the loop", wait)
        yield compare("checkpoint", first, second)


class Stopped:
    """A run that was stopped by a signal, with its compilation cache."""

    def __init__(self, config: Config, folder: Path):
        """Starts an endless run that logs every step, and stops it after a step."""
        self._current, self._stopped = folder / "current", folder / "stopped"
        endless = copy.deepcopy(config)
        endless.epochs, endless.steps, endless.seeds = None, _NEVER, 1
        endless.penalty.warmup_steps, endless.steps_per_call = 0, 1
        endless.logging.every_steps, endless.logging.probe_every_steps = 1, 0
        endless.logging.wandb_project, endless.logging.profile_steps = None, ""
        endless.checkpoints.every_steps = _NEVER
        endless.compilation_cache = str(self._current / "programs")
        claim(resolve(endless), self._current / "run")
        process = self._train_one_step()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_SECONDS)
        self._current.rename(self._stopped)

    def restart(self, *, warm: bool) -> float:
        """Returns the seconds until the resumed run has finished its first step."""
        shutil.rmtree(self._current, ignore_errors=True)
        shutil.copytree(self._stopped, self._current)
        if not warm:
            shutil.rmtree(self._current / "programs")
        start = time.perf_counter()
        process = self._train_one_step()
        seconds = time.perf_counter() - start
        process.kill()
        process.communicate()
        return seconds

    def _train_one_step(self) -> "subprocess.Popen[str]":
        """Starts a training process; returns it once it has logged a step."""
        log = self._current / "run" / "metrics.jsonl"

        def num_rows() -> int:
            return log.read_bytes().count(b"\n") if log.exists() else 0

        before = num_rows()
        command = [sys.executable, "-c", _TRAIN, str(log.parent)]
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        process = subprocess.Popen(command, stdout=null, stderr=pipe, text=True)
        while num_rows() <= before:
            if process.poll() is not None:
                _, errors = process.communicate()
                last_line = errors.strip().splitlines()[-1:]
                raise RuntimeError(f"the run failed: {last_line}")
            time.sleep(0.002)
        return process


def time_saves(
    config: Config, workdir: Path, repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the seconds of the whole writes `[R]` and of the loop's waits `[R]`."""
    checkpoints = Checkpoints(workdir, keep=2)
    state, times = initial_state(build(resolve(config))), []
    for step in range(repeats + 1):
        start = time.perf_counter()
        checkpoints.save(step, state)
        wait = time.perf_counter() - start
        checkpoints.wait()
        times.append((time.perf_counter() - start, wait))
    checkpoints.close()
    writes, waits = np.transpose(times[1:])  # the first save creates the folders
    return writes, waits
