"""Sweeps: variants of a configuration, each a run of its own.

    python launch.py --config=... --workdir=DIR --sweep=configs/sweeps/penalty_weight.py

The file has a function `get_sweep()` that returns a grid, key -> values ("seed" may be
one of the keys), or named variants, label -> {key: value}. Every variant has a folder
in DIR with the layout of a work directory (over seeds if there are several).
`DIR/sweep.json` keeps the configuration of each variant. `sweeps.collect` gathers the
finished variants, which the report compares to the first one.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from absl import flags
from etils import epath

from invariance_jax.runs.workdir import (
    check,
    check_no_outputs,
    command,
    one_per_seed,
    read_config,
)
from invariance_jax.runtime.files import work_folder, write_json
from invariance_jax.settings import Config, resolve, to_dict
from invariance_jax.sweeps.collect import FORMAT, is_evaluated, read_variants
from invariance_jax.sweeps.variants import Variant, make_variants, read_sweep
from invariance_jax.training.build import build
from invariance_jax.types import Json

_SWEEP = flags.DEFINE_string(
    "sweep", None, "File with get_sweep(): key -> values, or label -> changed keys."
)
_SWEEP_RUN = flags.DEFINE_string(
    "sweep_run", None, "Make only the run of the sweep with this folder in WORKDIR."
)

_log = logging.getLogger(__name__)


class Run(NamedTuple):
    """A variant of a sweep with one seed, or the run of a command without a sweep."""

    name: str | None  # its folder, relative to the sweep's; None: there is no sweep
    config: Config
    workdir: str


class Plan(NamedTuple):
    """The runs of a command line, checked."""

    workdir: str  # for a sweep the parent folder of the variants
    runs: list[Run]  # without those that are finished
    record: Json | None  # content of sweep.json; None: no sweep, or --sweep_run


def plan(config: Config | None, workdir: str, mode: str) -> Plan:
    """Returns the runs of the command line; writes nothing.

    If `config` is None, that of the work directory is used.
    """
    parent = work_folder(workdir)
    if _SWEEP.value is None:
        if _SWEEP_RUN.value is not None:
            raise ValueError("--sweep_run needs --sweep")
        if (parent / "sweep.json").exists() and "." not in read_variants(parent):
            raise ValueError(
                f"{parent} holds a sweep; give its --sweep, or another workdir."
            )
        config = read_config(parent) if config is None else config
        return Plan(str(parent), [Run(None, config, str(parent))], None)
    if config is None:
        raise ValueError("--config is missing; --sweep changes its keys")
    variants = make_variants(config, read_sweep(_SWEEP.value))
    _check_parent(parent, variants)
    runs = {}
    for name, variant in variants.items():
        for seed_config, folder in one_per_seed(variant.config, parent / name):
            run_name = str(folder.relative_to(parent))
            runs[run_name] = Run(run_name, seed_config, str(folder))
    record: Json | None = {
        "format": FORMAT,
        "command": command(),
        "variants": {
            name: {"label": variant.label, "config": to_dict(variant.settings)}
            for name, variant in variants.items()
        },
    }
    if (only := _SWEEP_RUN.value) is not None:
        if only not in runs:
            names = ", ".join(runs)
            raise ValueError(f"--sweep_run is {only!r}; expected one of {names}")
        runs, record = {only: runs[only]}, None
    left = []
    for run in runs.values():
        settings, folder = resolve(run.config), epath.Path(run.workdir)
        check(settings, folder)
        if mode in ("all", "evaluate") and is_evaluated(settings, folder):
            _log.info("%s: finished, skipped", run.name)
        else:
            left.append(run)
    return Plan(str(parent), left, record)


def start(chosen: Plan, *, writes: bool) -> None:
    """Builds the parts of all variants of a sweep, for their errors; then begins it."""
    runs = chosen.runs if chosen.record else []
    # The seeds of a variant, folders in its folder, have the same parts.
    configs = {str(run.name).split("/")[0]: run.config for run in runs}
    for name, config in configs.items():
        try:
            build(resolve(config))
        except ValueError as error:
            raise ValueError(f"sweep: {name}: {error}") from error
    if writes:
        begin(chosen)


def begin(chosen: Plan) -> None:
    """Writes `sweep.json`, if the plan is that of a sweep."""
    if chosen.record is not None:
        epath.Path(chosen.workdir).mkdir(parents=True, exist_ok=True)
        write_json(epath.Path(chosen.workdir) / "sweep.json", chosen.record)


@contextlib.contextmanager
def divergence_noted(chosen: Plan, run: Run, errors: list[str]) -> Iterator[None]:
    """Lets a sweep continue after a run that diverges; adds its error to `errors`."""
    if run.name is not None:
        number = chosen.runs.index(run) + 1
        _log.info("%s: run %d of %d", run.name, number, len(chosen.runs))
    try:
        yield
    except FloatingPointError as error:
        if run.name is None:
            raise
        errors.append(f"{run.name}: {error}")
        _log.error("%s", errors[-1])


def _check_parent(parent: epath.Path, variants: Mapping[str, Variant]) -> None:
    """Checks that a folder is new, or has this sweep with more or fewer variants."""
    if (parent / "sweep.json").exists():
        old, new = {*read_variants(parent)}, {*variants}
        if not (old <= new or new <= old):
            raise ValueError(
                f"{parent} holds a sweep with {', '.join(sorted(old - new))}, which "
                "this sweep lacks; add these variants to it, or give another workdir."
            )
    elif "." not in variants:
        if (parent / "config.json").exists():
            raise ValueError(f"{parent} holds a run; a sweep needs another workdir.")
        check_no_outputs(parent)
    for name, variant in variants.items():
        check(variant.settings, parent / name)
