"""Starts a run: trains, evaluates, reports or embeds, as the mode says.

python launch.py --config=configs/spirograph.py:quick --workdir=runs/quick
"""

import difflib
import re

from absl import flags
from ml_collections import config_flags

from invariance_jax import check, embed, evaluate, report, train
from invariance_jax.cluster import devices, startup
from invariance_jax.report.read import flatten

MODES = ("all", "train", "evaluate", "report", "embed", "check")

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
_PROFILE = flags.DEFINE_string(
    "profile_steps", None, "Steps a:b that are traced: sets logging.profile_steps."
)
_DEVICES = flags.DEFINE_integer(
    "check_devices", None, "Number of CPU devices that --mode=check simulates."
)


def main(arguments: list[str]) -> None:
    """Runs the program that the mode names."""
    if len(arguments) > 1:
        raise ValueError(f"unexpected argument {arguments[1]!r}")
    mode, workdirs, config = _MODE.value, _WORKDIR.value, _CONFIG.value
    if config is None and mode not in ("evaluate", "report", "embed"):
        raise ValueError("--config is missing")
    if _PROFILE.value is not None:
        if config is None:
            raise ValueError("--profile_steps needs --config")
        config.logging.profile_steps = _PROFILE.value
    if mode == "check":
        print(check.table(check.run(config, num_devices=_DEVICES.value)))
        return
    if not workdirs:
        raise ValueError("--workdir is missing")
    if mode == "report":
        if len(workdirs) > 1 and not _OUT.value:
            raise ValueError("--out is missing: several work directories")
        print(f"report: {report.run(workdirs, _OUT.value or workdirs[0])}")
        return
    workdir = workdirs[0]
    if len(workdirs) > 1:
        raise ValueError(f"--mode={mode} takes one --workdir")
    config = evaluate.read_config(workdir) if config is None else config
    devices.make_deterministic(config)
    writes = startup.initialize()
    if mode in ("all", "train"):
        train.run(config, workdir)
    if mode in ("all", "evaluate"):
        print(report.table(evaluate.run(config, workdir)))
    if mode == "embed":
        print(*embed.run(config, workdir), sep="\n")
    if mode == "all" and writes:
        print(f"report: {report.run([workdir], workdir)}")


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
