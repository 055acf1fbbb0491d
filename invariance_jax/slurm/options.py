"""The command-line flags of a submission, and their checks."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

_CLUSTER = flags.DEFINE_enum(
    "cluster", None, ("slurm", "local"), "Run as a SLURM job, or as processes here."
)
_NODES = flags.DEFINE_integer("nodes", 1, "Nodes per job.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus_per_node", None, "GPUs per node.", lower_bound=1)
_TASKS = flags.DEFINE_integer(
    "tasks_per_node",
    None,
    "Processes per node: one per GPU (the default), or one.",
    lower_bound=1,
)
_SETUP = flags.DEFINE_multi_string("setup", [], "Shell line before a job; repeatable.")
_FOLDER = flags.DEFINE_string(
    "slurm_folder", None, "Folder of scripts and logs; default: WORKDIR/slurm."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Show the script, submit nothing.")
flags.DEFINE_alias("dry-run", "dry_run")

_TIME = flags.DEFINE_string(
    "time",
    None,
    "Time limit as sbatch reads it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S.",
)
_SIGNAL_DELAY = flags.DEFINE_integer(
    "signal_delay",
    120,
    "Seconds before the time limit at which the run gets the signal to save.",
    lower_bound=1,
)
_PARALLELISM = flags.DEFINE_integer(
    "array_parallelism", None, "Most runs of a sweep at one time.", lower_bound=1
)
_OPTIONS = flags.DEFINE_string(
    "slurm_options",
    None,
    "Other sbatch options: key=value,key=value; 'key=' for an option without value.",
)
flags.DEFINE_integer("cpus_per_task", None, "Cores per task.", lower_bound=1)
_MEM = flags.DEFINE_string("mem", None, "Memory per node: a number and K, M, G or T.")
flags.DEFINE_string("partition", None, "SLURM partition.")
flags.DEFINE_string("account", None, "SLURM account.")
flags.DEFINE_string("qos", None, "SLURM quality of service.")
flags.DEFINE_string("constraint", None, "Features that the nodes must have.")

_OF_SBATCH = ("cpus_per_task", "mem", "partition", "account", "qos", "constraint")
_FOR_SLURM = ("time", "signal_delay", "array_parallelism", "slurm_options", *_OF_SBATCH)
_FOR_BOTH = (
    *("nodes", "gpus_per_node", "tasks_per_node", "setup", "slurm_folder"),
    *("dry_run", "dry-run"),
)

MODES = ("all", "train", "evaluate", "embed")
"""The modes that can be submitted; the other modes run on this machine."""

# sbatch options that are set by other flags of this program.
_FLAG_OF_OPTION = {
    "array": "--sweep",
    "error": "--slurm_folder",
    "output": "--slurm_folder",
    "ntasks": "--nodes and --tasks_per_node",
    "ntasks_per_node": "--tasks_per_node",
    "signal": "--signal_delay",
}

Options = dict[str, str | int | bool]
"""sbatch options, long name with underscores -> value."""


class Request(NamedTuple):
    """The flags of a submission, checked."""

    cluster: str
    nodes: int
    gpus_per_node: int | None
    tasks_per_node: int
    minutes: int | None  # time limit, rounded up; None: the limit of the partition
    signal_delay: int  # seconds between the warning and the time limit
    setup: tuple[str, ...]  # shell lines
    parallelism: int | None  # most runs of a sweep at one time
    folder: str | None  # of scripts and logs; None: in the work directory
    dry_run: bool
    options: Options


def read(mode: str) -> Request | None:
    """Returns the flags of a submission, checked; None without `--cluster`."""
    cluster = _CLUSTER.value
    for name in (*_FOR_BOTH, *_FOR_SLURM):
        if flags.FLAGS[name].present and cluster is None:
            raise ValueError(f"--{name} needs --cluster=slurm or --cluster=local")
        if flags.FLAGS[name].present and cluster == "local" and name in _FOR_SLURM:
            raise ValueError(f"--{name} needs --cluster=slurm, found --cluster=local")
    if cluster is None:
        return None
    if mode not in MODES:
        raise ValueError(
            f"--mode={mode} runs on this machine; leave --cluster={cluster} out"
        )
    if cluster == "local" and _NODES.value > 1:
        raise ValueError(f"--nodes is {_NODES.value}; expected 1 for --cluster=local")
    gpus, tasks = _GPUS.value, _TASKS.value
    if None not in (gpus, tasks) and tasks not in (1, gpus):
        raise ValueError(
            f"--tasks_per_node is {tasks}; expected 1 or {gpus}, one per GPU"
        )
    return Request(
        cluster=cluster,
        nodes=_NODES.value,
        gpus_per_node=gpus,
        tasks_per_node=tasks or gpus or 1,
        minutes=_minutes(),
        signal_delay=_SIGNAL_DELAY.value,
        setup=tuple(_SETUP.value),
        parallelism=_PARALLELISM.value,
        folder=_FOLDER.value,
        dry_run=_DRY_RUN.value,
        options=_options(),
    )


def own_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns command-line arguments without the flags of this module."""
    names = "|".join(["cluster", *_FOR_BOTH, *_FOR_SLURM])
    kept, words = [], iter(arguments)
    for word in words:
        match = re.match(rf"--?(no)?({names})(=|$)", word)
        if not match:
            kept.append(word)
        elif not match.group(3) and not flags.FLAGS[match.group(2)].boolean:
            next(words, None)  # the flag's value
    return kept


def _minutes() -> int | None:
    """Returns the time limit in whole minutes, rounded up as SLURM does."""
    text, delay = _TIME.value, _SIGNAL_DELAY.value
    if text is None:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", text)
    seconds = 0
    if match:
        parts = [int(part) for part in match.group(2).split(":")]
        if match.group(1) is None and len(parts) < 3:
            parts = [0, *parts]  # without days and hours, minutes come first
        hours, minutes, rest = (*parts, 0, 0)[:3]
        hours += 24 * int(match.group(1) or 0)
        seconds = 3600 * hours + 60 * minutes + rest
    if not seconds:
        raise ValueError(
            f"--time is {text!r}; expected minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S"
        )
    if delay + 60 >= seconds:
        raise ValueError(
            f"--signal_delay is {delay} and --time={text} is {seconds} seconds; "
            "expected --time to be over a minute longer, as SLURM may send the signal "
            "up to a minute early"
        )
    return -(-seconds // 60)


def _options() -> Options:
    """Returns the sbatch options; a value in `--slurm_options` may have commas."""
    if _MEM.value is not None and not re.fullmatch(r"\d+[KMGT]?", _MEM.value):
        raise ValueError(f"--mem is {_MEM.value!r}; expected a number and K, M, G or T")
    given = {name: flags.FLAGS[name].value for name in _OF_SBATCH}
    options = {name: value for name, value in given.items() if value is not None}
    other = Options()
    for part in filter(None, (_OPTIONS.value or "").split(",")):
        name, equals, value = part.partition("=")
        last = next(reversed(other), "")
        if equals:
            other[name.strip().removeprefix("--").replace("-", "_")] = value or True
        elif isinstance(other.get(last), str):
            other[last] = f"{other[last]},{part}"
        else:
            raise ValueError(f"--slurm_options has {part!r}; expected key=value")
    for name in other:
        if name in {*_FLAG_OF_OPTION, *_FOR_BOTH, *_FOR_SLURM}:
            flag = _FLAG_OF_OPTION.get(name, f"--{name}")
            raise ValueError(f"--slurm_options has {name}; use {flag} instead")
        if not name.isidentifier():
            raise ValueError(f"--slurm_options has {name!r}; expected a name of sbatch")
    for name, value in (options | other).items():
        # An option is one line of the script.
        if not str(value).isprintable():
            flag = name if name in options else "slurm_options"
            raise ValueError(f"--{flag} has {value!r}; expected one line of text")
    return options | other
