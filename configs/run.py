"""The configuration of an existing run, to be changed on the command line.

    python launch.py --mode=evaluate --config=configs/run.py:runs/quick \\
        --workdir=runs/quick --config.evaluation.experiments=all

Evaluation keys may differ from those of the run. With another `--workdir`, a new run
starts with the same configuration.
"""

from invariance_jax.runs.workdir import read_config
from invariance_jax.settings import Config


def get_config(workdir: str = ".") -> Config:
    """Returns the configuration of the run in a work directory."""
    return read_config(workdir)
