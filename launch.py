"""Starts a run: trains, evaluates and reports, as the mode says.

python launch.py --config=configs/spirograph.py:quick --workdir=runs/quick
"""

import logging
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from invariance_jax import evaluate, report, train
from invariance_jax.training.workdir import read_config

MODES = ("all", "train", "evaluate", "report")

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
    """Runs the program that the mode names."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected argument {arguments[1]!r}")
    mode, workdirs, config = _MODE.value, _WORKDIR.value, _CONFIG.value
    if not workdirs:
        raise app.UsageError("--workdir is missing")
    if mode == "report":
        if len(workdirs) > 1 and not _OUT.value:
            raise app.UsageError("--out is missing: several work directories")
        print(f"report: {report.run(workdirs, _OUT.value or workdirs[0])}")
        return
    if len(workdirs) > 1:
        raise app.UsageError(f"--mode={mode} takes one --workdir")
    (workdir,) = workdirs
    if config is None and mode == "evaluate":
        config = read_config(workdir)
    if config is None:
        raise app.UsageError("--config is missing")
    if mode in ("all", "train"):
        train.run(config, workdir)
    if mode in ("all", "evaluate"):
        print(report.table(evaluate.run(config, workdir)))
    if mode == "all":
        print(f"report: {report.run([workdir], workdir)}")


def _start() -> None:
    """Runs main; an error of the user's becomes one line and exit status 1."""
    log = logging.getLogger("invariance_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    absl_logging.set_verbosity(absl_logging.WARNING)  # what --verbosity starts from
    try:
        app.run(main)
    except (
        AttributeError,
        FloatingPointError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        log.debug("traceback", exc_info=True)
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _start()
