"""Sweeps: variants of a configuration, each a run of its own.

    python launch.py --config=... --workdir=DIR --sweep=configs/sweeps/penalty_weight.py

The file has a function `get_sweep()` that returns key -> values, a grid ("seed" may be
one of the keys), or label -> {key: value}. Every variant has a folder in DIR, laid out
as the work directory of a run, over several seeds if there are several.
`DIR/sweep.json` keeps the configuration of each; `sweeps.collect` gathers what is
finished, to be compared with the first.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from absl import flags
from etils import epath

from invariance_jax.runs.workdir import check, command, one_per_seed
from invariance_jax.runtime.files import work_folder, write_json
from invariance_jax.settings import Config, resolve, to_dict
from invariance_jax.sweeps.collect import FORMAT, is_evaluated, read_record
from invariance_jax.sweeps.variants import Variant, make_variants, read_sweep
from invariance_jax.types import Json

_SWEEP = flags.DEFINE_string(
    "sweep", None, "File with get_sweep(): key -> values, or label -> changed keys."
)
_ONE = flags.DEFINE_string(
    "sweep_run", None, "The one run of the sweep that is made: its folder in WORKDIR."
)

_log = logging.getLogger(__name__)


class Run(NamedTuple):
    """One run: a variant of a sweep with one seed, or what the command line says."""

    name: str | None  # its folder in that of the sweep; None: there is no sweep
    config: Config | None  # None: that of the work directory
    workdir: str


class Plan(NamedTuple):
    """What a command line asks for, checked."""

    workdir: str  # for a sweep the parent of the variants
    runs: list[Run]  # those that are not finished
    record: Json | None  # sweep.json; None: there is none, or one run of it


def plan(config: Config | None, workdir: str, mode: str) -> Plan:
    """Returns the runs that the command line asks for; writes nothing.

    In the modes `all` and `evaluate`, those of a sweep that have results are left out.
    """
    parent = work_folder(workdir)
    if _SWEEP.value is None:
        if _ONE.value is not None:
            raise ValueError("--sweep_run needs --sweep")
        return Plan(str(parent), [Run(None, config, str(parent))], None)
    if config is None:
        raise ValueError("--config is missing; --sweep changes its keys")
    variants = make_variants(config, read_sweep(_SWEEP.value))
    _check_parent(parent, variants)
    runs, done = {}, set()
    for name, variant in variants.items():
        for one, folder in one_per_seed(variant.config, parent / name):
            settings, own = resolve(one), str(folder.relative_to(parent))
            check(settings, folder)
            runs[own] = Run(own, one, str(folder))
            if mode in ("all", "evaluate") and is_evaluated(settings, folder):
                done.add(own)
    record: Json | None = {
        "format": FORMAT,
        "command": command(),
        "variants": {
            name: {"label": one.label, "config": to_dict(one.settings)}
            for name, one in variants.items()
        },
    }
    if _ONE.value is not None:
        if _ONE.value not in runs:
            names = ", ".join(runs)
            raise ValueError(f"--sweep_run is {_ONE.value!r}; expected one of {names}")
        runs, record = {_ONE.value: runs[_ONE.value]}, None
    for name in [name for name in runs if name in done]:
        _log.info("%s: finished, skipped", name)
        del runs[name]
    return Plan(str(parent), list(runs.values()), record)


def begin(chosen: Plan) -> None:
    """Writes the `sweep.json` of a sweep that is started."""
    if chosen.record is not None:
        epath.Path(chosen.workdir).mkdir(parents=True, exist_ok=True)
        write_json(epath.Path(chosen.workdir) / "sweep.json", chosen.record)


@contextlib.contextmanager
def kept_going(chosen: Plan, run: Run, errors: list[str]) -> Iterator[None]:
    """Notes that a run of a sweep diverged; without a sweep, it raises."""
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
    """Checks that a folder is free, or that of the same sweep, or a part of it."""
    if (parent / "sweep.json").exists():
        old, new = {*read_record(parent)["variants"]}, {*variants}
        if not (old <= new or new <= old):
            raise ValueError(
                f"{parent} holds a sweep over {', '.join(sorted(old - new))}, which "
                "this one lacks; add them to it, or give another workdir."
            )
    elif (parent / "config.json").exists() and "." not in variants:
        raise ValueError(f"{parent} holds a run; a sweep needs another workdir.")
    for name, variant in variants.items():
        check(variant.settings, parent / name)
