"""How a program starts and ends: signals, streams, flags and the user's files."""

import os
import re
import signal
import subprocess
import sys
import time

import processes
import pytest
from processes import CONFIG, SMALL

ENDLESS = ["launch.py", CONFIG, *SMALL, "--mode=train", "--config.steps=1000000"]
ENDLESS += ["--config.logging.probe_every_steps=0"]


def test_an_interrupted_run_is_saved_and_says_how_to_go_on(tmp_path):
    (process,) = processes.start([*ENDLESS, f"--workdir={tmp_path}"])
    processes.wait_for_rows(tmp_path)
    process.send_signal(signal.SIGINT)
    (status,), (said,) = processes.finish([process], seconds=100)
    assert status == 130
    (step,) = re.findall(r"^SIGINT: .* is saved at step (\d+); the same", said, re.M)
    assert (tmp_path / "checkpoints" / step).is_dir()
    assert "Traceback" not in said


def test_an_interrupt_before_there_is_anything_to_save_says_nothing_of_pythons():
    (process,) = processes.start(["launch.py", "--mode=keys"])
    time.sleep(0.5)  # while modules are imported
    process.send_signal(signal.SIGINT)
    (status,), (said,) = processes.finish([process], seconds=100)
    assert status in (-signal.SIGINT, 130)
    assert len(said.splitlines()) <= 1


LATE = """
import os, runpy, sys
from invariance_jax.runtime.preemption import SIGNALS

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        for number in SIGNALS:
            kill(pid, number)

late, sys.argv = Late(), ["launch.py", "--mode=keys", "temperature"]
runpy.run_path("launch.py", run_name="__main__")
"""


def test_a_signal_while_python_shuts_down_does_not_change_the_status():
    (process,) = processes.start(["-c", LATE])
    (status,), (said,) = processes.finish([process], seconds=100)
    assert status == 0 and said.startswith("temperature: float")


def test_a_terminal_that_is_gone_does_not_end_a_run_nor_change_its_status(tmp_path):
    """As `2>&1 | head -1` does, and then a preemption."""
    (process,) = processes.start([*ENDLESS, f"--workdir={tmp_path}"])
    process.stdout.readline()
    process.stdout.close()
    processes.wait_for_rows(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 75
    assert any((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("redirection", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_streams_that_cannot_be_written_do_not_matter(redirection):
    command = f"{sys.executable} launch.py --mode=keys {redirection}"
    environment = processes.environment(1)
    assert subprocess.run(command, shell=True, env=environment).returncode == 0


def test_a_character_that_the_terminal_lacks_is_replaced():
    code = "from invariance_jax.runtime import terminal; terminal.forgive()\n"
    code += "print('R²', flush=True)"
    environment = processes.environment(1, PYTHONIOENCODING="ascii")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("R?\n", "")


def test_a_file_gets_lines_and_no_carriage_returns():
    code = (
        "import time\n"
        "from invariance_jax.runtime import terminal\n"
        "terminal._SECONDS = 0.5\n"
        "bar = terminal.progress('training', 30, unit='step', initial=10)\n"
        "for n in range(20):\n"
        "    bar.set_postfix({'loss': n}, refresh=False)\n"
        "    bar.update(1)\n"
        "    time.sleep(0.1)\n"
        "bar.close()\n"
    )
    (output,) = processes.run(["-c", code])
    lines = output.splitlines()
    assert "\r" not in output and 4 <= len(lines) <= 8
    assert all(re.match(r"training: \d", line) for line in lines)
    assert "30/30" in lines[-1] and "loss=19" in lines[-1]


def error_of(*arguments, **environment):
    """Returns the only line that a program says before it fails."""
    done = processes.launch(*arguments, **environment)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1 / 0", "mine.py, line 2: ZeroDivisionError: division by"),
        ("None", "get_config() returns None; expected the configuration"),
    ],
)
def test_whatever_a_configuration_does_is_one_line(tmp_path, value, expected):
    (tmp_path / "mine.py").write_text(f"def get_config():\n    return {value}")
    line = error_of("--config=~/mine.py", "--workdir=none", HOME=str(tmp_path))
    assert line.startswith("error: ") and expected in line


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    for flag in (f"--workdir={tmp_path / 'run'}", "--mode=check"):
        line = error_of(CONFIG, flag, JAX_PLATFORMS="cuda")
        assert line.startswith("error: JAX_PLATFORMS is 'cuda', and jax finds no such")
    assert not any(tmp_path.iterdir())


def test_flags_may_be_in_a_file_beside_others_and_the_home_is_found(tmp_path):
    flags = tmp_path / "flags"
    flags.write_text(f"{CONFIG}\n--workdir=~/run\n--config.penalty.weight=0.5\n")
    arguments = [f"--flagfile={flags}", "--config.steps=7", "--mode=train"]
    arguments += ["--cluster=slurm", "--dry_run", "--slurm_folder=~/logs"]
    done = processes.launch(*arguments, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"#SBATCH --output={tmp_path}/logs/%j_0_log.out\n" in done.stdout
    assert "--config.penalty.weight=0.5 --config.steps=7" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["flags"]
