"""What a stop costs a run: the restart, and the checkpoint that it starts from.

A restart is a new Python process that trains a run on from its checkpoint; what is
timed is the way to the first step that it has finished: imports, data, restoring and
compiling, with the programs of the earlier start kept or not. A checkpoint is that of
the same run; what is timed is how long the training loop waits for it, against how long
the write takes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.workdir import claim
from invariance_jax.training import parallel
from invariance_jax.training.settings import resolve
from invariance_jax.training.start import initial_state

# What a cluster's job does: nothing is left of the process that was there before.
_TRAIN = """
import sys
from invariance_jax import train
from invariance_jax.runs.workdir import (read_config)
train.run(read_config(sys.argv[1]), sys.argv[1])
"""

_SECONDS = 600.0


class _Clock:
    """The time, less what does not belong to a measurement."""

    def __init__(self) -> None:
        self._left_out = 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self._left_out

    def leave_out(self, function: Callable[[], Any]) -> Any:
        """Returns what a function does, as if it took no time."""
        start = time.perf_counter()
        result = function()
        self._left_out += time.perf_counter() - start
        return result


def run(config: ConfigDict, *, repeats: int) -> list[Comparison]:
    """Returns the time of a restart and that of a checkpoint.

    Args:
      config: a configuration with the keys of `configs/base.py`; its length and
        cadences are replaced by those of a run of two steps.
      repeats: see `timing.alternate`; every repeat starts two processes.

    Returns:
      Two comparisons, in seconds: warm and cold restart; the wait of the training loop
      for a checkpoint that is written in the background, and the whole write.

    Raises:
      ValueError: if the configuration is invalid.
      RuntimeError: if a run of it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        restarts = _restarts(config, Path(folder), repeats)
        saves = _saves(config, Path(folder) / "saves", repeats)
    names = "warm compilation cache", "cold compilation cache"
    stall = "wait, written in the background", "whole write"
    return [
        Comparison("restart", *names, *restarts, True),
        Comparison("checkpoint", *stall, *saves, True),
    ]


def _restarts(config: ConfigDict, folder: Path, repeats: int) -> Any:
    """Returns `[2, repeats]`: seconds of warm and cold restarts to the first step."""
    stopped, clock = folder / "stopped", _Clock()
    start(two_steps(config), stopped)

    def restart(*, warm: bool) -> None:
        workdir = folder / "run"
        clock.leave_out(lambda: copy_stopped(stopped, workdir, warm=warm))
        process = _spawn(workdir)
        try:
            _wait_for_a_row(process, workdir / "metrics.jsonl")
        finally:
            clock.leave_out(lambda: _end(process))

    return alternate(
        lambda: restart(warm=True),
        lambda: restart(warm=False),
        repeats=repeats,
        min_seconds=0.0,
        clock=clock,
    )


def two_steps(config: ConfigDict) -> ConfigDict:
    """Returns a configuration of two steps, each of which is saved and logged.

    Args:
      config: a configuration with the keys of `configs/base.py`.
    """
    short = ConfigDict(config.to_dict())
    short.epochs, short.steps, short.seeds = None, 2, 1
    short.penalty.warmup_steps = 0
    short.compilation_cache, short.logging.profile_steps = None, ""
    short.logging.wandb_project = None
    short.checkpoints.every_steps = short.logging.every_steps = 1
    short.checkpoints.keep, short.logging.probe_every_steps = 2, 0
    return short


def start(config: ConfigDict, workdir: Path) -> None:
    """Trains a run in a process of its own, from its beginning to its end.

    Args:
      config: a configuration with the keys of `configs/base.py`.
      workdir: a new folder.

    Raises:
      ValueError: if the configuration is invalid.
      RuntimeError: if the run fails.
    """
    claim(resolve(config), workdir)
    _end(_spawn(workdir))


def copy_stopped(stopped: Path, workdir: Path, *, warm: bool) -> None:
    """Copies a run of two steps as if it had been stopped after the first.

    Args:
      stopped: the work directory of the run.
      workdir: its copy; what is there is removed.
      warm: whether the copy has its compiled programs.
    """
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(stopped, workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    (workdir / "metrics.jsonl").unlink()
    if not warm:
        shutil.rmtree(workdir / "compilation_cache")


def _spawn(workdir: Path) -> subprocess.Popen[str]:
    own = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return subprocess.Popen(
        [sys.executable, "-c", _TRAIN, str(workdir)],
        env=own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_a_row(process: subprocess.Popen[str], path: Path) -> None:
    while process.poll() is None:
        if path.exists() and path.stat().st_size > 0:
            return
        time.sleep(0.002)


def _end(process: subprocess.Popen[str]) -> None:
    """Waits for the end of a process, and tells its error."""
    try:
        _, said = process.communicate(timeout=_SECONDS)
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise RuntimeError(f"the run failed: {said.strip().splitlines()[-1:]}")


def _saves(config: ConfigDict, folder: Path, repeats: int) -> Any:
    """Returns `[2, repeats]`: seconds of the wait for a save, and of the write."""
    clock, checkpoints = _Clock(), Checkpoints(folder, keep=2)
    state = parallel.replicate(initial_state(resolve(config)), parallel.all_devices())
    steps = iter(range(10**9))

    def save() -> None:
        checkpoints.save(next(steps), parallel.one_replica(state))

    def save_and_leave() -> None:
        save()
        clock.leave_out(checkpoints.wait)

    def save_and_wait() -> None:
        save()
        checkpoints.wait()

    times = alternate(
        save_and_leave, save_and_wait, repeats=repeats, min_seconds=0.0, clock=clock
    )
    checkpoints.close()
    return times
