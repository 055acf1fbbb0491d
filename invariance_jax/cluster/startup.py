"""Start-up of the processes of a run: who is there, and who waits for whom.

A run over several processes is found in the environment that SLURM's `srun`, Open MPI,
a TPU pod or `--cluster=local` leaves, or given by flags. One process per device and one
per machine both work.
"""

import logging
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags
from absl import logging as absl_logging

from invariance_jax.training.parallel import is_main_process
from invariance_jax.training.preemption import STATUS, Preempted, Watch

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

# The ports that no service has by default, from which SLURM jobs take theirs.
_FIRST_PORT, _PORTS = 61_440, 4096


class Place(NamedTuple):
    """What a process needs to know to meet the others.

    Attributes:
      found: where this was read, in words.
      address: HOST:PORT of process 0; None: JAX finds address, count and index.
      count: number of processes.
      index: number of this process.
      local_devices: the devices of this machine that are this process's; (): all that
        it sees.
    """

    found: str
    address: str | None = None
    count: int | None = None
    index: int | None = None
    local_devices: tuple[int, ...] = ()


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
        print(message, file=sys.stderr, flush=True)
        os._exit(1)
    sys.exit(message)


def initialize() -> bool:
    """Meets the other processes of the run, if there are any, and logs who is there.

    Must come before anything that asks for devices. From here on, signals ask for a
    stop, see `training.preemption`. Only the main process says anything. If a process
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


def from_flags(
    address: str | None, count: int | None, index: int | None
) -> Place | None:
    """Returns the place that the flags give, None if they give nothing.

    Args:
      address: value of `--coordinator_address`.
      count: value of `--num_processes`.
      index: value of `--process_id`.

    Raises:
      ValueError: if some of them are missing or out of range.
    """
    given = {
        "--coordinator_address": address,
        "--num_processes": count,
        "--process_id": index,
    }
    if all(value is None for value in given.values()):
        return None
    for name, value in given.items():
        if value is None:
            found = ", ".join(f"{k}={v}" for k, v in given.items() if v is not None)
            raise ValueError(f"{name} is missing; found {found}, expected all three.")
    assert address is not None and count is not None and index is not None
    if not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"--coordinator_address is {address!r}; expected HOST:PORT.")
    if count < 1:
        raise ValueError(f"--num_processes is {count}; expected 1 or more.")
    if not 0 <= index < count:
        raise ValueError(f"--process_id is {index}; expected 0 to {count - 1}.")
    return Place("the flags", address, count, index)


def from_environment(environment: Mapping[str, str]) -> Place | None:
    """Returns the place that a launcher has left in the environment, None if none has.

    Args:
      environment: name -> value.

    Raises:
      ValueError: if a value that belongs to it is missing or not a number.
    """
    if environment.get("SUBMITIT_EXECUTOR") == "local":
        return _from_submitit(environment)
    if "SLURM_STEP_NODELIST" in environment:
        return _from_slurm(environment)
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
        rank = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK")
        return Place("Open MPI", local_devices=() if alone else (rank,))
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    on_tpu = any(Path("/dev").glob("accel[0-9]*")) or "TPU_NAME" in environment
    if "," in hosts or on_tpu or "MEGASCALE_COORDINATOR_ADDRESS" in environment:
        return Place("a TPU pod")
    return None


def _from_submitit(environment: Mapping[str, str]) -> Place | None:
    """Returns the place of a task of `--cluster=local`."""
    count = _number(environment, "SUBMITIT_LOCAL_NTASKS")
    if count == 1:
        return None
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        raise ValueError("JAX_COORDINATOR_ADDRESS is missing; expected HOST:PORT.")
    index = _number(environment, "SUBMITIT_LOCAL_GLOBALID")
    shares = _share(environment, index, count)
    return Place("--cluster=local", address, count, index, shares)


def _from_slurm(environment: Mapping[str, str]) -> Place | None:
    """Returns the place of a task of a job step, None if it is the only one."""
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    if count == 1:
        return None
    nodes = environment["SLURM_STEP_NODELIST"]
    job = _number(environment, "SLURM_JOB_ID")
    step = int(environment.get("SLURM_STEP_ID", "0"))
    address = f"{first_host(nodes)}:{_FIRST_PORT + (job + step) % _PORTS}"
    # "4(x2)" or "4,3": tasks of each node; the first suffices, as nodes are alike.
    on_node = int(re.split(r"\D", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0])
    local = _number(environment, "SLURM_LOCALID")
    shares = _share(environment, local, on_node)
    if "SLURM_GPUS_PER_TASK" in environment:
        shares = ()  # SLURM shows each task its own devices only.
    index = _number(environment, "SLURM_PROCID")
    return Place(f"SLURM (nodes {nodes})", address, count, index, shares)


def first_host(nodes: str) -> str:
    """Returns the first name of a SLURM list of nodes.

    >>> first_host("gpu[003-007,12]-ib,cpu1"), first_host("a1,b[2-3]")
    ('gpu003-ib', 'a1')
    """
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    assert found is not None
    return "".join(part or "" for part in found.groups())


def _share(environment: Mapping[str, str], index: int, tasks: int) -> tuple[int, ...]:
    """Returns which of the visible GPUs of a machine are those of one of its tasks."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    count = len(visible.split(",")) if visible else tasks
    if tasks == 1 or count == 1:
        return ()
    if count % tasks:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}; expected a multiple of the {tasks} "
            "processes of the machine."
        )
    each = count // tasks
    return tuple(range(index * each, (index + 1) * each))


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "nothing")
    if not value.isdecimal():
        raise ValueError(f"{name} is {value}; expected a number from the launcher.")
    return int(value)


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
        local_device_ids=list(place.local_devices),
        initialization_timeout=2 * seconds,
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS.value,
    )
    watchdog.cancel()
