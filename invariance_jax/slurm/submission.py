"""Submission of runs to SLURM, or to several processes on this machine.

    python launch.py --config=... --workdir=DIR --cluster=slurm --gpus_per_node=8

The job runs `launch.py` with the remaining flags. SLURM's script and logs and the
pickled job are in `DIR/slurm`. Everything is checked before anything is written.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from invariance_jax.data.sets import find, folder_of_sets
from invariance_jax.runs.tracking import check_tracking
from invariance_jax.runs.workdir import check, check_same_run
from invariance_jax.runtime.files import absolute, is_url, private_folder
from invariance_jax.runtime.preemption import STOPPED
from invariance_jax.settings import Settings, check_devices, resolve
from invariance_jax.slurm import local
from invariance_jax.slurm.job import Launch
from invariance_jax.slurm.options import Request, own_arguments
from invariance_jax.sweeps.plan import Plan, Run, begin


def submit(request: Request, plan: Plan, mode: str) -> int:
    """Submits runs (several as a job array), or makes them here; returns the status."""
    folder = _folder(request, plan.workdir)
    for run in plan.runs:
        _check_run(request, run, mode)
    if not plan.runs:
        print("every run is finished: nothing is submitted")
        return 0
    launches = [_launch(run) for run in plan.runs]
    if request.cluster == "local":
        if not request.dry_run:
            begin(plan)
        status = _run_here(request, launches, folder)
        _print_report_command(plan)
        return status
    executor = make_executor(request, folder, Path(plan.workdir).absolute().name)
    script = _script(executor, len(launches))
    if request.dry_run:
        print(script)
        for number, launch in enumerate(launches):
            print(f"# array task {number}:" if len(launches) > 1 else "# runs:")
            print(f"#   {_command(launch)}")
        return 0
    _check_slurm(script)
    begin(plan)
    private_folder(folder)  # the nodes execute the pickles in it
    jobs = executor.submit_array(launches)
    print(f"submitted job {jobs[0].job_id.split('_')[0]}: {len(jobs)} run(s)")
    for run, job in zip(plan.runs, jobs, strict=True):
        print(f"{run.workdir}: logs {local.log_pattern(folder, job.job_id)}")
    _print_report_command(plan)
    return 0


def _print_report_command(plan: Plan) -> None:
    if plan.record is not None:
        words = ["python", "launch.py", "--mode=report", f"--workdir={plan.workdir}"]
        words += [f"--out={out}"] if (out := flags.FLAGS["out"].value) else []
        print(f"compare the finished runs: {shlex.join(words)}")


def _run_here(request: Request, launches: Sequence[Launch], folder: Path) -> int:
    """Makes runs; returns the status of a stop by signal, else of the first failure."""
    failed = 0
    for launch in launches:
        if request.dry_run:
            print(f"# {request.tasks_per_node} process(es): {_command(launch)}")
            continue
        status = local.run(launch, folder, request)
        if status in STOPPED:
            return status
        failed = failed or status
    return failed


def _check_run(request: Request, run: Run, mode: str) -> None:
    """Makes the checks of the run's start, so that errors appear before the queue."""
    settings = resolve(run.config)
    _check_prepared(settings)
    if mode in ("all", "train"):
        check(settings, run.workdir)
        check_tracking(settings)
        if request.gpus_per_node is not None:
            check_devices(settings, request.nodes * request.gpus_per_node)
    elif settings.encoder.weights is None:
        check_same_run(settings, run.workdir)


def _check_prepared(settings: Settings) -> None:
    """Checks that an image set is prepared, so that no job has to download it."""
    name, given = settings.data.name, settings.data.data_dir
    root = folder_of_sets(given)
    if name != "spirograph" and find(root, name) is None:
        words = ["python", "-m", "invariance_jax.data", name]
        words += [f"--data_dir={given}"] if given else []
        raise ValueError(
            f"data.name is {name!r}, which is not prepared in {root}; expected a "
            f"prepared set: {shlex.join(words)}"
        )


def _folder(request: Request, workdir: str) -> Path:
    if request.folder is None and is_url(workdir):
        raise ValueError(
            "--slurm_folder is missing; expected a folder for scripts and logs, which "
            f"cannot be in {workdir}"
        )
    folder = Path(absolute(request.folder or Path(workdir) / "slurm"))
    if not str(folder).isprintable():  # it is part of lines of the script
        raise ValueError(f"{str(folder)!r} is no folder for logs; expected one line")
    return folder


def _launch(run: Run) -> Launch:
    arguments = own_arguments(flags.FLAGS.read_flags_from_files(sys.argv[1:]))
    if run.name is not None:
        arguments.append(f"--sweep_run={run.name}")
    return Launch(os.path.abspath(sys.argv[0]), tuple(arguments), os.getcwd())


def _command(launch: Launch) -> str:
    words = shlex.join(["python", launch.program, *launch.arguments])
    return f"cd {shlex.quote(launch.folder)} && {words}"


def make_executor(request: Request, folder: Path, name: str) -> Any:
    """Returns submitit's executor for SLURM, with the parameters of the request."""
    # Without this, importing submitit would close every log handler of this program.
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError as error:
        raise ValueError(
            "--cluster=slurm needs submitit, which is not installed; "
            "python -m pip install 'invariance_jax[slurm]'"
        ) from error

    class Executor(SlurmExecutor):
        """An executor that can also write scripts where SLURM is not installed."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    options = request.options
    # A failing task ends the others. `srun` does not inherit --cpus-per-task, and must
    # not truncate the logs of a requeued job.
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    if "cpus_per_task" in options:
        srun.append(f"--cpus-per-task={options['cpus_per_task']}")
    # The job imports the same package: the one next to launch.py, or the installed one.
    path = shlex.quote(os.path.dirname(os.path.abspath(sys.argv[0])))
    setup = [f'export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"', *request.setup]
    executor = Executor(folder)
    executor.update_parameters(
        job_name=re.sub(r"[^\w.=+-]", "_", name),
        nodes=request.nodes,
        ntasks_per_node=request.tasks_per_node,
        gpus_per_node=request.gpus_per_node,
        time=request.minutes,
        signal_delay_s=request.signal_delay,
        array_parallelism=request.parallelism or sys.maxsize,
        wckey=None,
        setup=setup,
        srun_args=srun,
        additional_parameters={"requeue": True} | options,
    )
    return executor


def _script(executor: Any, count: int) -> str:
    from submitit.slurm.slurm import _make_sbatch_string

    return _make_sbatch_string(
        command=executor._submitit_command_str,
        folder=executor.folder,
        map_count=count if count > 1 else None,
        **executor.parameters,
    )


def _check_slurm(script: str) -> None:
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ValueError(
            "--cluster=slurm needs sbatch and srun, which this machine does not have; "
            "--dry_run shows the script"
        )
    command = ["sbatch", "--test-only"]
    done = subprocess.run(command, input=script, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"SLURM refuses the job: {done.stderr.strip()}")
