"""Output to the terminal: its errors never stop a run, and a file gets no bars."""

import contextlib
import io
import os
import sys
from typing import IO, Any

from tqdm import tqdm

from invariance_jax.runtime.processes import is_main_process

_SECONDS = 30.0  # between two lines of progress in a log file
_LINE = "{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Forgiving(io.TextIOWrapper):
    """A text stream that drops text it cannot write, as when its reader has ended."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().flush()


def forgive() -> None:
    """Replaces stdout and stderr by streams that ignore errors of writing.

    A closed standard stream is opened on `os.devnull`. Otherwise the next opened file
    would get its descriptor, and the text of the stream.
    """
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor: number
        if name != "stdin":
            setattr(sys, name, _forgiving(getattr(sys, name), number))


def _forgiving(stream: IO[str] | None, number: int) -> IO[str]:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    is_unbuffered = getattr(stream, "write_through", False)  # `python -u`
    return _Forgiving(
        os.fdopen(number, "wb", buffering=0 if is_unbuffered else -1, closefd=False),
        encoding=getattr(stream, "encoding", None),
        errors="replace",
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=is_unbuffered,
    )


class _Lines(io.StringIO):
    """Prints each update of a progress bar to stderr as a line of its own."""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line:
            print(line, file=sys.stderr, flush=True)
        return len(text)


def progress(name: str, total: int, *, unit: str, initial: int = 0) -> "tqdm[Any]":
    """Returns a progress bar with the remaining time; a file gets a line every 30 s."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        desc=f"{name}: ",  # as set_description writes it
        total=total,
        initial=initial,
        unit=unit,
        disable=not is_main_process(),
        file=sys.stderr if is_terminal else _Lines(),
        ncols=100 if is_terminal else None,
        bar_format=None if is_terminal else _LINE,
        mininterval=0.1 if is_terminal else _SECONDS,
        maxinterval=10 if is_terminal else _SECONDS,
    )
