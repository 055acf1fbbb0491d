"""What a stop costs a run: the restart, and the checkpoint that it starts from.

A restart is a new Python process that continues a run which was stopped; what is timed
is the way to the first step that it has finished: imports, data, restoring and
compiling, with the programs of the earlier start kept or not. Of a checkpoint of the
same run, what is timed is how long the training loop waits for it, and the whole write.
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

# What a cluster's job does: nothing is left of the process that was there before.
_TRAIN = """
import sys
from invariance_jax import train
from invariance_jax.runs.workdir import read_config
train.run(read_config(sys.argv[1]), sys.argv[1])
"""

_NEVER, _SECONDS = 10**6, 600.0


def time_restart(options: Options) -> Iterator[Row]:
    """Yields cold over warm restarts, and a whole write over the wait for it."""
    rounds = range(options.timer.repeats)
    with tempfile.TemporaryDirectory() as folder:
        stopped = Stopped(options.config, Path(folder))
        pairs = [[stopped.restart(warm=warm) for warm in (False, True)] for _ in rounds]
        cold, warm = np.transpose(pairs)
        kept = "programs kept", warm
        yield compare("restart to the first step", ("programs compiled", cold), kept)
        write, wait = time_saves(options.config, Path(folder, "saves"), len(rounds))
        waited = "wait of the loop", wait
        yield compare("checkpoint", ("whole write", write), waited)


class Stopped:
    """A run that was stopped by a signal, with the programs that it compiled."""

    def __init__(self, config: Config, folder: Path):
        """Starts a run, with another length and cadences, and stops it after a step."""
        self._now, self._kept = folder / "now", folder / "kept"
        endless = copy.deepcopy(config)
        endless.epochs, endless.steps, endless.seeds = None, _NEVER, 1
        endless.penalty.warmup_steps, endless.steps_per_call = 0, 1
        endless.logging.every_steps, endless.logging.probe_every_steps = 1, 0
        endless.logging.wandb_project, endless.logging.profile_steps = None, ""
        endless.checkpoints.every_steps = _NEVER
        endless.compilation_cache = str(self._now / "programs")
        claim(resolve(endless), self._now / "run")
        process = self._train_to_a_row()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=_SECONDS)
        self._now.rename(self._kept)

    def restart(self, *, warm: bool) -> float:
        """Returns the seconds in which the run, continued, finishes a step."""
        shutil.rmtree(self._now, ignore_errors=True)
        shutil.copytree(self._kept, self._now)
        if not warm:
            shutil.rmtree(self._now / "programs")
        start = time.perf_counter()
        process = self._train_to_a_row()
        seconds = time.perf_counter() - start
        process.kill()
        process.communicate()
        return seconds

    def _train_to_a_row(self) -> "subprocess.Popen[str]":
        """Returns a process that trains, and has logged one step more."""
        log = self._now / "run" / "metrics.jsonl"

        def rows() -> int:
            return log.read_bytes().count(b"\n") if log.exists() else 0

        before = rows()
        command = [sys.executable, "-c", _TRAIN, str(log.parent)]
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        process = subprocess.Popen(command, stdout=null, stderr=pipe, text=True)
        while rows() <= before:
            if process.poll() is not None:
                _, said = process.communicate()
                raise RuntimeError(f"the run failed: {said.strip().splitlines()[-1:]}")
            time.sleep(0.002)
        return process


def time_saves(
    config: Config, workdir: Path, repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the seconds of whole writes, `[R]`, and of the waits for them."""
    checkpoints = Checkpoints(workdir, keep=2)
    state, times = initial_state(build(resolve(config))), []
    for step in range(repeats + 1):
        start = time.perf_counter()
        checkpoints.save(step, state)
        wait = time.perf_counter() - start
        checkpoints.wait()
        times.append((time.perf_counter() - start, wait))
    checkpoints.close()
    writes, waits = np.transpose(times[1:])  # the first makes the folders
    return writes, waits
