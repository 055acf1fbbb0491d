"""Starts a run: trains, evaluates, reports or embeds, as the mode says.

python launch.py --config=configs/spirograph.py:quick --workdir=runs/quick
"""

import difflib
import functools
import re
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from invariance_jax import embed, evaluate, report, train
from invariance_jax.cluster import collect, options, startup, submission, sweeps
from invariance_jax.report.read import flatten

MODES = ("all", "train", "evaluate", "report", "embed")

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Configuration file, with a variant after a colon; keys are changed by "
    "--config.KEY=VALUE. Evaluation takes that of the work directory if none is given.",
)
_WORKDIR = flags.DEFINE_list(
    "workdir", None, "Work directory; several, separated by commas, for a report."
)
_MODE = flags.DEFINE_enum("mode", "all", MODES, "What to do.")
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the report; the work directory if there is only one."
)


def main(arguments: list[str]) -> None:
    """Runs the program that the mode names, here or on a cluster."""
    if len(arguments) > 1:
        raise ValueError(f"unexpected argument {arguments[1]!r}")
    mode, workdirs, config = _MODE.value, _WORKDIR.value, _CONFIG.value
    request = options.read(mode)
    if not workdirs:
        raise ValueError("--workdir is missing")
    if mode == "report":
        return _report(workdirs)
    if len(workdirs) > 1:
        raise ValueError(f"--mode={mode} takes one --workdir")
    if config is None and mode not in ("evaluate", "embed"):
        raise ValueError("--config is missing")
    plan = sweeps.plan(config, workdirs[0], mode)
    if request:
        sys.exit(submission.submit(request, plan, mode))
    writes = startup.initialize()
    sweeps.run_each(plan, functools.partial(_run, mode, writes))
    if plan.record and mode == "all" and writes:
        _report(workdirs)


def _run(mode: str, writes: bool, config: ConfigDict | None, workdir: str) -> None:
    if mode in ("all", "train"):
        train.run(config, workdir)
    if mode in ("all", "evaluate"):
        print(report.table(evaluate.run(config, workdir)))
    if mode == "embed":
        print(*embed.run(config, workdir), sep="\n")
    if mode == "all" and writes:
        print(f"report: {report.run([workdir], workdir)}")


def _report(workdirs: list[str]) -> None:
    if len(workdirs) > 1 and not _OUT.value:
        raise ValueError("--out is missing: several work directories")
    found = collect.finished(workdirs)
    print(f"report: {report.run(found, _OUT.value or workdirs[0])}")


def _parse(arguments: list[str]) -> list[str]:
    """Parses the flags; an unknown key of the configuration meets the closest one."""
    text = "\n".join(arguments)
    paths = re.findall(r"^--?config[=\n](.+)$", text, re.MULTILINE)
    given = re.findall(r"^--?(config\..+?)(?:=|$)", text, re.MULTILINE)
    if given and not paths:
        raise ValueError(f"--{given[0]} needs --config, the configuration it changes")
    if paths and given:
        config = flags.FLAGS["config"].parser.parse(paths[-1])
        known = list(flatten(config.to_dict(), "config."))
        for name in sorted({*given} - {*known}):
            (close,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ValueError(f"--{name} is not a key; the closest is --{close}")
    return flags.FLAGS(arguments)


if __name__ == "__main__":
    startup.run(main, _parse)
