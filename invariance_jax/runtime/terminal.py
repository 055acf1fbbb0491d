"""What is said to people: it never stops a run, and a file gets lines, not bars."""

import contextlib
import io
import os
import sys
from typing import IO, Any

from tqdm import tqdm

from invariance_jax.runtime.processes import is_main_process

_SECONDS = 30.0  # from a line of a log file to the next
_LINE = "{desc}{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class _Forgiving(io.TextIOWrapper):
    """A text stream that drops what cannot be written: its reader may be gone."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().flush()


def forgive() -> None:
    """Makes stdout and stderr streams whose failures do not matter.

    One that is closed is opened: else the next file would get its number, and the text.
    """
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the smallest number that is free
        if name != "stdin":
            setattr(sys, name, _forgiving(getattr(sys, name), number))


def _forgiving(stream: IO[str] | None, number: int) -> IO[str]:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    through = getattr(stream, "write_through", False)  # `python -u`
    return _Forgiving(
        os.fdopen(number, "wb", buffering=0 if through else -1, closefd=False),
        encoding=getattr(stream, "encoding", None),
        errors="replace",
        line_buffering=getattr(stream, "line_buffering", True),
        write_through=through,
    )


class _Lines(io.StringIO):
    """Turns the redrawn lines of a progress bar into lines of a file."""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line:
            print(line, file=sys.stderr, flush=True)
        return len(text)


def progress(name: str, total: int, *, unit: str, initial: int = 0) -> "tqdm[Any]":
    """Returns a progress bar with the time left; in a file, a line now and then.

    Only the main process shows it.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=f"{name}: ",  # as set_description writes it
        total=total,
        initial=initial,
        unit=unit,
        disable=not is_main_process(),
        file=sys.stderr if terminal else _Lines(),
        ncols=100 if terminal else None,
        bar_format=None if terminal else _LINE,
        mininterval=0.1 if terminal else _SECONDS,
        maxinterval=10 if terminal else _SECONDS,
    )
