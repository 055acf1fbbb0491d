"""The commands that made a run, and those that make one of its experiments again."""

import shlex
from collections.abc import Sequence

from invariance_jax.report.read import Run

_KEY = "config.evaluation.experiments"
_OTHERS = ("mode", "out", _KEY, "cluster", "sweep_run")


def of_run(run: Run) -> list[str]:
    """Returns the recorded commands of a run: that of its training, of its evaluation.

    One if they are the same, none if none is recorded.
    """
    found = [run.saved.get("command"), run.results.get("command")]
    return list(dict.fromkeys(_join(_split(str(c))) for c in found if c))


def of_experiment(run: Run, experiment: str) -> str | None:
    """Returns the command that measures one experiment alone, None if not known.

    It is made of the one that measured it, or of that of the run.
    """
    measured = run.results["experiments"].get(experiment) or {}
    found = [measured.get("command"), run.saved.get("command")]
    recorded = [_split(str(c)) for c in (*found, run.results.get("command")) if c]
    # Without a configuration a command cannot change which experiments are measured.
    recorded.sort(
        key=lambda words: not any(w.split("=")[0] == "--config" for w in words)
    )
    if not recorded:
        return None
    kept, skips = [], False
    for word in recorded[0]:
        name, equals, _ = word.lstrip("-").partition("=")
        if word.startswith("-") and name in _OTHERS:
            skips = not equals  # the value is the next word
        elif skips:
            skips = False
        else:
            kept.append(word)
    return _join([*kept, "--mode=evaluate", f"--{_KEY}={experiment}"])


def _split(command: str) -> list[str]:
    """Returns the words of a command, which was recorded by `shlex.join`."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _join(words: Sequence[str]) -> str:
    """Returns words as a command of a shell.

    >>> _join(["launch.py", "--workdir", "my runs/a"])
    "python launch.py --workdir 'my runs/a'"
    """
    program = ["python"] if words and words[0].endswith(".py") else []
    return " ".join(map(_quote, [*program, *words]))


def _quote(word: str) -> str:
    plain = "'" in word and not set('"$`\\!') & set(word)
    return f'"{word}"' if plain else shlex.quote(word)
