"""Signals that request a graceful stop: a time limit, preemption, Ctrl-C.

SLURM warns with SIGTERM or with the signal of `--signal`, submitit with SIGUSR2. A
handler only records the signal. The run checks the record where it can stop, and its
processes exchange it, so that all of them stop at the same step. A second Ctrl-C ends
the process at once, even while it waits for its devices.

Importing this module does not import jax: a cluster job installs the handlers before
anything else.
"""

import contextlib
import os
import signal
import threading
from types import FrameType

WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The signals by which a cluster announces the end of a job."""

SIGNALS = (*WARNINGS, signal.SIGINT)
"""The signals that request a stop."""

PREEMPTED = 75
"""Exit status of a run that a signal has stopped and that a new start resumes:
"temporary failure" of `sysexits.h`."""

INTERRUPTED = 130
"""Exit status of a run that Ctrl-C has stopped, as shells define it."""

STOPPED = PREEMPTED, INTERRUPTED
"""Exit statuses of a run that a signal has stopped; it has not failed."""


class Preempted(Exception):
    """A signal has requested a stop; all that is needed to continue is saved."""

    def __init__(self, text: str, status: int = PREEMPTED):
        """Keeps the message for the user and the exit status."""
        super().__init__(text)
        self.status = status


_received: signal.Signals | None = None
_is_watching = False


def watch_signals() -> contextlib.ExitStack:
    """Returns a context in which signals are recorded and do not end the process.

    It does nothing within another one, nor in another thread than the main one, as
    Python allows handlers only there. If it is never closed, the handlers stay.
    """
    global _is_watching
    undo = contextlib.ExitStack()
    if not _is_watching and threading.current_thread() is threading.main_thread():
        _is_watching = True
        undo.callback(_forget)
        for number in SIGNALS:
            undo.callback(signal.signal, number, signal.signal(number, _record))
        _listen(undo)
    return undo


def _forget() -> None:
    global _received, _is_watching
    _received, _is_watching = None, False


def _record(number: int, frame: FrameType | None) -> None:
    global _received
    _received = _received or signal.Signals(number)


def stop_is_asked() -> bool:
    """Returns, in every process, whether any process has received a signal."""
    from invariance_jax.runtime.processes import any_process

    return any_process(_received is not None)


def stop(text: str) -> Preempted:
    """Returns the exception that ends this process, with its exit status."""
    reason = _received.name if _received else "a signal to another process"
    status = INTERRUPTED if _received == signal.SIGINT else PREEMPTED
    return Preempted(f"{reason}: {text}; the same command continues", status)


def stop_if_asked() -> None:
    """Raises Preempted in every process if one got a signal; all must call it."""
    if stop_is_asked():
        raise stop("stopped")


def _listen(undo: contextlib.ExitStack) -> None:
    """Answers signals in a thread, as Python delays handlers during device calls."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    undo.callback(os.close, writer)
    undo.callback(signal.set_wakeup_fd, former)
    threading.Thread(target=_answer, args=[reader], daemon=True).start()


def _answer(reader: int) -> None:
    answered: set[signal.Signals] = set()
    with os.fdopen(reader, "rb", buffering=0) as signals:
        while number := signals.read(1):
            if number[0] not in SIGNALS:
                continue
            received = signal.Signals(number[0])
            if received in answered and received == signal.SIGINT:
                say("SIGINT again: ended at once; saved files are kept")
                os._exit(INTERRUPTED)
            if not answered:
                hint = " (Ctrl-C again: at once)" if received == signal.SIGINT else ""
                say(f"{received.name}: stopping as soon as possible{hint}")
            answered.add(received)


def ignore_signals() -> None:
    """Ignores all signals that request a stop: the run has ended."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def say(text: str) -> None:
    """Writes a line to stderr, not by logging, which a signal may have interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
