"""The seeds of a run: the work directory of each, and which of them train as one."""

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
from etils import epath

from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.workdir import read_start
from invariance_jax.runtime import processes
from invariance_jax.training import memory
from invariance_jax.training.start import first_state, state_shapes
from invariance_jax.training.steps import TrainState

_log = logging.getLogger(__name__)


class Seed:
    """The run of one seed: its settings and what it keeps in its work directory.

    The checkpoints are open within the context that it is.

    Attributes:
      settings: the result of `training.settings.resolve`.
      workdir: the work directory.
      checkpoints: those of the run.
    """

    def __init__(self, settings: Any, workdir: epath.Path):
        """Remembers this start of the run; nothing is opened yet.

        Args:
          settings: the result of `training.settings.resolve`.
          workdir: the work directory, which was claimed.
        """
        self.settings, self.workdir = settings, workdir
        self._id = read_start(workdir)

    def __enter__(self) -> Self:
        """Opens the checkpoints."""
        self.checkpoints = Checkpoints(
            self.workdir,
            keep=self.settings.checkpoints.keep,
            keep_every_steps=self.settings.checkpoints.keep_every_steps,
            owns=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the background and closes the checkpoints."""
        self.checkpoints.close()

    def state(self, step: int) -> TrainState:
        """Returns what training continues or starts from.

        Args:
          step: finished steps of a checkpoint; 0: given weights, else the initial state
            of the seed.

        Returns:
          The state of one replica.
        """
        if step:
            like = state_shapes(self.settings)
            state = self.checkpoints.restore(like, step=step)
            _log.info("%s: resumed at step %d", self.workdir, step)
            return state
        origin = self.settings.encoder.weights or "the seed"
        _log.info("%s: initialized from %s", self.workdir, origin)
        # Processes on different processors may initialize to different last bits.
        return processes.from_main(first_state(self.settings))

    def save(self, step: int, state: TrainState, *, note: dict[str, Any]) -> None:
        """Saves a state, in the background.

        Args:
          step: finished steps.
          state: the state of one replica.
          note: see `Checkpoints.note`.

        Raises:
          OSError: if the run was started a second time.
          FloatingPointError: if the state is not finite.
        """
        if processes.is_main_process() and read_start(self.workdir) != self._id:
            raise OSError(
                f"{self.workdir}: the run was started a second time and goes on "
                "there; this start ends, expected one at a time."
            )
        self.checkpoints.save(step, state, note=note)


def newest_common(steps: Sequence[Sequence[int]]) -> int:
    """Returns the newest step of which each seed has a checkpoint, 0 if there is none.

    Args:
      steps: of each seed, the steps of its checkpoints.
    """
    return max(set(steps[0]).intersection(*steps[1:]), default=0)


def parts(
    seeds: Sequence[Seed], data: np.ndarray, devices: Sequence[jax.Device]
) -> list[list[Seed]]:
    """Returns which seeds train as one, in the order in which they train.

    Seeds do so as `seeds_together` says, if there is one device and they fit into its
    memory; else one after the other.

    Args:
      seeds: those of a run.
      data: the training examples `[N, ...]`.
      devices: the devices of all processes.

    Returns:
      The seeds in parts, each seed once. A seed that is finished is one for itself.
    """
    alone, settings = [[seed] for seed in seeds], seeds[0].settings
    wanted = settings.seeds_together and settings.encoder.name == "mlp"
    # Of two branches, a step that is mapped over seeds computes both.
    wanted = wanted and settings.penalty.every_steps == 1
    if not wanted or len(devices) > 1 or len(seeds) == 1:
        return alone
    found = [
        [seeds[n] for n in part]
        for part in group(
            [_saved(seed) for seed in seeds],
            total=settings.derived.steps,
            most=settings.checkpoints.every_steps,
        )
    ]
    largest = max(map(len, found))
    if largest == 1:
        return alone
    if not memory.fits(settings, data, devices[0], seeds=largest):
        _log.info("%d seeds do not fit: they train one after the other", largest)
        return alone
    for part in found:
        if len(part) > 1:
            names = ", ".join(str(seed.settings.seed) for seed in part)
            _log.info("seeds %s train as one", names)
    return found


def _saved(seed: Seed) -> list[int]:
    checkpoints = Checkpoints(seed.workdir)
    steps = checkpoints.steps()
    checkpoints.close()
    return steps


def group(steps: Sequence[Sequence[int]], *, total: int, most: int) -> list[list[int]]:
    """Returns which seeds can go on together without losing what is trained.

    A kill between the checkpoints of two seeds leaves some of them ahead: all start
    again from the newest step that they share. Where that throws away more than a kill
    does, only seeds that are equally far go on together.

    Args:
      steps: of each seed, the steps of its checkpoints.
      total: steps of a finished seed.
      most: steps between two checkpoints, what a kill costs at most.

    Returns:
      Positions in steps, in parts, each once; finished seeds are alone.
    """
    newest = [max(own, default=0) for own in steps]
    left = [n for n, step in enumerate(newest) if step < total]
    found = [[n] for n in range(len(steps)) if n not in left]
    common = newest_common([steps[n] for n in left]) if left else 0
    if common and max(newest[n] for n in left) - common <= most:
        return sorted([*found, left])
    equal: dict[int, list[int]] = {}
    for n in left:
        equal.setdefault(newest[n], []).append(n)
    return sorted([*found, *equal.values()])
