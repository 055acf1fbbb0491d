"""A training step with the invariance penalty, in its forms, against one without.

All are the step of a real run: draws, views, encoder, head, losses, gradient and
optimizer, mapped over the local devices. The penalty adds a forward-mode derivative to
the first of two views, and its share of the backward pass: of six parts (two views
forward, and twice that backward) three more, hence 1.5. One step in n needs an n-th of
that; two averaged views on each side need twelve parts.
"""

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from invariance_jax.benchmarks.runs import Training, describe
from invariance_jax.benchmarks.timing import Options, Row, compare
from invariance_jax.settings import change

FORMS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"penalty.weight": 0.0},
    "penalized": {},
    "penalty in every second step": {"penalty.every_steps": 2},
    "penalty in every fourth step": {"penalty.every_steps": 4},
    "consistency": {"penalty.kind": "consistency", "penalty.directions": 1},
    "two views averaged": {"penalty.weight": 0.0, "average_views": 2},
}
"""Name -> what it changes in the configuration."""


def run(options: Options, *, num_steps: int = 4) -> Iterator[Row]:
    """Yields each form of the step over the plain one.

    Args:
      options: see there.
      num_steps: of one call; a multiple of 4, as some have the penalty in every fourth.

    Raises:
      ValueError: if the configuration has no penalty.
      FloatingPointError: if a loss stops being finite.
    """
    weight = options.config.penalty.weight
    if not weight > 0:
        raise ValueError(
            f"penalty.weight is {weight!r}; expected a positive number, since the "
            "penalized step is what is timed."
        )
    runs = {}
    for name, changes in FORMS.items():
        config = copy.deepcopy(options.config)
        for key, value in changes.items():
            change(config, key, value)
        runs[name] = Training(config)
    calls = (functools.partial(each, num_steps) for each in runs.values())
    times = dict(zip(runs, options.timer(*calls) / num_steps, strict=True))
    plain = times.pop("plain")
    for name, seconds in times.items():
        runs[name].check_finite()
        note = "target: at most 1.5" if name == "penalized" else ""
        yield compare(describe(options.config), (name, seconds), ("plain", plain), note)
