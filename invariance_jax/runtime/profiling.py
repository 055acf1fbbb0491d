"""Traces of a few training steps, for TensorBoard and Perfetto."""

import contextlib
import logging
import os

import jax
from etils import epath

from invariance_jax.runtime.files import AnyPath
from invariance_jax.runtime.processes import is_main_process

_log = logging.getLogger(__name__)


class Profiler(contextlib.ExitStack):
    """A context that writes a `jax.profiler` trace of `logging.profile_steps`.

    A run that resumes after the first of these steps logs this and writes no trace. The
    end of the context also stops an unfinished trace: JAX allows one at a time.
    """

    def __init__(self, ends: tuple[int, ...], workdir: AnyPath, *, first_step: int):
        """Prepares the trace; nothing is written yet."""
        super().__init__()
        self._folder = os.fspath(epath.Path(workdir) / "profile")
        if ends and first_step > ends[0]:
            _log.info("no trace of steps %s: resumed at step %d", ends, first_step)
            ends = ()
        self._ends = ends if is_main_process() else ()

    def before(self, step: int, arrays: object) -> None:
        """Starts the trace if its first step is next, once the arrays are computed."""
        if step in self._ends[:1]:
            jax.block_until_ready(arrays)
            self.enter_context(jax.profiler.trace(self._folder))

    def after(self, step: int, arrays: object) -> None:
        """Stops the trace after its last step, once the arrays are computed."""
        if step in self._ends[1:]:
            jax.block_until_ready(arrays)
            self.close()
            _log.info("%s: trace of the steps %d to %d", self._folder, *self._ends)
