"""What launched the processes of a run, and where they meet.

A run over several processes is found in the environment that SLURM's `srun`, Open MPI,
a TPU pod or `--cluster=local` leaves, or given by flags. One process per device and one
per machine both work.
"""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# The ports that no service has by default, from which SLURM jobs take theirs.
_FIRST_PORT, _PORTS = 61_440, 4096

_LOOPBACK = ("127.", "localhost:", "[::1]:")


@dataclass(frozen=True)
class Launcher:
    """What a process needs to know to meet the others."""

    name: str  # in words
    address: str | None = None  # HOST:PORT of process 0; None: JAX finds these three
    count: int | None = None  # of processes
    index: int | None = None  # of this process
    local_devices: tuple[int, ...] = ()  # its own of the machine; (): all that it sees

    @property
    def bind_address(self) -> str | None:
        """Where process 0 listens: at the loopback device only, if it is met there."""
        found = self.address is not None and self.address.startswith(_LOOPBACK)
        return self.address if found else None


def from_flags(
    address: str | None, count: int | None, index: int | None
) -> Launcher | None:
    """Returns what the three flags of a launcher give, None if they give nothing."""
    given = {
        "--coordinator_address": address,
        "--num_processes": count,
        "--process_id": index,
    }
    found = ", ".join(f"{k}={v}" for k, v in given.items() if v is not None)
    if not found:
        return None
    if address is None or count is None or index is None:
        missing = next(name for name, value in given.items() if value is None)
        raise ValueError(f"{missing} is missing; found {found}, expected all three.")
    if not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"--coordinator_address is {address!r}; expected HOST:PORT.")
    if count < 1:
        raise ValueError(f"--num_processes is {count}; expected 1 or more.")
    if not 0 <= index < count:
        raise ValueError(f"--process_id is {index}; expected 0 to {count - 1}.")
    return Launcher("the flags", address, count, index)


def from_environment(environment: Mapping[str, str]) -> Launcher | None:
    """Returns the launcher that has left its variables, None if there is none."""
    if "JAX_NUM_PROCESSES" in environment:
        address = _address(environment, "expected HOST:PORT.")
        numbers = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        return from_flags(address, *(_number(environment, name) for name in numbers))
    # Before SLURM, which may have started the daemons of Open MPI.
    if "OMPI_COMM_WORLD_SIZE" in environment:
        return _open_mpi(environment)
    if "SLURM_STEP_NODELIST" in environment:
        return _slurm(environment)
    several = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    names = {"TPU_NAME", "MEGASCALE_COORDINATOR_ADDRESS"}
    tpus = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev").glob("vfio/[0-9]*")]
    here = tpus and importlib.util.find_spec("libtpu") is not None
    return Launcher("a TPU pod") if several or here or names & {*environment} else None


def _open_mpi(environment: Mapping[str, str]) -> Launcher | None:
    count = _number(environment, "OMPI_COMM_WORLD_SIZE")
    if count == 1:
        return None
    local = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK")
    on_node = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE")
    shares = _share(environment, local, on_node)
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return Launcher("Open MPI", local_devices=shares)
    address = _address(
        environment,
        "this Open MPI does not tell where process 0 is: expected HOST:PORT, "
        "mpirun -x JAX_COORDINATOR_ADDRESS=...",
    )
    index = _number(environment, "OMPI_COMM_WORLD_RANK")
    return Launcher("Open MPI", address, count, index, shares)


def _slurm(environment: Mapping[str, str]) -> Launcher | None:
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    if count == 1:
        return None
    nodes = environment["SLURM_STEP_NODELIST"]
    job = _number(environment, "SLURM_JOB_ID")
    step = _number(environment, "SLURM_STEP_ID", "0")
    address = f"{first_host(nodes)}:{_FIRST_PORT + (job + step) % _PORTS}"
    # SLURM shows each task its own devices only, or those of the node to all of them.
    shares: tuple[int, ...] = ()
    if "SLURM_GPUS_PER_TASK" not in environment:
        local = _number(environment, "SLURM_LOCALID")
        shares = _share(environment, local, _tasks_on_node(environment))
    index = _number(environment, "SLURM_PROCID")
    return Launcher(f"SLURM (nodes {nodes})", address, count, index, shares)


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """Returns the tasks of this node, from a list such as "8(x2),4"."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks):
        counts += [int(count)] * int(times or 1)
    node = _number(environment, "SLURM_NODEID", "0")
    if not counts or 0 in counts:
        raise ValueError(
            f"SLURM_STEP_TASKS_PER_NODE is {tasks!r}; expected a list as '8(x2),4'."
        )
    return counts[min(node, len(counts) - 1)]


def first_host(nodes: str) -> str:
    """Returns the first name of a SLURM list of nodes.

    >>> first_host("gpu[003-007,12]-ib,cpu1"), first_host("rack[1-2]node[03-04],a1")
    ('gpu003-ib', 'rack1node03')
    """
    found = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    assert found is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", found.group())


def _share(environment: Mapping[str, str], index: int, tasks: int) -> tuple[int, ...]:
    """Returns which of the visible GPUs of a machine are those of one of its tasks."""
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    count = len(visible.split(",")) if visible else tasks
    on_node = environment.get("SLURM_GPUS_ON_NODE", "0")
    bound = on_node.isdecimal() and count < int(on_node)  # to the task, by SLURM
    if tasks == 1 or count == 1 or bound:
        return ()
    if count % tasks:
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}; expected a multiple of the {tasks} "
            "processes of the machine."
        )
    each = count // tasks
    return tuple(range(index * each, (index + 1) * each))


def _address(environment: Mapping[str, str], expected: str) -> str:
    found = environment.get("JAX_COORDINATOR_ADDRESS")
    if found is None:
        raise ValueError(f"JAX_COORDINATOR_ADDRESS is missing; {expected}")
    return found


def _number(environment: Mapping[str, str], name: str, default: str = "nothing") -> int:
    value = environment.get(name, default)
    if not value.isdecimal():
        raise ValueError(f"{name} is {value}; expected a number from the launcher.")
    return int(value)
