"""A training step with the invariance penalty, in its forms, against one without.

All are the step of a real run, made from its configuration: draws, views, encoder,
head, losses, gradient and optimizer, mapped over the local devices. The penalty adds a
forward-mode derivative to the first of two views, and its share of the backward pass:
of six parts (two views forward, and twice that backward) three more, hence 1.5. One
example or step in n needs an n-th of that; two averaged views on each side need twelve
parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.experiments.points import make_points
from invariance_jax.sweeps.grid import change
from invariance_jax.training import parallel
from invariance_jax.training.components import make_examples, make_transformation
from invariance_jax.training.settings import check_devices, resolve
from invariance_jax.training.start import initial_state, step_and_draw


def run(
    config: ConfigDict, *, num_steps: int, repeats: int, min_seconds: float
) -> list[Comparison]:
    """Returns the time of penalized steps against that of a plain one.

    Args:
      config: a configuration with the keys of `configs/base.py` and a positive
        `penalty.weight`; the plain step is that of the same one with the weight 0.
      num_steps: steps that one call to the devices runs; a multiple of 4, as some
        have the penalty in every fourth.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Returns:
      A comparison for each run of the studies "savings" and "baselines", in seconds per
      step, the penalty of the configuration first.

    Raises:
      ValueError: if the configuration is invalid, does not fit the devices or has no
        penalty.
      FloatingPointError: if a loss stops being finite.
    """
    if not config.penalty.weight > 0:
        raise ValueError(
            f"penalty.weight is {config.penalty.weight!r}; expected a positive number, "
            "since the penalized step is what is timed."
        )
    forms = _forms(config)
    calls = [make_steps(form, num_steps) for form in forms.values()]
    times = alternate(*calls, repeats=repeats, min_seconds=min_seconds)
    for call in calls:
        check_finite(call())
    plain, *others = times / num_steps
    _, penalized, *names = forms
    results = [
        Comparison("step", name, "no penalty", seconds, plain, False)
        for name, seconds in zip((penalized, *names), others, strict=True)
    ]
    results[0] = replace(results[0], expected="at most 1.5")
    return results


def _forms(config: ConfigDict) -> dict[str, ConfigDict]:
    """Returns the runs that two studies compare, that without a penalty first."""
    settings = resolve(config)
    parameters = make_transformation(settings).names
    forms: dict[str, ConfigDict] = {}
    for study in ("savings", "baselines"):
        for name, changes in make_points(study, settings, parameters).items():
            if name == "penalty":
                continue  # "every example and step"
            forms[name] = config.copy_and_resolve_references()
            for key, value in changes.items():
                change(forms[name], key, value)
    return forms


def make_steps(
    config: ConfigDict,
    num_steps: int,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[], Any]:
    """Returns a function that trains on for some steps.

    Args:
      config: a configuration with the keys of `configs/base.py`.
      num_steps: steps of one call.
      devices: over which the batch is spread; None: all that there are.

    Returns:
      `() -> metrics`, the sums over the steps, on the devices; it starts from the
      initial state of the run and remembers where it was.

    Raises:
      ValueError: if the configuration is invalid or does not fit the devices.
    """
    settings, devices = resolve(config), devices or parallel.all_devices()
    check_devices(settings, len(devices))
    x = make_examples(settings, "train").x
    train = parallel.make_train(*step_and_draw(settings), devices)
    key = jax.random.key(settings.seed)
    data = parallel.replicate(x, devices)
    state = parallel.replicate(initial_state(settings), devices)

    def steps() -> Any:
        nonlocal state
        state, metrics = train(state, key, data, num_steps)
        return metrics

    return steps


def check_finite(metrics: Any) -> None:
    """Checks that the loss of the steps that were timed is a number.

    Args:
      metrics: the result of a call that `make_steps` returned.

    Raises:
      FloatingPointError: if it is not.
    """
    total = float(parallel.one_replica(metrics)["loss"][0])
    if not np.isfinite(total):
        raise FloatingPointError(
            "the loss is not finite, and the time of such steps means nothing; lower "
            "optimizer.learning_rate or penalty.weight."
        )
