"""Traces of a few training steps, for TensorBoard and Perfetto."""

import logging
import os
from types import TracebackType
from typing import Self

import jax
from etils import epath

from invariance_jax.runtime.processes import is_main_process

_log = logging.getLogger(__name__)

FOLDER = "profile"


class Profiler:
    """Writes a `jax.profiler` trace of the steps of `logging.profile_steps`.

    Only process 0 writes. A run that goes on after the first of them has been taken
    has no trace of exactly these steps: it says so and writes none.
    """

    def __init__(
        self,
        ends: tuple[int, ...],
        workdir: str | os.PathLike[str],
        *,
        first_step: int,
    ):
        """Prepares the trace between `derived.profile_steps`; nothing is written yet.

        Args:
          ends: finished steps before the first and after the last traced one; (): none.
          workdir: the work directory of the run.
          first_step: finished steps of the state that the run starts from.
        """
        self._folder, self._running = epath.Path(workdir) / FOLDER, False
        if ends and first_step > ends[0]:
            _log.info("no trace: the run goes on at step %d of %s", first_step, ends)
            ends = ()
        self._ends = ends if is_main_process() else ()

    def before(self, step: int, arrays: object) -> None:
        """Starts the trace if its first step is next, once the arrays are there."""
        if self._ends and step == self._ends[0]:
            jax.block_until_ready(arrays)
            jax.profiler.start_trace(os.fspath(self._folder))
            self._running = True

    def after(self, step: int, arrays: object) -> None:
        """Ends the trace if its last step is finished, once the arrays are there."""
        if self._running and step == self._ends[1]:
            jax.block_until_ready(arrays)
            self._stop()
            _log.info("%s: trace of the steps from %d to %d", self._folder, *self._ends)

    def __enter__(self) -> Self:
        """Returns the profiler."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Ends a trace that an error has interrupted; JAX allows one at a time."""
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
