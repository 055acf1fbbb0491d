"""Signals that request a graceful stop: a time limit, preemption, Ctrl-C.

SLURM warns with SIGTERM or with the signal of `--signal`, submitit with SIGUSR2. A
handler only takes a note; the run asks for it where it can stop, and the processes of a
run agree, so that all of them stop at the same step. A second Ctrl-C ends the process
at once, even while it waits for its devices.

Nothing here imports jax before the processes agree: a job of a cluster puts handlers in
before anything else.
"""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import ClassVar, Self

WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The signals by which a cluster announces the end of a job."""

SIGNALS = (*WARNINGS, signal.SIGINT)
"""The signals that request a stop."""

PREEMPTED = 75
"""Exit status of a run that was asked to stop and continues when it is started again:
"temporary failure" of `sysexits.h`."""

INTERRUPTED = 130
"""Exit status of a run that Ctrl-C has stopped, as that of a shell."""


class Preempted(Exception):
    """A signal has requested a stop; all that is needed to continue is saved."""

    def __init__(self, text: str, status: int = PREEMPTED):
        """Takes what is said to people, and the exit status."""
        super().__init__(text)
        self.status = status


class Watch:
    """Notes signals instead of ending the process; what one context notes, all know.

    In a thread other than the main one Python allows no handlers: nothing is noted.
    """

    _open: ClassVar[int] = 0
    _received: ClassVar[signal.Signals | None] = None
    _undo: ClassVar[contextlib.ExitStack]

    def __enter__(self) -> Self:
        """Puts the handlers in, after those of anything that was started before."""
        if threading.current_thread() is threading.main_thread():
            if not Watch._open:
                Watch._undo = contextlib.ExitStack()
                Watch._undo.callback(setattr, Watch, "_received", None)
                for number in SIGNALS:
                    before = signal.signal(number, _note)
                    Watch._undo.callback(signal.signal, number, before)
                _listen(Watch._undo)
            Watch._open += 1
        return self

    def __exit__(self, *error: object) -> None:
        """Puts the former handlers back when the outermost context ends."""
        if threading.current_thread() is threading.main_thread():
            Watch._open -= 1
            if not Watch._open:
                Watch._undo.close()

    def stop_if_asked(self) -> None:
        """Raises Preempted in every process if one was asked to stop; all call it."""
        if self.is_asked():
            raise self.stop("stopped")

    def is_asked(self) -> bool:
        """Returns whether a process of the run was asked to stop, the same in each."""
        from invariance_jax.runtime.processes import any_process

        return any_process(Watch._received is not None)

    def stop(self, text: str) -> Preempted:
        """Returns the exception that ends this process, as it was asked to."""
        received = Watch._received
        reason = received.name if received else "a signal to another process"
        status = INTERRUPTED if received == signal.SIGINT else PREEMPTED
        return Preempted(f"{reason}: {text}; the same command continues", status)


def _note(number: int, frame: FrameType | None) -> None:
    Watch._received = Watch._received or signal.Signals(number)


def _listen(undo: contextlib.ExitStack) -> None:
    """Answers signals in a thread: Python's handlers wait for calls to the devices."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    undo.callback(os.close, writer)
    undo.callback(signal.set_wakeup_fd, before)
    threading.Thread(target=_answer, args=[reader], daemon=True).start()


def _answer(reader: int) -> None:
    seen: set[signal.Signals] = set()
    with os.fdopen(reader, "rb", buffering=0) as signals:
        while number := signals.read(1):
            if number[0] not in SIGNALS:
                continue
            received = signal.Signals(number[0])
            if received in seen and received == signal.SIGINT:
                say("SIGINT again: ended at once; what was saved is kept")
                os._exit(INTERRUPTED)
            if not seen:
                again = " (again: at once)" if received == signal.SIGINT else ""
                say(f"{received.name}: stops as soon as it can{again}")
            seen.add(received)


def say(text: str) -> None:
    """Writes a line to the terminal; not through logging, which may be interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
