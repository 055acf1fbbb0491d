"""Sweeps: a grid over keys of the configuration, each point a run of its own.

    python launch.py --config=... --workdir=DIR --sweep=configs/sweeps/penalty_weight.py

The file has a function `get_sweep()` that returns key -> values; "seed" may be one of
the keys. Every point has a folder in DIR, named after its values and laid out as the
work directory of a run, over several seeds if there are several. `DIR/sweep.json` keeps
the configuration of every point; `sweeps.collect` gathers what is finished.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from invariance_jax.runs.records import chosen as chosen_of
from invariance_jax.runs.workdir import check, one_per_seed
from invariance_jax.runtime.files import write_json
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.sweeps.collect import FORMAT, is_evaluated, read_record
from invariance_jax.sweeps.grid import make_points, read_grid, resolve_point
from invariance_jax.training import keys
from invariance_jax.training.settings import resolve

_SWEEP = flags.DEFINE_string(
    "sweep", None, "File with get_sweep(): key -> values, the grid of a sweep."
)
_ONE = flags.DEFINE_string(
    "sweep_run", None, "The one run of the sweep that is made: its folder in WORKDIR."
)

_log = logging.getLogger(__name__)


class Run(NamedTuple):
    """One run: a point of a sweep with one seed, or what the command line says.

    Attributes:
      name: its folder, relative to that of the sweep; None without a sweep.
      config: its configuration; None is that of the work directory.
      workdir: its work directory.
    """

    name: str | None
    config: ConfigDict | None
    workdir: str


class Plan(NamedTuple):
    """What the command line asks for, checked.

    Attributes:
      workdir: the work directory, for a sweep the parent of the points.
      runs: those that are not finished.
      record: the content of `sweep.json`; None without a sweep, or for one run of it.
    """

    workdir: str
    runs: list[Run]
    record: dict[str, Any] | None


def plan(config: ConfigDict | None, workdir: str, mode: str) -> Plan:
    """Returns the runs that the command line asks for; writes nothing.

    Without `--sweep` the one that the command line names, as it is. Finished are, in
    the modes `all` and `evaluate`, the runs that have these results.

    Args:
      config: the configuration of the command line.
      workdir: its work directory.
      mode: that of `launch.py`.

    Raises:
      ValueError: if the sweep cannot be read, a key or value of it is wrong, or a
        folder holds another run.
    """
    if _SWEEP.value is None:
        if _ONE.value is not None:
            raise ValueError("--sweep_run needs --sweep")
        return Plan(workdir, [Run(None, config, workdir)], None)
    if config is None:
        raise ValueError("--config is missing; --sweep changes its keys")
    grid = read_grid(_SWEEP.value)
    points = make_points(config, grid)
    settings = {name: resolve_point(name, one) for name, one in points.items()}
    if mode in ("all", "evaluate"):
        for name, one in settings.items():
            _check_experiments(name, one)
    parent = epath.Path(workdir)
    _check_parent(parent, grid, settings)
    runs, done = {}, set()
    for name, point in points.items():
        for one, folder in one_per_seed(point, parent / name):
            one_settings, own = resolve(one), str(folder.relative_to(parent))
            check(one_settings, folder)
            runs[own] = Run(own, one, str(folder))
            if mode in ("all", "evaluate") and is_evaluated(one_settings, folder):
                done.add(own)
    record = {"format": FORMAT, "command": " ".join(sys.argv), "grid": grid}
    record["points"] = {name: one.to_dict() for name, one in settings.items()}
    if _ONE.value is not None:
        if _ONE.value not in runs:
            names = ", ".join(runs)
            raise ValueError(f"--sweep_run is {_ONE.value!r}; expected one of {names}")
        runs, record = {_ONE.value: runs[_ONE.value]}, None
    for name in [name for name in runs if name in done]:
        _log.info("%s: finished, skipped", name)
        del runs[name]
    return Plan(workdir, list(runs.values()), record)


def begin(chosen: Plan) -> None:
    """Writes the `sweep.json` of a sweep that is started."""
    if chosen.record is not None:
        epath.Path(chosen.workdir).mkdir(parents=True, exist_ok=True)
        write_json(epath.Path(chosen.workdir) / "sweep.json", chosen.record)


def run_each(chosen: Plan, program: Callable[[ConfigDict | None, str], None]) -> None:
    """Makes the runs one after the other; one that diverges does not stop the others.

    Args:
      chosen: the result of `plan`.
      program: what a run is, of its configuration and work directory.

    Raises:
      FloatingPointError: after the last run, if one of them raised it.
    """
    if is_main_process():
        begin(chosen)
    errors = []
    for number, run in enumerate(chosen.runs):
        if run.name is not None:
            _log.info("%s: run %d of %d", run.name, number + 1, len(chosen.runs))
        try:
            program(run.config, run.workdir)
        except FloatingPointError as error:
            if run.name is None:
                raise
            errors.append(f"{run.name}: {error}")
            _log.error("%s", errors[-1])
    if errors:
        raise FloatingPointError(" ".join(errors))


def _check_experiments(name: str, settings: FrozenConfigDict) -> None:
    """Checks that a point asks for no study, which is a sweep of its own."""
    studies = chosen_of(settings, keys.STUDIES)
    if studies:
        raise ValueError(
            f"{name}: evaluation.experiments is {settings.evaluation.experiments!r}, "
            f"with the study {studies[0]}; expected in a sweep some of "
            f"{', '.join(map(repr, keys.EXPERIMENTS))}."
        )


def _check_parent(
    parent: epath.Path, grid: Mapping[str, Any], points: Mapping[str, FrozenConfigDict]
) -> None:
    """Checks that a folder is free, or that of a sweep over the same keys."""
    if (parent / "sweep.json").exists():
        old = sorted({*read_record(parent)["grid"]} - {"seed"})
        new = sorted({*grid} - {"seed"})
        if old != new:
            raise ValueError(
                f"{parent} holds a sweep over {', '.join(old) or 'seeds'}, found "
                f"{', '.join(new) or 'seeds'}; give another workdir."
            )
    elif (parent / "config.json").exists() and "." not in points:
        raise ValueError(f"{parent} holds a run; a sweep needs another workdir.")
    for name, settings in points.items():
        check(settings, parent / name)
