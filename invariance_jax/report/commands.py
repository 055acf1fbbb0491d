"""The commands that made a run, and those that make one of its experiments again."""

import re
import shlex

from invariance_jax.report.read import Run

_KEY = "--config.evaluation.experiments"
_OTHERS = ("--mode=", "--out=", f"{_KEY}=", "--cluster=", "--sweep_run=")


def quoted(command: str) -> str:
    """Returns a recorded command as a shell takes it.

    What is recorded are the arguments with spaces between them.

    >>> quoted("launch.py --config.evaluation.experiments=('shift', 'averaging')")
    'python launch.py "--config.evaluation.experiments=(\\'shift\\', \\'averaging\\')"'
    """
    first, *flags = _split(command)
    words = first.split()
    if words and words[0].endswith(".py"):
        words = ["python", *words]
    return " ".join([*words, *map(_quote, flags)])


def _split(command: str) -> list[str]:
    return re.split(r"\s+(?=--)", command.strip())


def _quote(flag: str) -> str:
    if "'" in flag and not set('"$`\\!') & set(flag):
        return f'"{flag}"'
    return shlex.quote(flag)


def of_run(run: Run) -> list[str]:
    """Returns the recorded commands of a run: that of its training, of its evaluation.

    One if they are the same, none if none is recorded.
    """
    found = [run.command, run.results.command]
    return list(dict.fromkeys(quoted(command) for command in found if command))


def of_experiment(run: Run, experiment: str) -> str | None:
    """Returns the command that measures one experiment alone, None if not known.

    It is made of the one that measured it, or of that of the run.

    Args:
      run: the trained run that it belongs to.
      experiment: its name.
    """
    measured = run.results.experiments.get(experiment)
    found = [measured.command] if measured else []
    found += [run.command, run.results.command]
    # Without a configuration a command cannot change which experiments are measured.
    found.sort(key=lambda command: "--config=" not in (command or ""))
    recorded = next((command for command in found if command), None)
    if not recorded:
        return None
    first, *flags = _split(recorded)
    kept = [flag for flag in flags if not flag.startswith(_OTHERS)]
    return quoted(" ".join([first, *kept, "--mode=evaluate", f"{_KEY}={experiment}"]))
