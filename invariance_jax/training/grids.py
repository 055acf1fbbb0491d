"""Checks of the grids of the experiments: shifts, shares of labels, steps.

What depends on the data set is checked if the experiment that reads it is asked for.
"""

import math
from typing import Any

import numpy as np

from invariance_jax.training.checks import are_numbers, check_choice, is_asked, require
from invariance_jax.transforms import laws, shifts, spirograph

_SHIFTS = "evaluation.shifts"
_FRACTIONS = "evaluation.label_fractions"
_EXPERIMENTS = "evaluation.experiments"

_HOW = ("move", "widen", "strength")
_WHAT = (*spirograph.PARAMETERS, *shifts.GROUPS)

# Negative, these would make no image.
_ABOVE_0 = ("b", "sigma")


def check(values: dict[str, Any]) -> None:
    """Checks what holds for every data set.

    Args:
      values: dotted key -> value; the tuples of numbers are finite and not negative.

    Raises:
      ValueError: that names the key, if a grid is malformed or out of range.
    """
    steps = values["evaluation.linearization_steps"]
    shares = all(0 < step <= 1 for step in steps)
    require(shares, "evaluation.linearization_steps", steps, "shares in (0, 1]")
    fractions = values[_FRACTIONS]
    ordered = list(fractions) == sorted({*fractions})
    ordered = ordered and 0 < fractions[0] and fractions[-1] <= 1
    require(ordered, _FRACTIONS, fractions, "increasing shares in (0, 1]")
    rows = values[_SHIFTS]
    require(isinstance(rows, tuple | list), _SHIFTS, rows, "a tuple of rows")
    for row in rows:
        _check_row(row)


def _check_row(row: Any) -> None:
    valid = isinstance(row, tuple | list) and len(row) == 3
    valid = valid and isinstance(row[2], tuple | list) and len(row[2]) > 0
    valid = (
        valid and are_numbers(row[2], len(row[2])) and all(map(math.isfinite, row[2]))
    )
    require(valid, _SHIFTS, row, "(what, how, numbers) in each row")
    what, how, grid = row
    check_choice(_SHIFTS, how, _HOW)
    if how == "strength":
        check_choice(_SHIFTS, what, ("color",))
        least, most = 0.0, laws.MAX_STRENGTH
        inside = all(least <= strength <= most for strength in grid)
        require(inside, _SHIFTS, row, f"strengths from 0 to {most}")
    else:
        check_choice(_SHIFTS, what, _WHAT)
    if how == "widen":
        positive = all(factor >= 0 for factor in grid)
        require(positive, _SHIFTS, row, "factors of 0 or more to widen by")


def check_laws(values: dict[str, Any], bounds: np.ndarray) -> None:
    """Checks the shifts of Spirograph's nuisance.

    Args:
      values: dotted key -> value, of the right types.
      bounds: `[10, 2]`, the laws of all parameters, before the shift.

    Raises:
      ValueError: that names the key, if a row shifts what is no nuisance, or so far
        that there is no image.
    """
    if not is_asked("shift", values[_EXPERIMENTS]):
        return
    targets = values["data.targets"]
    for what, how, grid in values[_SHIFTS]:
        row = what, how, grid
        require(how != "strength", _SHIFTS, row, '"move" or "widen" of Spirograph')
        for name in shifts.GROUPS.get(what, (what,)):
            free = name not in targets
            require(free, _SHIFTS, row, f"a nuisance parameter: {name} is a target")
            low, high = bounds[spirograph.PARAMETERS.index(name)]
            for value in grid if name in _ABOVE_0 else ():
                moved = low + value
                widened = (low + high) / 2 - value * (high - low) / 2
                positive = (moved if how == "move" else widened) > 0
                require(positive, _SHIFTS, row, f"laws of {name} that stay above 0")


def check_strengths(values: dict[str, Any]) -> None:
    """Checks the shifts of images.

    Args:
      values: dotted key -> value, of the right types.

    Raises:
      ValueError: that names the key, if a row shifts another thing than the jitter.
    """
    for row in values[_SHIFTS] if is_asked("shift", values[_EXPERIMENTS]) else ():
        colors = row[1] == "strength"
        require(colors, _SHIFTS, row, '("color", "strength", numbers) of images')


def check_classes(
    values: dict[str, Any], *, num_examples: int, num_classes: int
) -> None:
    """Checks that the smallest share of the labels can reach every class.

    Of n examples of a class it takes the nearest whole number to its share, which is
    0 below half an example.

    Args:
      values: dotted key -> value, of the right types.
      num_examples: of the training split.
      num_classes: of the set.

    Raises:
      ValueError: that names the key, if it cannot; a set whose classes differ in size
        may still leave one out.
    """
    if not is_asked("label_fraction", values[_EXPERIMENTS]):
        return
    count = min(num_examples, values["evaluation.train_examples"] or num_examples)
    count = values["evaluation.label_fraction"] * count
    least = num_classes / 2 / count
    fractions = values[_FRACTIONS]
    expected = f"{least:.3g} at least, for an example of each of {num_classes} classes"
    require(fractions[0] >= least, _FRACTIONS, fractions, expected)
