"""The recorded commands of a run, and commands that repeat one of its experiments."""

import shlex

from invariance_jax.report.read import Run

_KEY = "config.evaluation.experiments"
_REPLACED = ("mode", "out", _KEY, "cluster", "sweep_run")
"""Flags of a recorded command that the command of an experiment leaves out."""


def of_run(run: Run) -> list[str]:
    """Returns the recorded commands of training and evaluation, one if they agree."""
    recorded = [run.saved["command"], run.results["command"]]
    return list(dict.fromkeys(_readable(shlex.split(command)) for command in recorded))


def of_experiment(run: Run, experiment: str) -> str:
    """Returns a command that measures one experiment alone."""
    measured = run.results["experiments"].get(experiment) or {}
    recorded = [measured.get("command"), run.saved["command"], run.results["command"]]
    commands = [shlex.split(command) for command in recorded if command]
    # A command without --config cannot select experiments: the others come first.
    commands.sort(key=lambda words: "--config" not in [w.split("=")[0] for w in words])
    kept, words = [], iter(commands[0])
    for word in words:
        name, equals, _ = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in _REPLACED:
            kept.append(word)
        elif not equals:
            next(words, None)  # the value of this flag
    return _readable([*kept, "--mode=evaluate", f"--{_KEY}={experiment}"])


def _readable(words: list[str]) -> str:
    """Returns words as a shell command; a word with single quotes is in double quotes.

    >>> print(_readable(["python", "--workdir", "my runs/a", "--targets=('m', 'b')"]))
    python --workdir 'my runs/a' "--targets=('m', 'b')"
    """
    quoted = []
    for word in words:
        is_safe = "'" in word and not {*'"$`\\!'} & {*word}
        quoted.append(f'"{word}"' if is_safe else shlex.quote(word))
    return " ".join(quoted)
