"""A real SLURM of two nodes on this machine: its daemons on loopback, all undone after.

Needs root and Debian's packages `slurm-wlm` and `munge`. Ports and node names belong to
the process that starts it, so that two may run side by side.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

PROGRAMS = "slurmctld slurmd munged sbatch srun scontrol scancel sinfo squeue".split()
HOSTS = Path("/etc/hosts")


def why_not() -> str | None:
    """Returns why SLURM cannot be started here; None if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "only root can start SLURM's daemons"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Path]:
    """Starts SLURM and yields the path of its configuration, for SLURM_CONF.

    Args:
      folder: takes state and logs; nothing else on the machine is left changed.
    """
    nodes = [f"loopback{os.getpid()}n{number}" for number in (1, 2)]
    for name in ("state", "log"):
        (folder / name).mkdir(parents=True)
    path = folder / "slurm.conf"
    path.write_text(configuration(folder, nodes))
    with contextlib.ExitStack() as stack:
        _begin_munge(stack, folder)
        _name_hosts(stack, nodes)
        stack.enter_context(mock.patch.dict(os.environ, SLURM_CONF=str(path)))
        _daemon(stack, folder, "slurmctld", "-D")
        for node in nodes:
            _daemon(stack, folder, "slurmd", "-D", "-N", node)
        stack.callback(_end_jobs)  # before their daemons
        _wait(lambda: _output("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", folder)
        yield path


def configuration(folder: Path, nodes: list[str]) -> str:
    """Returns the `slurm.conf`; a requeued job waits seconds and not two minutes."""
    host = socket.gethostname().split(".")[0]
    from processes import free_port  # not by those who start no SLURM

    control, *ports = (free_port() for _ in range(3))
    lines = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4"
        for node, port in zip(nodes, ports, strict=True)
    ]
    return f"""
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=5
SchedulerParameters=sched_interval=1,batch_sched_delay=1
MpiDefault=none
{os.linesep.join(lines)}
PartitionName=main Nodes={",".join(nodes)} Default=YES MaxTime=INFINITE State=UP
"""


def _begin_munge(stack: contextlib.ExitStack, folder: Path) -> None:
    """Starts the authentication daemon unless the machine runs one."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return
    run = Path("/run/munge")
    if not run.exists():
        run.mkdir()
        stack.callback(shutil.rmtree, run)
    shutil.chown(run, "munge", "munge")
    user = {"user": "munge", "group": "munge", "extra_groups": []}
    _daemon(stack, folder, "munged", "--foreground", "--force", **user)
    _wait(lambda: _output("munge", "-n").startswith("MUNGE"), folder)


def _name_hosts(stack: contextlib.ExitStack, nodes: list[str]) -> None:
    """Gives the nodes an address: jax looks the first one up."""
    line = f"127.0.0.1 {' '.join(nodes)}\n"

    def undo() -> None:
        HOSTS.write_text(HOSTS.read_text().replace(line, ""))

    stack.callback(undo)
    text = HOSTS.read_text()
    HOSTS.write_text(text + ("" if text.endswith("\n") else "\n") + line)


def _daemon(
    stack: contextlib.ExitStack, folder: Path, name: str, *words: str, **user: object
) -> None:
    log = stack.enter_context((folder / "log" / f"{name}.out").open("ab"))
    program = shutil.which(name, path=_path())
    process = subprocess.Popen(
        [program, *words], stdout=log, stderr=log, start_new_session=True, **user
    )

    def end() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def _end_jobs() -> None:
    jobs = _output("squeue", "-h", "-o", "%A").split()
    if jobs:
        subprocess.run(["scancel", *jobs])
    deadline = time.monotonic() + 30
    while _output("squeue", "-h", "-o", "%A") and time.monotonic() < deadline:
        time.sleep(0.5)


def _wait(condition: object, folder: Path) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        if time.monotonic() > deadline:
            logs = [log.read_text()[-2000:] for log in (folder / "log").iterdir()]
            raise RuntimeError("SLURM does not come up:\n" + "\n".join(logs))
        time.sleep(0.5)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
