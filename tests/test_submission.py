"""Submission: flags, scripts, the job's requeue, and several tasks on this machine."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time

import processes
import pytest
from absl.testing import flagsaver
from processes import CONFIG, SMALL, launch
from tiny import tiny_config

from invariance_jax.runs.workdir import claim
from invariance_jax.runtime.preemption import INTERRUPTED, PREEMPTED
from invariance_jax.settings import resolve
from invariance_jax.slurm import job, local, options, submission
from invariance_jax.sweeps.plan import Plan, Run


def read(mode="all", **given):
    with flagsaver.as_parsed(**given):
        return options.read(mode)


def test_without_a_cluster_nothing_is_asked_for():
    assert read() is None


def test_there_is_a_task_per_gpu_or_one_per_node():
    assert read(cluster="slurm").tasks_per_node == 1
    assert read(cluster="slurm", gpus_per_node="8").tasks_per_node == 8
    one = read(cluster="slurm", gpus_per_node="8", tasks_per_node="1")
    assert (one.gpus_per_node, one.tasks_per_node) == (8, 1)
    assert read(cluster="slurm", tasks_per_node="2").tasks_per_node == 2


LIMITS = "90=90 30:00=30 30:01=31 2:30:00=150 1-0=1440 2-3:04=3064 2-3:04:05=3065"


@pytest.mark.parametrize("limit", LIMITS.split())
def test_a_time_limit_is_read_as_slurm_does(limit):
    text, _, minutes = limit.partition("=")
    assert read(cluster="slurm", time=text).minutes == int(minutes)


def test_other_options_are_handed_to_slurm():
    given = "exclude=n[1-3],n7,exclusive=,mail-type=END"
    found = read(cluster="slurm", mem="64G", slurm_options=given).options
    expected = {"exclude": "n[1-3],n7", "exclusive": True, "mail_type": "END"}
    assert found == {"mem": "64G"} | expected


SLURM = {"cluster": "slurm"}
OTHER = "slurm_options"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"nodes": "2"}, "--nodes needs --cluster=slurm or --cluster=local"),
        ({"dry_run": "true"}, "--dry_run needs --cluster"),
        ({"cluster": "local", "mem": "1"}, "--mem needs --cluster=slurm, found --clus"),
        ({"cluster": "local", "nodes": "2"}, "--nodes is 2; expected 1 for --cluster"),
        (SLURM | {"gpus_per_node": "8", "tasks_per_node": "3"}, " 3; expected 1 or 8"),
        (SLURM | {"time": "2h"}, "--time is '2h'; expected minutes, M:S, H:M:S, D-H"),
        (SLURM | {"time": "0"}, "--time is '0'; expected"),
        (SLURM | {"time": "3"}, "--signal_delay is 120 and --time=3 is 180 seconds; "),
        (SLURM | {"mem": "64 GB"}, "--mem is '64 GB'; expected"),
        (SLURM | {"partition": "a\n#B"}, "--partition has 'a\\n#B'; expected one line"),
        (SLURM | {OTHER: "exclusive"}, "--slurm_options has 'exclusive'; expected"),
        (SLURM | {OTHER: "ntasks-per-node=2"}, "ntasks_per_node; use --tasks_per_node"),
        (SLURM | {OTHER: "a b=2"}, "--slurm_options has 'a b'; expected a name"),
        (SLURM | {OTHER: "comment=a\nid"}, "has 'a\\nid'; expected one line of text"),
        (SLURM | {"mode": "report"}, "--mode=report runs on this machine; leave --clu"),
    ],
)
def test_flags_that_the_cluster_would_not_take_are_named(given, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        read(**given)


def test_a_job_gets_the_other_flags_only():
    words = (
        "--config=c.py --cluster=slurm --nodes 2 --workdir runs/a -gpus_per_node=8 "
        "--dry-run --mode train --nodry_run --config.seed=3 --setup a --time=1-0"
    )
    kept = "--config=c.py --workdir runs/a --mode train --config.seed=3"
    assert options.own_arguments(words.split()) == kept.split()


def submit(workdir, changes=None, *, mode="all", **given):
    plan = Plan(str(workdir), [Run(None, tiny_config(changes), str(workdir))], None)
    with flagsaver.as_parsed(**given):
        return submission.submit(options.read(mode), plan, mode)


def script(capsys, workdir, **given):
    assert submit(workdir, cluster="slurm", dry_run="true", **given) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("given", [{}, {"slurm_folder": "/tmp/a\n#SBATCH --wrap=id"}])
def test_a_folder_is_no_line_of_the_script(capsys, tmp_path, given):
    workdir = tmp_path / ("run" if given else "run\n#SBATCH --wrap=id")
    with pytest.raises(ValueError, match="is no folder for logs; expected one line"):
        script(capsys, workdir, **given)


def test_a_script_has_what_was_asked_for(capsys, tmp_path):
    found = script(
        capsys,
        tmp_path / "run",
        nodes="2",
        gpus_per_node="2",
        cpus_per_task="6",
        partition="main",
        time="1-0",
        setup=["module load cuda"],
        slurm_options="exclude=a,b",
    )
    words = (
        "nodes=2 gpus-per-node=2 ntasks-per-node=2 cpus-per-task=6 partition=main "
        "time=1440 signal=USR2@120 requeue open-mode=append exclude=a,b job-name=run"
    )
    lines = [f"#SBATCH --{word}" for word in words.split()] + ["module load cuda"]
    for line in (*lines, f"#SBATCH --output={tmp_path}/run/slurm/%j_0_log.out"):
        assert f"{line}\n" in found
    (srun,) = re.findall("^srun .*", found, re.MULTILINE)
    for word in ("--kill-on-bad-exit=1", "--open-mode=append", "--cpus-per-task=6"):
        assert word in srun


def test_what_was_not_asked_for_is_left_to_slurm(capsys, tmp_path):
    found = script(capsys, tmp_path / "run")
    for name in ("time", "gpus", "partition", "mem", "array", "wckey", "cpus"):
        assert f"--{name}" not in found


def test_a_submission_uses_no_device(tmp_path):
    code = (
        "import runpy, sys\n"
        "from invariance_jax.runtime import devices\n"
        f"sys.argv = ['launch.py', {CONFIG!r}, '--workdir={tmp_path}/run',\n"
        "            '--cluster=slurm', '--dry_run']\n"
        "try:\n"
        "    runpy.run_path('launch.py', run_name='__main__')\n"
        "finally:\n"
        "    print('used:', devices.have_started())\n"
    )
    (output,) = processes.run(["-c", code])
    assert "#SBATCH" in output
    assert output.endswith("used: False\n")


def test_an_object_store_needs_a_folder_for_logs():
    with pytest.raises(ValueError, match="--slurm_folder is missing; expected a"):
        submit("gs://bucket/run", cluster="slurm", dry_run="true")


IMAGES = {"data.name": "cifar10", "data.data_dir": "none", "data.image_size": None}
SIX = {"gpus_per_node": "3", "nodes": "2"}


@pytest.mark.parametrize(
    ("given", "changes", "expected"),
    [
        (SIX, {}, "is 16; expected a multiple of the 6"),
        ({}, {"temperature": -1.0}, "temperature is -1.0; expected"),
        ({}, {"temperature": 0.3}, "holds a run with temperature = 0.2, found 0.3"),
        ({"mode": "evaluate"}, {}, "holds no run"),
        ({}, IMAGES, "'cifar10', which is not prepared in .*python -m invariance_jax"),
    ],
)
def test_what_a_job_would_refuse_is_refused_before_it_waits(
    tmp_path, given, changes, expected
):
    if "holds a run" in expected:
        claim(resolve(tiny_config()), tmp_path)
    with pytest.raises(ValueError, match=expected):
        submit(tmp_path, changes, cluster="slurm", dry_run="true", **given)


def test_submitit_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit.slurm.slurm", None)
    expected = r"needs submitit.*pip install 'invariance_jax\[slurm\]'"
    with pytest.raises(ValueError, match=expected):
        submit(tmp_path, cluster="slurm")
    assert not any(tmp_path.iterdir())


def test_what_is_unpickled_on_the_nodes_is_only_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "_check_slurm", lambda script: None)
    monkeypatch.setattr("shutil.which", lambda name: name)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm").chmod(0o777)
    with pytest.raises(ValueError, match="has the mode 777: others may write to it"):
        submit(tmp_path, cluster="slurm")
    assert not any((tmp_path / "slurm").iterdir())


def test_slurm_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="needs sbatch and srun"):
        submit(tmp_path / "run", cluster="slurm")
    assert not any(tmp_path.iterdir())


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Puts an scontrol in place that tells a state; returns what it was asked."""
    asked = tmp_path / "asked"

    def make(state, refuses=False):
        program = tmp_path / "scontrol"
        program.write_text(
            "#!/bin/bash\n"
            f'echo "$@" >> {asked}\n'
            f'[ "$1" = show ] && echo "JobId=7 JobState={state} Requeue=1"\n'
            f'[ "$1" = show ] || exit {int(refuses)}\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        return asked

    return make


def test_a_running_job_is_queued_again(scontrol):
    asked = scontrol("RUNNING")
    job.requeue("7_2")
    assert asked.read_text().splitlines() == ["show job 7_2 --oneliner", "requeue 7_2"]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "TIMEOUT", "PENDING"])
def test_a_job_that_does_not_run_is_left_alone(scontrol, capfd, state):
    asked = scontrol(state)
    job.requeue("7")
    assert asked.read_text().splitlines() == ["show job 7 --oneliner"]
    assert f"job 7 is {state}: not queued again" in capfd.readouterr().err


def test_a_refused_requeue_says_what_to_do(scontrol, capfd):
    scontrol("RUNNING", refuses=True)
    with pytest.raises(SystemExit) as caught:
        job.requeue("7")
    assert caught.value.code == PREEMPTED
    assert "submit the same command again to continue" in capfd.readouterr().err


@pytest.mark.parametrize(("task", "queued"), [("0", ["requeue 7_2"]), ("1", [])])
def test_the_first_task_of_a_stopped_job_queues_it_again(
    scontrol, tmp_path, task, queued
):
    asked, program = scontrol("RUNNING"), tmp_path / "run.py"
    asked.touch()
    program.write_text(f"raise SystemExit({PREEMPTED})")
    code = f"from {job.__name__} import Launch\nLaunch({str(program)!r}, (), '.')()"
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    place = {"SLURM_JOB_ID": "9", "SLURM_PROCID": task}
    done = processes.python("-c", code, **array, **place)
    assert done.returncode == 0, done.stderr
    assert asked.read_text().splitlines()[1:] == queued


BEGIN = """
import os, signal, sys, time
task = int(os.environ.get("JAX_PROCESS_ID", 0))
with open("starts", "a") as file:
    print(task, os.environ.get("JAX_COORDINATOR_ADDRESS"), file=file)
"""


def run_here(folder, code, *, tasks="2", **given):
    program = folder / "program.py"
    program.write_text(BEGIN + code)
    made = job.Launch(str(program), ("--a", "b c"), str(folder))
    request = read(cluster="local", tasks_per_node=tasks, **given)
    return local.run(made, folder / "slurm", request)


def starts(folder):
    path = folder / "starts"
    return [line.split() for line in path.read_text().splitlines()]


def test_processes_run_to_their_end_at_one_address(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    code = "assert sys.argv[1:] == ['--a', 'b c'] and 'SLURM_JOB_ID' not in os.environ"
    assert run_here(tmp_path, code) == 0
    (one, first), (other, second) = sorted(starts(tmp_path))
    assert (one, other) == ("0", "1")
    assert first == second
    assert re.fullmatch(r"127\.0\.0\.1:\d+", first)


@pytest.mark.parametrize(
    ("visible", "gpus", "shares"),
    [(None, 4, ["0,1,2,3"]), (None, 2, ["0", "1"]), ("4,GPU-5,6", 2, ["4", "GPU-5"])],
)
def test_processes_share_the_visible_gpus(tmp_path, monkeypatch, visible, gpus, shares):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    code = "print(os.environ['CUDA_VISIBLE_DEVICES'], file=open(f'gpus{task}', 'w'))"
    tasks = str(len(shares))
    assert run_here(tmp_path, code, tasks=tasks, gpus_per_node=str(gpus)) == 0
    found = [(tmp_path / f"gpus{n}").read_text() for n in range(len(shares))]
    assert found == [f"{share}\n" for share in shares]


@pytest.mark.parametrize(("visible", "most"), [("4,GPU-5,6", 3), ("", 0)])
def test_gpus_that_are_not_visible_are_refused(tmp_path, monkeypatch, visible, most):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ValueError, match=f"is '{visible}'; expected .* {most}"):
        run_here(tmp_path, "", tasks="1", gpus_per_node="4")


def test_setup_lines_come_first(tmp_path):
    code = "assert os.environ['A'] == 'b c'"
    assert run_here(tmp_path, code, tasks="1", setup=["export A='b c'"]) == 0
    assert run_here(tmp_path, code, tasks="1", setup=["false"]) == 1


def test_a_process_that_fails_ends_the_others_and_is_told(tmp_path, capfd):
    started = time.monotonic()
    code = "if task: print('more\\nerror: é', file=sys.stderr); sys.exit(3)\n"
    assert run_here(tmp_path, code + "time.sleep(60)") == 3
    assert time.monotonic() - started < 30
    (log,) = (tmp_path / "slurm").glob("*_1_log.err")
    job = log.name.removesuffix("_1_log.err")
    expected = f"job {job}: process 1 ended with status 3, see {log}: error: é\n"
    assert capfd.readouterr().err == expected


def test_a_process_that_says_nothing_is_told_too(tmp_path, capfd):
    code = "os.kill(os.getpid(), signal.SIGKILL)"
    assert run_here(tmp_path, code, tasks="1") == 137
    expected = r"process 0 ended with status 137, see \S+_0_log\.err\n$"
    assert re.search(expected, capfd.readouterr().err)


@pytest.mark.parametrize("status", [PREEMPTED, INTERRUPTED])
def test_a_process_that_was_stopped_has_not_failed(tmp_path, capfd, status):
    assert run_here(tmp_path, f"sys.exit({status})", tasks="1") == status
    assert re.search(r"process 0 was stopped, see \S+\n$", capfd.readouterr().err)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2", "SIGINT"])
def test_a_signal_is_passed_on_once_and_the_job_ends(tmp_path, name):
    status = INTERRUPTED if name == "SIGINT" else PREEMPTED
    code = (
        "def save(*_):\n"
        "    print(file=open(f'saved{task}', 'a'))\n"
        f"    time.sleep(1)\n    sys.exit({status})\n"
        f"signal.signal(signal.{name}, save)\n"
        "open(f'ready{task}', 'w').close()\n"
        "time.sleep(60)\n"
    )
    here = (
        "import sys\n"
        "from pathlib import Path\n"
        "import pytest, test_submission\n"
        "test_submission.options.flags.FLAGS.mark_as_parsed()\n"
        f"sys.exit(test_submission.run_here(Path({str(tmp_path)!r}), {code!r}))"
    )
    command, environment = [sys.executable, "-c", here], processes.environment(1)
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 60
    try:
        while len([*tmp_path.glob("ready?")]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # As a terminal does it: to all that are in the foreground.
        os.killpg(process.pid, getattr(signal, name))
        assert process.wait(60) == status
    finally:
        process.kill()
        process.wait()
    for task in (0, 1):
        assert (tmp_path / f"saved{task}").read_text() == "\n"
    assert len(starts(tmp_path)) == 2


def test_a_run_over_two_processes_of_this_machine(tmp_path):
    workdir = tmp_path / "run"
    arguments = [CONFIG, f"--workdir={workdir}", *SMALL, "--mode=train"]
    done = launch(*arguments, "--cluster=local", "--tasks_per_node=2")
    assert done.returncode == 0, done.stderr
    (log,) = (workdir / "slurm").glob("*_0_log.err")
    assert "processes: 2; devices: 2 (cpu)" in log.read_text()
    content = json.loads((workdir / "config.json").read_text())
    assert "--cluster" not in content["command"]
    assert (workdir / "checkpoints" / "10").is_dir()


def test_a_sweep_is_shown_as_an_array(tmp_path):
    workdir = tmp_path / "sweep"
    arguments = [CONFIG, "--config.seeds=3", f"--workdir={workdir}"]
    arguments += ["--sweep=configs/sweeps/penalty_weight.py", "--dry-run"]
    done = launch(*arguments, "--cluster=slurm")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --array=0-14%15\n" in done.stdout
    assert re.search(r"--sweep_run=\S+/seed_2\n", done.stdout)
    done = launch(*arguments, "--cluster=local", f"--out={tmp_path}/report")
    assert done.stdout.endswith(f"--workdir={workdir} --out={tmp_path}/report\n")
    assert not any(tmp_path.iterdir())
