"""What `settings` and `images` ask of a value of the configuration."""

import difflib
import re
from collections.abc import Sequence
from typing import Any


def require(condition: bool, key: str, value: Any, expected: str) -> None:
    """Raises an error that names the key unless the condition holds.

    Args:
      condition: what must be true.
      key: the dotted key.
      value: what was found.
      expected: what was expected, in words.

    Raises:
      ValueError: unless the condition holds.
    """
    if not condition:
        raise ValueError(f"{key} is {value!r}; expected {expected}.")


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Checks that a value is one of a few names.

    Args:
      key: the dotted key.
      value: what was found.
      choices: what is allowed.

    Raises:
      ValueError: if it is not; it names the closest.
    """
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(
            f"{key} is {value!r}; expected one of {', '.join(map(repr, choices))}{hint}"
        )


def check_choices(
    key: str, values: Any, choices: tuple[str, ...], *, least: int
) -> None:
    """Checks that a value is a tuple of different names, each one of a few.

    Args:
      key: the dotted key.
      values: what was found.
      choices: what is allowed.
      least: how many names there must be.

    Raises:
      ValueError: if it is not.
    """
    require(isinstance(values, tuple | list), key, values, "a tuple of names")
    for value in values:
        check_choice(key, value, choices)
    require(len({*values}) == len(values), key, values, "each name once")
    require(len(values) >= least, key, values, "one name or more")


def check_steps(key: str, value: str, steps: int) -> tuple[int, ...]:
    """Returns the ends of a range of training steps, () of an empty text.

    Args:
      key: the dotted key.
      value: what was found, "a:b".
      steps: of the whole run.

    Returns:
      `(a, b)`, finished steps before the first and after the last one.

    Raises:
      ValueError: unless 0 <= a < b <= steps.
    """
    if not value:
        return ()
    found = re.fullmatch(r"(\d+):(\d+)", value)
    ends = tuple(map(int, found.groups())) if found else (0, 0)
    valid = ends[0] < ends[1] <= steps
    require(valid, key, value, f"two increasing steps a:b, b at most {steps}")
    return ends


def is_asked(name: str, experiments: Sequence[str]) -> bool:
    """Returns whether `evaluation.experiments` asks for an experiment or study.

    Args:
      name: of the experiment or study.
      experiments: the value of the key.
    """
    return name in experiments or "all" in experiments


def is_integer(value: Any) -> bool:
    """Returns whether a value is a whole number and not a truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Returns whether a value is a Python number."""
    return is_integer(value) or isinstance(value, float)


def are_numbers(value: Any, count: int) -> bool:
    """Returns whether a value is a sequence of that many numbers."""
    sequence = isinstance(value, tuple | list) and len(value) == count
    return sequence and all(is_number(entry) for entry in value)


def is_increasing(value: Any) -> bool:
    """Returns whether a value is an increasing sequence of positive integers."""
    increasing = isinstance(value, tuple | list) and len(value) > 0
    increasing = increasing and all(is_integer(m) and m > 0 for m in value)
    return increasing and list(value) == sorted(set(value))
