"""Start-up of the processes of a run, and how each of them ends."""

import difflib
import logging
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging

from invariance_jax.report.read import flatten
from invariance_jax.runtime.launchers import Place, from_environment, from_flags
from invariance_jax.runtime.preemption import STATUS, Preempted, Watch
from invariance_jax.runtime.processes import is_main_process

_log = logging.getLogger(__name__)

_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, where nothing else tells it."
)
_COUNT = flags.DEFINE_integer(
    "num_processes", None, "Number of processes, with --coordinator_address."
)
_INDEX = flags.DEFINE_integer(
    "process_id", None, "Number of this process, with --coordinator_address."
)
_START_SECONDS = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds to wait for all processes.", lower_bound=1
)
_HEARTBEAT_SECONDS = flags.DEFINE_integer(
    "heartbeat_timeout",
    30,
    "Seconds after which a silent process counts as dead, and the others stop.",
    lower_bound=1,
)


def run(
    main: Callable[[list[str]], None], parse: Callable[[list[str]], list[str]]
) -> None:
    """Runs a program: logging, flags, and an exit status for each way to end.

    An error of the user's is one line and status 1; a run that was asked to stop and
    will continue has the status `preemption.STATUS`.

    Args:
      main: takes what the flags leave of the command line.
      parse: parses the flags.
    """
    log = logging.getLogger("invariance_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False  # absl's handler would show every line again
    absl_logging.set_verbosity(absl_logging.WARNING)  # what --verbosity starts from
    try:
        app.run(main, flags_parser=parse)
    except Preempted as stop:
        log.warning("%s", stop)
        sys.exit(STATUS)
    except (flags.Error, FloatingPointError, OSError, ValueError) as error:
        log.debug("traceback", exc_info=True)
        _fail(f"error: {_one_line(error)}")
    except Exception:
        _fail(traceback.format_exc())


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[-1] if "Traceback" in str(error) else " ".join(lines)


def _fail(message: str) -> None:
    in_main = threading.current_thread() is threading.main_thread()
    if jax.distributed.is_initialized() or not in_main:
        # An exit would wait for the other processes, which wait for this one.
        sys.stdout.flush()
        print(message, file=sys.stderr, flush=True)
        os._exit(1)
    sys.exit(message)


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


def initialize() -> bool:
    """Meets the other processes of the run, if there are any, and logs who is there.

    Must come before anything that asks for devices. From here on, signals ask for a
    stop, see `runtime.preemption`. Only the main process says anything. If a process
    does not come in time, the others end with an error that names what was found.

    Returns:
      Whether this is the main process, the one that writes.

    Raises:
      ValueError: if flags or environment are incomplete or contradict one another.
    """
    given = (_ADDRESS.value, _COUNT.value, _INDEX.value)
    place = from_flags(*given) or from_environment(os.environ)
    if place is not None:
        _meet(place)
    # For the rest of the process, and after JAX and submitit have set theirs.
    Watch().__enter__()
    writes = is_main_process()
    if not writes:
        _log.parent.setLevel(logging.WARNING)
        sys.stdout = open(os.devnull, "w")
    devices = jax.devices()
    _log.info(
        "processes: %d; devices: %d (%s); host: %s; jax %s, jaxlib %s",
        jax.process_count(),
        len(devices),
        devices[0].device_kind,
        socket.gethostname(),
        jax.__version__,
        metadata.version("jaxlib"),
    )
    return writes


def _meet(place: Place) -> None:
    # Its service would take SIGTERM, which is the run's to handle.
    jax.config.update("jax_enable_preemption_service", False)
    known: dict[str, Any] = {}
    if place.address is not None:
        known = {
            "coordinator_address": place.address,
            "num_processes": place.count,
            "process_id": place.index,
            "cluster_detection_method": "deactivate",
        }
    seconds = _START_SECONDS.value
    details = ", ".join(f"{k}={v}" for k, v in place._asdict().items())
    # JAX's own time-out aborts the process with a stack trace, so ours comes first.
    watchdog = threading.Timer(
        seconds,
        _fail,
        [
            f"error: the processes of the run did not meet within {seconds} s; found "
            f"{details} on {socket.gethostname()}. Check that all of them were "
            "started and reach the address, or raise --initialization_timeout."
        ],
    )
    watchdog.daemon = True
    watchdog.start()
    jax.distributed.initialize(
        **known,
        # None, where the launcher is known, leaves JAX_LOCAL_DEVICE_IDS its say.
        local_device_ids=list(place.local_devices) or (None if known else []),
        initialization_timeout=2 * seconds,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS.value,
    )
    watchdog.cancel()
