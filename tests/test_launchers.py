"""What launched a process: flags, SLURM, Open MPI, a TPU pod, this machine."""

import pytest

from invariance_jax.runtime.launchers import (
    Launcher,
    first_host,
    from_environment,
    from_flags,
)

SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
}
EIGHT = ",".join(map(str, range(8)))


def test_flags_give_a_launcher():
    launcher = from_flags("10.0.0.1:99", 4, 3)
    assert launcher == Launcher("the flags", "10.0.0.1:99", 4, 3, ())
    assert from_flags(None, None, None) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("a:1", None, 0), "--num_processes is missing; found --coordinator_address="),
        ((None, 2, 0), "--coordinator_address is missing"),
        (("a:1", 2, None), "--process_id is missing"),
    ],
)
def test_a_missing_flag_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        from_flags(*given)


FLAGS = ("--coordinator_address", "--num_processes", "--process_id")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.mark.parametrize(
    ("values", "bad", "expected"),
    [
        (("a", 2, 0), 0, "'a'; expected HOST:PORT"),
        (("a:1", 0, 0), 1, "0; expected 1 or more"),
        (("a:1", 2, 2), 2, "2; expected 0 to 1"),
    ],
)
def test_a_bad_value_is_named_by_its_flag_or_variable(values, bad, expected):
    with pytest.raises(ValueError, match=f"{FLAGS[bad]} is {expected}"):
        from_flags(*values)
    with pytest.raises(ValueError, match=f"{VARIABLES[bad]} is {expected}"):
        from_environment(dict(zip(VARIABLES, map(str, values), strict=True)))


OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}
# Open MPI 4 tells JAX the host of process 0, Open MPI 5 does not.
OPEN_MPI_4 = OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:3"}
HERE = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9"}
NODE_0 = f"gpu07:{61_440 + 5002 % 4096}"
POD, MPI_ALONE = Launcher("a TPU pod"), Launcher("Open MPI")


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        # One process meets nobody.
        ({}, None),
        # A batch script or a login shell, outside of `srun`.
        ({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "16"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        (SLURM, Launcher("SLURM (nodes gpu[07-08])", NODE_0, 16, 11, (3,))),
        (OPEN_MPI_4, Launcher("Open MPI", local_devices=(1,))),
        (OPEN_MPI_4 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, MPI_ALONE),
        (OPEN_MPI_4 | {"CUDA_VISIBLE_DEVICES": "5"}, MPI_ALONE),
        (OPEN_MPI | ADDRESS, Launcher("Open MPI", "127.0.0.1:9", 4, 3, (1,))),
        (SLURM | OPEN_MPI_4, Launcher("Open MPI", local_devices=(1,))),
        (HERE | ADDRESS, Launcher("JAX_NUM_PROCESSES", "127.0.0.1:9", 2, 1)),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, POD),
        ({"TPU_NAME": "mine"}, POD),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a:1"}, POD),
    ],
)
def test_the_environment_tells_the_launcher(environment, launcher):
    assert from_environment(environment) == launcher


@pytest.mark.parametrize("environment", [OPEN_MPI, HERE])
def test_an_address_that_is_missing_is_named(environment):
    with pytest.raises(ValueError, match="JAX_COORDINATOR_ADDRESS is missing"):
        from_environment(environment)


def on_node(tasks, node, local):
    """All GPUs are visible to this task of a node."""
    place = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node}
    return place | {"SLURM_LOCALID": local, "CUDA_VISIBLE_DEVICES": EIGHT}


@pytest.mark.parametrize(
    ("changes", "devices"),
    [
        # One process per GPU: all are visible, none, or each sees its own.
        ({"CUDA_VISIBLE_DEVICES": EIGHT}, (3,)),
        ({}, (3,)),
        ({"CUDA_VISIBLE_DEVICES": "3"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "6,7", "SLURM_GPUS_PER_TASK": "2"}, ()),
        # GPUs bound to the task, of a node with more: no share of a share.
        ({"CUDA_VISIBLE_DEVICES": "4,5", "SLURM_GPUS_ON_NODE": "8"}, ()),
        ({"CUDA_VISIBLE_DEVICES": EIGHT, "SLURM_GPUS_ON_NODE": "8"}, (3,)),
        (on_node("1(x2)", "0", "0"), ()),
        (on_node("2(x2)", "0", "1"), (4, 5, 6, 7)),
        # Nodes may have different numbers of tasks.
        (on_node("8(x2),4", "0", "3"), (3,)),
        (on_node("8(x2),4", "2", "3"), (6, 7)),
    ],
)
def test_the_tasks_of_a_node_share_its_gpus(changes, devices):
    assert from_environment(SLURM | changes).local_devices == devices


def test_gpus_that_cannot_be_shared_are_named():
    environment = SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"}
    with pytest.raises(ValueError, match=r"CUDA_VISIBLE_DEVICES is '0,1,2'; expected"):
        from_environment(environment)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SLURM_STEP_ID", "batch"),
        ("SLURM_NODEID", "one"),
        ("SLURM_STEP_TASKS_PER_NODE", ""),
        ("SLURM_STEP_TASKS_PER_NODE", "0"),
        ("SLURM_PROCID", None),
    ],
)
def test_a_variable_of_slurm_that_is_no_number_is_named(name, value):
    environment = {k: v for k, v in (SLURM | {name: value}).items() if v is not None}
    with pytest.raises(ValueError, match=f"{name} is .*; expected a"):
        from_environment(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node001", "node001"),
        ("node[001-015],host2", "node001"),
        ("gpu[003-007,12]-ib,cpu1", "gpu003-ib"),
        ("login,gpu[1-2]", "login"),
        ("r[2,5]n[03-04,7]x[1],cpu[1-2]", "r2n03x1"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("127.0.0.1:9", True),
        ("localhost:9", True),
        ("[::1]:9", True),
        ("10.0.0.1:9", False),
        ("localhost.example:9", False),
        (None, False),
    ],
)
def test_the_coordinator_listens_only_where_it_is_met(address, bound):
    assert Launcher("", address).bind_address == (address if bound else None)
