"""Parts of a benchmark in processes of their own, each with its time.

A part that crashes, or is not finished in time, loses nothing that it has printed, and
has the memory of the device to itself.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PROGRESS = "..."
"""How a line ends that says what is being measured; it is not among the results."""


class Part(NamedTuple):
    """One process.

    Attributes:
      command: what it runs, after the name of the interpreter.
      until: seconds after the start of the first part at which it is ended.
      environment: variables that it has beside those of this process.
    """

    command: Sequence[str]
    until: float
    environment: Mapping[str, str]


def run(parts: Mapping[str, Part], environment: Mapping[str, str]) -> list[str]:
    """Runs processes one after the other; shows their lines as they come.

    Args:
      parts: name -> process, in their order.
      environment: the variables of this process.

    Returns:
      The lines that they printed, without those of their progress, and one for each
      that failed or was ended.
    """
    begun = time.monotonic()
    lines = []
    for name, part in parts.items():
        left = part.until - (time.monotonic() - begun)
        if left <= 0:
            lines.append(f"{name}: not run, no time left")
            continue
        printed, why = _run(part, {**environment, **part.environment}, left)
        lines += [line for line in printed if not line.endswith(PROGRESS)]
        lines += [f"{name}: {why}"] if why else []
    return lines


def _run(
    part: Part, environment: Mapping[str, str], seconds: float
) -> tuple[list[str], str]:
    """Returns the lines of a process, and why it did not end by itself, if so."""
    process = subprocess.Popen(
        [sys.executable, *part.command],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    ended = threading.Event()

    def end() -> None:
        ended.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    lines = []
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    status = process.wait()
    timer.cancel()
    if ended.is_set():
        return lines, "ended, no time left"
    return lines, f"failed with exit status {status}" if status else ""
