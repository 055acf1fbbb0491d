"""The commands that made a run, and those that make one of its experiments again."""

import shlex

from invariance_jax.report.read import Run

_KEY = "config.evaluation.experiments"
_OTHERS = ("mode", "out", _KEY, "cluster", "sweep_run")


def of_run(run: Run) -> list[str]:
    """Returns the recorded commands of training and evaluation, one if they are one."""
    found = [run.saved["command"], run.results["command"]]
    return list(dict.fromkeys(_readable(shlex.split(command)) for command in found))


def of_experiment(run: Run, experiment: str) -> str:
    """Returns the command that measures one experiment alone."""
    measured = run.results["experiments"].get(experiment) or {}
    found = [measured.get("command"), run.saved["command"], run.results["command"]]
    recorded = [shlex.split(command) for command in found if command]
    # Without a configuration a command cannot change which experiments are measured.
    recorded.sort(key=lambda words: "--config" not in [w.split("=")[0] for w in words])
    kept, skips = [], False
    for word in recorded[0]:
        name, equals, _ = word.lstrip("-").partition("=")
        if word.startswith("-") and name in _OTHERS:
            skips = not equals  # the value is the next word
        elif skips:
            skips = False
        else:
            kept.append(word)
    return _readable([*kept, "--mode=evaluate", f"--{_KEY}={experiment}"])


def _readable(words: list[str]) -> str:
    """Returns words as a command of a shell, tuples of texts in double quotes.

    >>> print(_readable(["python", "--workdir", "my runs/a", "--targets=('m', 'b')"]))
    python --workdir 'my runs/a' "--targets=('m', 'b')"
    """
    quoted = []
    for word in words:
        plain = "'" in word and not {*'"$`\\!'} & {*word}
        quoted.append(f'"{word}"' if plain else shlex.quote(word))
    return " ".join(quoted)
