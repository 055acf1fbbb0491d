"""The commands that made a run, and those that make one of its experiments again."""

import shlex
from collections.abc import Sequence

from invariance_jax.report.read import Run

_KEY = "config.evaluation.experiments"
_OTHERS = ("mode", "out", _KEY, "cluster", "sweep_run")


def of_run(run: Run) -> list[str]:
    """Returns the recorded commands of training and evaluation, one if they are one."""
    found = filter(None, [run.saved.get("command"), run.results.get("command")])
    return list(dict.fromkeys(_join(shlex.split(command)) for command in found))


def of_experiment(run: Run, experiment: str) -> str | None:
    """Returns the command that measures one experiment alone, None if not known."""
    measured = run.results["experiments"].get(experiment) or {}
    found = [measured.get("command"), run.saved.get("command")]
    recorded = [shlex.split(c) for c in (*found, run.results.get("command")) if c]
    # Without a configuration a command cannot change which experiments are measured.
    recorded.sort(key=lambda words: "--config" not in [w.split("=")[0] for w in words])
    kept, skips = [], False
    for word in recorded[0] if recorded else ():
        name, equals, _ = word.lstrip("-").partition("=")
        if word.startswith("-") and name in _OTHERS:
            skips = not equals  # the value is the next word
        elif skips:
            skips = False
        else:
            kept.append(word)
    return _join([*kept, "--mode=evaluate", f"--{_KEY}={experiment}"]) if kept else None


def _join(words: Sequence[str]) -> str:
    """Returns words as a command of a shell.

    >>> _join(["launch.py", "--workdir", "my runs/a"])
    "python launch.py --workdir 'my runs/a'"
    """
    program = ["python"] if words[0].endswith(".py") else []
    return " ".join(map(_quote, [*program, *words]))


def _quote(word: str) -> str:
    plain = "'" in word and not set('"$`\\!') & set(word)
    return f'"{word}"' if plain else shlex.quote(word)
