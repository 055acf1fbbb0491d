"""The experiments of the paper, and further ones, on a trained encoder.

Each experiment is a module of this folder with `run(context) -> ExperimentResult`. The
config key `evaluation.experiments` selects them by the names of their modules. It also
accepts a user's own function, as MODULE:FUNCTION; README.md has an example.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import jax.numpy as jnp
import numpy as np

from invariance_jax.experiments.context import Context
from invariance_jax.runs.results import ExperimentResult, Row, wanted
from invariance_jax.runtime.preemption import Preempted
from invariance_jax.settings import Settings, plugins, schema
from invariance_jax.tasks import Task

__all__ = ["EXPERIMENTS", "Context", "ExperimentResult", "Row"]

Experiment = Callable[[Context], ExperimentResult]

EXPERIMENTS: dict[str, Experiment] = {
    name: importlib.import_module(f"{__name__}.{name}").run
    for name in schema.EXPERIMENTS
}

_KEY = "evaluation.experiments"


def load(task: Task) -> dict[str, Experiment]:
    """Returns name -> function of the experiments that a run requests."""
    names = wanted(task)
    for name in filter(plugins.is_own, names):
        plugins.check_call(_KEY, name)
    return {name: EXPERIMENTS.get(name) or plugins.load(_KEY, name) for name in names}


def sources(experiments: Iterable[str], settings: Settings) -> dict[str, str]:
    """Returns name -> hashes of the user's own code, also of parts; "" if none."""
    parts = "".join(plugins.sources(settings).values())
    return {
        name: parts + (plugins.source(_KEY, name) if plugins.is_own(name) else "")
        for name in experiments
    }


def measure(name: str, experiment: Experiment, context: Context) -> ExperimentResult:
    """Returns the checked result of an experiment, with numbers of Python's types."""
    own = plugins.is_own(name)
    with plugins.blaming(_KEY, name, Preempted) if own else nullcontext():
        result = experiment(context)
    where = f"{_KEY} has {name!r}, which returned"
    if not (isinstance(result, ExperimentResult) and isinstance(result.rows, Sequence)):
        raise ValueError(f"{where} {result!r}; expected an ExperimentResult of rows.")
    rows = [_checked(row, where) for row in result.rows]
    counts = Counter((row.metric, frozenset(row.at.items())) for row in rows)
    for (metric, at), count in counts.items():
        if own and count > 1:  # two rows of `evaluation.shifts` may share a point
            raise ValueError(
                f"{where} {count} rows {metric!r} at {dict(at)}; expected one."
            )
    return ExperimentResult(rows)


def _checked(row: Row, where: str) -> Row:
    try:
        metric, value, at = row
        number = np.asarray(value)
        is_real = jnp.isdtype(number.dtype, ("bool", "integral", "real floating"))
        at = {k: v.item() if isinstance(v, np.generic) else v for k, v in at.items()}
        has_names = all(isinstance(name, str) for name in (metric, *at)) and metric
        has_values = all(type(v) in (str, int, float) for v in at.values())
        if has_names and has_values and is_real:
            return Row(metric, number.astype(np.float64)[()].item(), at)
    except (AttributeError, TypeError, ValueError):
        pass
    raise ValueError(
        f"{where} the row {row!r}; expected Row(metric, value, at): a name, a number, "
        "and a dictionary from names to strings or numbers."
    )
