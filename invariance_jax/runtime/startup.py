"""Start-up of the processes of a run, their errors and exit statuses."""

import atexit
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

from invariance_jax.arguments import closest
from invariance_jax.runtime import devices, terminal
from invariance_jax.runtime.files import call_in_file
from invariance_jax.runtime.launchers import Launcher, from_environment, from_flags
from invariance_jax.runtime.preemption import (
    INTERRUPTED,
    Preempted,
    ignore_signals,
    watch_signals,
)
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.settings import KEYS, Config, plugins, resolve

_log = logging.getLogger(__name__)

P = ParamSpec("P")

_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, if no launcher gives it."
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

_OF_PROCESSES = (_ADDRESS, _COUNT, _INDEX, _START_SECONDS, _HEARTBEAT_SECONDS)

_KEY = re.compile("--?(?:no)?(config[.][^=]+)")

# Errors that a user can correct: their message alone is shown.
_EXPECTED = (flags.Error, FloatingPointError, OSError, ValueError)


def run(main: Callable[[list[str]], None]) -> None:
    """Runs a program; prints the message of an error, and exits with status 1."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Python's shutdown restores the default handlers, which would change the status.
    atexit.register(ignore_signals)
    terminal.forgive()
    # matplotlib refuses a backend that is not installed; figures need none.
    os.environ["MPLBACKEND"] = "agg"
    log = logging.getLogger("invariance_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False  # absl's handler would show every line again
    # The default of --verbosity hides the messages of libraries.
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
        _fail(f"error: {_message(error)}")


def _if_verbose(show: Callable[P, object]) -> Callable[P, None]:
    """Returns the function, which does nothing without `--verbosity=1`."""

    def show_if_verbose(*arguments: P.args, **kwargs: P.kwargs) -> None:
        if absl_logging.get_verbosity() >= absl_logging.DEBUG:
            show(*arguments, **kwargs)

    return show_if_verbose


def _message(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, _EXPECTED) and text:
        return text
    first = (text.splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (--verbosity=1 shows its traceback)"


def _fail(message: str, status: int = 1) -> None:
    print(message, file=sys.stderr, flush=True)
    in_main = threading.current_thread() is threading.main_thread()
    if jax.distributed.is_initialized() or not in_main:
        # sys.exit would wait for the other processes, which wait for this one.
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def parse(arguments: list[str]) -> list[str]:
    """Parses the flags; returns the program name and the arguments without flags."""
    # A file of flags may hold any flag, also --config.
    arguments = flags.FLAGS.read_flags_from_files(arguments)
    text = "\n".join(arguments)
    paths = re.findall(r"^--?config[=\n](.+)$", text, re.MULTILINE)
    if len(paths) > 1:
        raise ValueError(f"--config is given twice: {', '.join(paths)}; expected one")
    # Argument -> --config.KEY, the flag that it sets.
    names = {one: f"--{key[1]}" for one in arguments if (key := _KEY.match(one))}
    if names and not paths:
        raise ValueError(
            f"{[*names.values()][0]} needs --config, the configuration it changes; for "
            "that of a run give --config=configs/run.py:WORKDIR"
        )
    known = [f"--config.{name}" for name in KEYS]
    unknown = {*names.values()} - {*known}
    errors = [f"{n} is not a key; {closest(n, known)}" for n in sorted(unknown)]
    # --config reads the keys from there.
    sys.argv[:] = [one for one in arguments if names.get(one) not in unknown]
    flags.FLAGS["config"].parser = _ConfigFile()
    try:
        rest = flags.FLAGS(sys.argv)
        if errors and flags.FLAGS.sweep is None:  # it may change bad values
            errors += plugins.problems(resolve(flags.FLAGS.config))
    except _EXPECTED as error:
        if not errors:
            raise
        errors.append(str(error))
    if errors:
        raise ValueError("\n".join(errors))
    return rest


_RUNS = ("all", "train", "evaluate", "embed")

_MODES_OF = {
    "out": ("all", "report", "export"),
    "profile_steps": ("all", "train"),
    **dict.fromkeys(("check_devices", "check_target"), ("check",)),
    **dict.fromkeys(("sweep", "sweep_run"), _RUNS),
    **dict.fromkeys((flag.name for flag in _OF_PROCESSES), _RUNS),
    "workdir": (*_RUNS, "report", "export", "check"),
    "config": (*_RUNS, "export", "check"),
}
"""Flag of launch.py -> the modes that use it."""


def check_flags(mode: str) -> None:
    """Raises ValueError for a flag that the mode would ignore."""
    for name, modes in _MODES_OF.items():
        if flags.FLAGS[name].present and mode not in modes:
            expected = ", ".join(modes)
            raise ValueError(f"--{name} goes with --mode={expected}, not {mode}")


class _ConfigFile(flags.ArgumentParser[Config]):
    """Loads a configuration from FILE or FILE:VARIANT."""

    def parse(self, argument: str) -> Config:
        file, *variant = argument.split(":", 1)
        config = call_in_file(file, "get_config", *variant)
        if not isinstance(config, Config):
            raise ValueError(
                f"get_config() returns {config!r}; expected the configuration of "
                "configs.base.get_config(), with changed values."
            )
        return config


def initialize() -> bool:
    """Connects to the other processes of the run; returns whether this is the main one.

    It must be called before the first use of a device. From here on, signals request a
    graceful stop, see `runtime.preemption`. The other processes only log warnings.
    """
    values = (_ADDRESS.value, _COUNT.value, _INDEX.value)
    launcher = from_flags(*values) or from_environment(os.environ)
    if launcher is not None:
        _connect(launcher)
    run_devices = devices.all_devices()
    # It is never closed, and replaces the handlers that JAX and submitit have set.
    watch_signals()
    is_main = is_main_process()
    if not is_main:
        logging.getLogger("invariance_jax").setLevel(logging.WARNING)
        sys.stdout = open(os.devnull, "w")
    _log.info(
        "processes: %d; devices: %d (%s); host: %s; jax %s, jaxlib %s",
        jax.process_count(),
        len(run_devices),
        run_devices[0].device_kind,
        socket.gethostname(),
        jax.__version__,
        metadata.version("jaxlib"),
    )
    return is_main


def _connect(launcher: Launcher) -> None:
    # Python's handler of Ctrl-C would wait until all processes have connected.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # JAX's preemption service would handle SIGTERM, which `watch_signals` handles.
    jax.config.update("jax_enable_preemption_service", False)
    is_known, seconds = launcher.address is not None, _START_SECONDS.value
    details = ", ".join(f"{k}={v}" for k, v in vars(launcher).items())
    message = (
        f"error: the processes of the run did not connect within {seconds} s; found "
        f"{details} on {socket.gethostname()}. Check that all of them were started and "
        "reach the address, or raise --initialization_timeout."
    )
    # JAX's own time-out aborts the process with a stack trace, so ours comes first.
    watchdog = threading.Timer(seconds, _fail, [message])
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            coordinator_address=launcher.address,
            coordinator_bind_address=launcher.bind_address,
            num_processes=launcher.count,
            process_id=launcher.index,
            # If the address is known, None lets JAX read JAX_LOCAL_DEVICE_IDS.
            local_device_ids=list(launcher.local_devices) or (None if is_known else []),
            cluster_detection_method="deactivate" if is_known else None,
            initialization_timeout=2 * seconds,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS.value,
        )
    finally:
        watchdog.cancel()
