"""Signals that ask a run to save and stop: warnings of a time limit or preemption.

SLURM warns with SIGTERM or with the signal of `--signal`, submitit with SIGUSR2. A
handler only takes a note; the run asks for it where it can stop, and the processes of a
run agree, so that all of them stop at the same step.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from invariance_jax.runtime.processes import any_process

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks for a stop."""

STATUS = 75
"""Exit status of a run that was asked to stop and continues when it is started again:
"temporary failure" of `sysexits.h`."""


class Preempted(Exception):
    """A signal has asked the run to stop; all that it needs to continue is saved."""


class Watch:
    """A context in which the signals are noticed instead of ending the process.

    What an outer watch has noticed, an inner one knows when it begins, and the other
    way round when it ends; without an outer one, a signal that comes too late to be
    asked for is lost. In a thread other than the main one, where Python allows no
    handlers, nothing is noticed.
    """

    def __init__(self) -> None:
        """Notices nothing before the context is entered."""
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Puts the handlers in, after those of anything that was started before."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
            for outer in self._outer():
                self._received = self._received or outer._received
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Puts the former handlers back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        for outer in self._outer():
            outer._received = outer._received or self._received

    def _outer(self) -> list["Watch"]:
        owners = [getattr(one, "__self__", None) for one in self._previous.values()]
        return [owner for owner in owners if isinstance(owner, Watch)]

    def stop_if_asked(self) -> None:
        """Ends the run if a process of it was asked to stop; every process calls it.

        Raises:
          Preempted: if so, in every process.
        """
        if self.is_asked():
            raise Preempted(self.reason)

    def is_asked(self) -> bool:
        """Returns whether a process of the run was asked to stop, the same in each."""
        return any_process(self._received is not None)

    @property
    def reason(self) -> str:
        """What asked this process to stop, in words."""
        return self._received.name if self._received else "a signal to another process"

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
            # Not through logging, which the signal may have interrupted.
            os.write(2, f"{self._received.name}: stops as soon as it can\n".encode())
