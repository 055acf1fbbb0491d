"""The launcher of the processes of a run, and the address at which they connect.

A run over several processes is detected from the environment variables of SLURM's
`srun`, Open MPI, a TPU pod or `--cluster=local`, or is given by flags. One process per
device and one per machine both work.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Ports that no service uses by default; each SLURM job step uses one of them.
_FIRST_PORT, _PORTS = 61_440, 4096

_LOOPBACK = ("127.", "localhost:", "[::1]:")


@dataclass(frozen=True)
class Launcher:
    """How a process connects to the others; JAX detects what is None."""

    name: str  # shown to the user
    address: str | None = None  # HOST:PORT of process 0
    count: int | None = None  # number of processes
    index: int | None = None  # index of this process
    local_devices: tuple[int, ...] = ()  # indices of its visible GPUs; (): all of them

    @property
    def bind_address(self) -> str | None:
        """Address that process 0 binds to, if it is a loopback; None: JAX's default."""
        is_loopback = self.address is not None and self.address.startswith(_LOOPBACK)
        return self.address if is_loopback else None


def from_flags(
    address: str | None, count: int | None, index: int | None
) -> Launcher | None:
    """Returns the launcher that the three flags describe, None if none is given."""
    values = {
        "--coordinator_address": address,
        "--num_processes": count,
        "--process_id": index,
    }
    given = ", ".join(f"{k}={v}" for k, v in values.items() if v is not None)
    if not given:
        return None
    if address is None or count is None or index is None:
        missing = next(name for name, value in values.items() if value is None)
        raise ValueError(f"{missing} is missing; found {given}, expected all three.")
    return _checked("the flags", [*values], address, count, index)


def _checked(
    launcher: str, names: Sequence[str], address: str, count: int, index: int
) -> Launcher:
    """Returns a launcher; ValueError if a value, which has one of the names, is bad."""
    if not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"{names[0]} is {address!r}; expected HOST:PORT.")
    if count < 1:
        raise ValueError(f"{names[1]} is {count}; expected 1 or more.")
    if not 0 <= index < count:
        raise ValueError(f"{names[2]} is {index}; expected 0 to {count - 1}.")
    return Launcher(launcher, address, count, index)


def from_environment(environment: Mapping[str, str]) -> Launcher | None:
    """Returns the launcher that has set environment variables, None if none has."""
    if "JAX_NUM_PROCESSES" in environment:
        address = _address(environment, "expected HOST:PORT.")
        of_jax = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        count, index = (_number(environment, name) for name in of_jax[1:])
        return _checked("JAX_NUM_PROCESSES", of_jax, address, count, index)
    # Tested before SLURM, which may have started the daemons of Open MPI.
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return _open_mpi(environment)
    if "SLURM_STEP_NODELIST" in environment:
        return _slurm(environment)
    has_hosts = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    names = {"TPU_NAME", "MEGASCALE_COORDINATOR_ADDRESS"} & {*environment}
    tpus = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    has_tpu = tpus and importlib.util.find_spec("libtpu") is not None
    return Launcher("a TPU pod") if has_hosts or has_tpu or names else None


def _open_mpi(environment: Mapping[str, str]) -> Launcher | None:
    count = _number(environment, "OMPI_COMM_WORLD_SIZE")
    if count == 1:
        return None
    local_index = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK")
    local_count = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE")
    devices = _gpus(environment, local_index, local_count)
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return Launcher("Open MPI", local_devices=devices)
    address = _address(
        environment,
        "this Open MPI does not report the host of process 0: expected HOST:PORT, "
        "mpirun -x JAX_COORDINATOR_ADDRESS=...",
    )
    index = _number(environment, "OMPI_COMM_WORLD_RANK")
    return Launcher("Open MPI", address, count, index, devices)


def _slurm(environment: Mapping[str, str]) -> Launcher | None:
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    if count == 1:
        return None
    nodes = environment["SLURM_STEP_NODELIST"]
    job = _number(environment, "SLURM_JOB_ID")
    step = _number(environment, "SLURM_STEP_ID", "0")
    address = f"{first_host(nodes)}:{_FIRST_PORT + (job + step) % _PORTS}"
    # With --gpus-per-task each task sees only its own GPUs.
    devices: tuple[int, ...] = ()
    if "SLURM_GPUS_PER_TASK" not in environment:
        local_index = _number(environment, "SLURM_LOCALID")
        local_count = _tasks_on_node(environment)
        devices = _gpus(environment, local_index, local_count)
    index = _number(environment, "SLURM_PROCID")
    return Launcher(f"SLURM (nodes {nodes})", address, count, index, devices)


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Returns the number of tasks of this node, from a list such as "8(x2),4"."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(count)] * int(times or 1)
    node = _number(environment, "SLURM_NODEID", "0")
    if not counts or 0 in counts:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE is {tasks!r}; expected a list like '8(x2),4'."
        )
    return counts[min(node, len(counts) - 1)]


def first_host(nodes: str) -> str:
    """Returns the first host name of a SLURM node list: gpu3-a of "gpu[3-7]-a,b"."""
    first = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first.group())


def _gpus(environment: Mapping[str, str], index: int, tasks: int) -> tuple[int, ...]:
    """Returns the indices of the visible GPUs that a task of a node uses; (): all."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    count = len(visible.split(",")) if visible else tasks
    on_node = environment.get("SLURM_GPUS_ON_NODE", "0")
    # If fewer are visible than the node has, SLURM has chosen them for this task.
    is_chosen = on_node.isdecimal() and count < int(on_node)
    if tasks == 1 or count == 1 or is_chosen:
        return ()
    if count % tasks:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}; expected a number of devices that "
            f"the {tasks} processes of this machine can share equally."
        )
    per_task = count // tasks
    return tuple(range(index * per_task, (index + 1) * per_task))


def _address(environment: Mapping[str, str], expected: str) -> str:
    address = environment.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        raise ValueError(f"JAX_COORDINATOR_ADDRESS is missing; {expected}")
    return address


def _number(environment: Mapping[str, str], name: str, default: str = "missing") -> int:
    value = environment.get(name, default)
    if not value.isdecimal():
        raise ValueError(f"{name} is {value}; expected a number from the launcher.")
    return int(value)
