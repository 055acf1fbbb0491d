"""Starts the program that --mode names: training, evaluation, report and others.

python launch.py --config=configs/spirograph.py:quick --workdir=runs/quick
"""

import os
import signal
import sys

if __name__ == "__main__":
    # During the imports nothing has to be saved: Ctrl-C ends the process silently.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from absl import flags

from invariance_jax import check, embed, evaluate, export, report, train
from invariance_jax.runs.workdir import check_folder
from invariance_jax.runtime import devices, startup
from invariance_jax.runtime.files import work_folder
from invariance_jax.settings import Config
from invariance_jax.settings.command_line import define_config, key_help
from invariance_jax.slurm import options, submission
from invariance_jax.sweeps import collect
from invariance_jax.sweeps import plan as sweeps

MODES = ("all", "train", "evaluate", "report", "embed", "export", "check", "keys")

_CONFIG = define_config(
    "config",
    "Configuration file, with a variant after a colon; --config.KEY=VALUE changes a "
    "key. Default of an evaluation: the configuration in the work directory.",
)
_WORKDIR = flags.DEFINE_list(
    "workdir", None, "Work directory; a report takes several, separated by commas."
)
_MODE = flags.DEFINE_enum("mode", "all", MODES, "all: train, evaluate and report.")
_OUT = flags.DEFINE_string("out", None, "Folder of the report, or file of the export.")
_PROFILE = flags.DEFINE_string(
    "profile_steps", None, "Steps a:b to trace: sets logging.profile_steps."
)

# --help lists the key flags of this module.
for _name in ("config", "sweep", "cluster", "check_devices", "check_target"):
    flags.declare_key_flag(_name)


def main(arguments: list[str]) -> None:
    """Runs the program that --mode names, here or on a cluster."""
    request = options.read(_MODE.value)
    mode, config, workdirs = _read(arguments)
    if mode == "keys":
        return print(key_help(*arguments[1:]))
    if mode == "report":
        return _report(workdirs)
    if mode == "export":
        return print(export.run(workdirs[0], _OUT.value, config=config))
    if mode == "check" and config:
        return print(check.table(check.run(config, *check.read_flags())))
    plan = sweeps.plan(config, workdirs[0], mode)
    if request:
        sys.exit(submission.submit(request, plan, mode))
    if plan.runs:  # XLA reads the option once, when the devices are first used
        devices.make_deterministic(plan.runs[0].config.deterministic)
    writes = startup.initialize()
    sweeps.start(plan, writes=writes)
    diverged: list[str] = []
    for run in plan.runs:
        with sweeps.divergence_noted(plan, run, diverged):
            if mode in ("all", "train"):
                train.run(run.config, run.workdir)
            if mode in ("all", "evaluate"):
                results = evaluate.run(run.config, run.workdir)
                print(report.table(results, of_sweep=run.name is not None))
            if mode == "embed":
                print(*embed.run(run.config, run.workdir), sep="\n")
            if mode == "all" and writes:
                out = None if run.name else _OUT.value  # of a variant: in its folder
                print(f"report: {report.run([run.workdir], out or run.workdir)}")
    if plan.record and mode == "all" and writes:  # a whole sweep
        _report(workdirs)
    if diverged:
        raise FloatingPointError("\n".join(diverged))


def _read(arguments: list[str]) -> tuple[str, Config | None, list[str]]:
    """Returns mode, configuration and work directories from the command line."""
    mode, config = _MODE.value, _CONFIG.value
    startup.check_flags(mode)
    most = 2 if mode == "keys" else 1
    if len(arguments) > most:
        raise ValueError(f"unexpected argument {arguments[most]!r}; quote '(1, 2)'")
    if config is None and mode in ("all", "train", "check"):
        raise ValueError("--config is missing")
    if config and _PROFILE.value is not None:
        config.logging.profile_steps = _PROFILE.value
    if _OUT.value and mode in ("all", "report"):
        check_folder("--out", _OUT.value)
    workdirs = [os.fspath(work_folder(path)) for path in _WORKDIR.value or ()]
    if not workdirs and mode not in ("check", "keys"):
        raise ValueError("--workdir is missing")
    if len(workdirs) > 1 and mode != "report":
        raise ValueError(f"--mode={mode} takes one --workdir")
    return mode, config, workdirs


def _report(workdirs: list[str]) -> None:
    if len(workdirs) > 1 and not _OUT.value:
        raise ValueError("--out is missing: several work directories need it")
    finished = collect.finished(workdirs)
    out = report.run(finished, _OUT.value or workdirs[0])
    if len(finished) > 1:
        print(report.comparison_text(finished))
    print(f"report: {out}")


if __name__ == "__main__":
    startup.run(main)
