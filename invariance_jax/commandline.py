"""The command line of `launch.py`: its keys, its log, and errors in one line."""

import difflib
import logging
import re
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging

from invariance_jax.report.read import flatten


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags; an unknown key of the configuration meets the closest one.

    Args:
      arguments: the command line, the program first.

    Returns:
      What is not a flag, the program first.

    Raises:
      ValueError: if a key is unknown, or changed without a configuration.
    """
    text = "\n".join(arguments)
    paths = re.findall(r"^--?config[=\n](.+)$", text, re.MULTILINE)
    given = re.findall(r"^--?(config\..+?)(?:=|$)", text, re.MULTILINE)
    if given and not paths:
        raise ValueError(f"--{given[0]} needs --config, the configuration it changes")
    if paths and given:
        config = flags.FLAGS["config"].parser.parse(paths[-1])
        known = list(flatten(config.to_dict(), "config."))
        for name in sorted({*given} - {*known}):
            (close,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"--{name} is not a key; the closest is --{close}")
    return flags.FLAGS(arguments)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[-1] if "Traceback" in str(error) else " ".join(lines)


def start(main: Callable[[list[str]], None]) -> None:
    """Runs main; an error of the user's becomes one line and exit status 1.

    Args:
      main: a program, of what is not a flag.
    """
    log = logging.getLogger("invariance_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False  # absl's handler would show every line again
    absl_logging.set_verbosity(absl_logging.WARNING)  # what --verbosity starts from
    try:
        app.run(main, flags_parser=parse)
    except (flags.Error, FloatingPointError, OSError, ValueError) as error:
        log.debug("traceback", exc_info=True)
        sys.exit(f"error: {_one_line(error)}")
