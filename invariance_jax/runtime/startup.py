"""Start-up of the processes of a run, and how each of them ends."""

import logging
import os
import re
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import ParamSpec

import jax
from absl import app, flags
from absl import logging as absl_logging

from invariance_jax.runtime import devices, terminal
from invariance_jax.runtime.files import call_in_file
from invariance_jax.runtime.launchers import Launcher, from_environment, from_flags
from invariance_jax.runtime.preemption import INTERRUPTED, Preempted, Watch
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.settings import KEYS, Config, closest

_log = logging.getLogger(__name__)

P = ParamSpec("P")

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

# What a user did or can do something about: the message says all.
_EXPECTED = (flags.Error, FloatingPointError, OSError, ValueError)


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a program on what its flags leave; an error is one line, and status 1."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    terminal.forgive()
    log = logging.getLogger("invariance_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False  # absl's handler would show every line again
    # What --verbosity starts from: the text of the libraries is for those who ask.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.raiseExceptions = False
    sys.excepthook = _if_verbose(sys.excepthook)
    threading.excepthook = _if_verbose(threading.excepthook)
    sys.unraisablehook = _if_verbose(sys.unraisablehook)
    warnings.showwarning = _if_verbose(warnings.showwarning)
    try:
        app.run(main, flags_parser=parse)
    except Preempted as stop:
        log.warning("%s", stop)
        sys.exit(stop.status)
    except KeyboardInterrupt:
        _fail("SIGINT: ended; there was nothing to save", INTERRUPTED)
    except Exception as error:
        _if_verbose(traceback.print_exc)()
        _fail(f"error: {_in_words(error)}")


def _if_verbose(say: Callable[P, object]) -> Callable[P, None]:
    """Returns the function, silent without `--verbosity=1`."""

    def said(*arguments: P.args, **kwargs: P.kwargs) -> None:
        if absl_logging.get_verbosity() >= absl_logging.DEBUG:
            say(*arguments, **kwargs)

    return said


def _in_words(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, _EXPECTED) and text:
        return text
    first = (text.splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (--verbosity=1 shows where)"


def _fail(message: str, status: int = 1) -> None:
    print(message, file=sys.stderr, flush=True)
    in_main = threading.current_thread() is threading.main_thread()
    if jax.distributed.is_initialized() or not in_main:
        # An exit would wait for the other processes, which wait for this one.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags; returns what is not one, the program first."""
    # A file of flags may hold any of them, also the configuration.
    arguments = flags.FLAGS.read_flags_from_files(arguments)
    sys.argv[:] = arguments
    text = "\n".join(arguments)
    paths = re.findall(r"^--?config[=\n](.+)$", text, re.MULTILINE)
    given = re.findall(r"^--?(?:no)?(config\..+?)(?:=|$)", text, re.MULTILINE)
    if given and not paths:
        raise ValueError(
            f"--{given[0]} needs --config, the configuration it changes; that of a run "
            "is --config=configs/run.py:WORKDIR"
        )
    known = [f"--config.{name}" for name in KEYS]
    unknown = sorted({f"--{name}" for name in given} - {*known})
    if unknown:
        each = (f"{name} is not a key; {closest(name, known)}" for name in unknown)
        raise ValueError("\n".join(each))
    flags.FLAGS["config"].parser = _ConfigFile()
    return flags.FLAGS(arguments)


_RUNS = ("all", "train", "evaluate", "embed")

_MODES_OF = {
    "out": ("all", "report", "export"),
    "profile_steps": ("all", "train"),
    "check_devices": ("check",),
    "check_target": ("check",),
    "sweep": _RUNS,
    "sweep_run": _RUNS,
}
"""Flag of launch.py -> the modes that take it."""


def check_flags(mode: str) -> None:
    """Refuses what a mode would leave out of account."""
    for name, modes in _MODES_OF.items():
        if flags.FLAGS[name].value is not None and mode not in modes:
            given = ", ".join(modes)
            raise ValueError(f"--{name} goes with --mode={given}, not {mode}")


class _ConfigFile(flags.ArgumentParser[Config]):
    """Loads a configuration file, with a variant after a colon."""

    def parse(self, argument: str) -> Config:
        file, *variant = argument.split(":", 1)
        found = call_in_file(file, "get_config", *variant)
        if not isinstance(found, Config):
            raise ValueError(
                f"get_config() returns {found!r}; expected the configuration that "
                "configs.base.get_config() makes, changed."
            )
        return found


def initialize() -> bool:
    """Meets the other processes of the run; returns whether this one writes and speaks.

    Must come before anything that asks for devices. From here on, signals ask for a
    stop, see `runtime.preemption`.
    """
    given = (_ADDRESS.value, _COUNT.value, _INDEX.value)
    launcher = from_flags(*given) or from_environment(os.environ)
    if launcher is not None:
        _meet(launcher)
    found = devices.all_devices()
    # For the rest of the process, and after JAX and submitit have set theirs.
    Watch().__enter__()
    writes = is_main_process()
    if not writes:
        logging.getLogger("invariance_jax").setLevel(logging.WARNING)
        sys.stdout = open(os.devnull, "w")
    _log.info(
        "processes: %d; devices: %d (%s); host: %s; jax %s, jaxlib %s",
        jax.process_count(),
        len(found),
        found[0].device_kind,
        socket.gethostname(),
        jax.__version__,
        metadata.version("jaxlib"),
    )
    return writes


def _meet(launcher: Launcher) -> None:
    # Its service would take SIGTERM, which is the run's to handle.
    jax.config.update("jax_enable_preemption_service", False)
    known, seconds = launcher.address is not None, _START_SECONDS.value
    details = ", ".join(f"{k}={v}" for k, v in vars(launcher).items())
    late = (
        f"error: the processes of the run did not meet within {seconds} s; found "
        f"{details} on {socket.gethostname()}. Check that all of them were started and "
        "reach the address, or raise --initialization_timeout."
    )
    # JAX's own time-out aborts the process with a stack trace, so ours comes first.
    watchdog = threading.Timer(seconds, _fail, [late])
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            coordinator_address=launcher.address,
            coordinator_bind_address=launcher.bind_address,
            num_processes=launcher.count,
            process_id=launcher.index,
            # None, where the launcher is known, leaves JAX_LOCAL_DEVICE_IDS its say.
            local_device_ids=list(launcher.local_devices) or (None if known else []),
            cluster_detection_method="deactivate" if known else None,
            initialization_timeout=2 * seconds,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS.value,
        )
    finally:
        watchdog.cancel()
