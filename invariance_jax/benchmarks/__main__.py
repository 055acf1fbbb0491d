"""Times the hot paths: `python -m invariance_jax.benchmarks NAME [--json=OUT]`.

NAME is render, augment, step, penalty, loss, evaluate, scaling, restart, gpu or all.
`step` and `evaluate` need PyTorch; without it, `all` leaves them out. `gpu` needs one,
takes at most nine minutes, and is not part of `all`; its parts are `gpu_steps` and, if
there is PyTorch, `gpu_peers`. The last lines are tables and the machine; `--json` also
writes them to a file. The run of `step`, `penalty`, `scaling` and `restart` is that of
a configuration file, by default of the checkout that is the current directory.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from invariance_jax.benchmarks import (
    augment,
    ceilings,
    evaluate,
    gpu_parts,
    loss,
    penalty,
    projection,
    render,
    restart,
    scaling,
    step,
)
from invariance_jax.benchmarks.runs import configuration
from invariance_jax.benchmarks.timing import (
    Comparison,
    keep_freed_memory,
    machine,
    table,
)

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    "configs/spirograph.py:quick",
    "Configuration file of the step, with a variant after a colon; keys are changed by "
    "--config.KEY=VALUE after it.",
)
_JSON = flags.DEFINE_string("json", None, "File to which the results are written.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 15, "Measurements of each side.", lower_bound=1
)
_MIN_SECONDS = flags.DEFINE_float(
    "min_seconds", 0.3, "Least time of one measurement.", lower_bound=0.0
)


def _render() -> list[Comparison]:
    return render.run(
        batch_size=512,
        image_size=32,
        num_points=40,
        repeats=_REPEATS.value,
        min_seconds=_MIN_SECONDS.value,
    )


def _augment() -> list[Comparison]:
    return augment.run(
        batch_size=512,
        image_size=32,
        workers=2,
        repeats=_REPEATS.value,
        min_seconds=_MIN_SECONDS.value,
    )


def _step() -> list[Comparison]:
    resnet = configuration("spirograph")
    resnet.batch_size = 64
    results = []
    for config, repeats in ((_CONFIG.value, _REPEATS.value), (resnet, 5)):
        results += step.run(
            config,
            repeats=min(_REPEATS.value, repeats),
            min_seconds=_MIN_SECONDS.value,
        )
    return results


def _penalty() -> list[Comparison]:
    return penalty.run(
        _CONFIG.value,
        num_steps=4,
        repeats=_REPEATS.value,
        min_seconds=_MIN_SECONDS.value,
    )


def _loss() -> list[Comparison]:
    results = []
    for projections in (4096, 16384):
        results += loss.run(
            projections=projections,
            features=128,
            block_size=512,
            repeats=min(_REPEATS.value, 5),
            min_seconds=_MIN_SECONDS.value,
        )
    return results


def _evaluate() -> list[Comparison]:
    return evaluate.run(
        examples=20_000,
        features=512,
        steps=500,
        averaged_examples=256,
        repeats=min(_REPEATS.value, 3),
        min_seconds=_MIN_SECONDS.value,
    )


def _scaling() -> list[Comparison]:
    return scaling.run(
        _CONFIG.value,
        counts=(2, 4, 8),
        num_steps=8,
        repeats=min(_REPEATS.value, 5),
        min_seconds=_MIN_SECONDS.value,
    )


def _projection() -> str:
    """Returns the table of the paper's runs on many GPUs."""
    runs = {name: configuration(name) for name in ("spirograph", "cifar10")}
    counts = tuple(8 * 2**n for n in range(8))
    return projection.table(scaling.steps(runs), counts, projection.Cluster())


def _restart() -> list[Comparison]:
    return restart.run(_CONFIG.value, repeats=_REPEATS.value)


def _gpu(name: str) -> None:
    """Shows what was measured on a GPU when it is there, and of `gpu` again last."""
    repeats, min_seconds = _REPEATS.value, _MIN_SECONDS.value
    if name == "gpu":
        flags_of_parts = [f"--repeats={repeats}", f"--min_seconds={min_seconds}"]
        lines = gpu_parts.run(flags_of_parts, _has_torch())
        print("", *lines, sep="\n")
    else:
        lines = []
        for line in gpu_parts.lines_of(name, repeats, min_seconds):
            print(line, flush=True)
            lines.append(line)
    _write({"lines": lines})


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


BENCHMARKS: dict[str, Callable[[], list[Comparison]]] = {
    "render": _render,
    "augment": _augment,
    "step": _step,
    "penalty": _penalty,
    "loss": _loss,
    "evaluate": _evaluate,
    "scaling": _scaling,
    "restart": _restart,
}
"""Name -> what measures it, with the sizes that belong in a table."""


TABLES: dict[str, Callable[[], str]] = {"scaling": _projection}
"""Name -> what it finds beside comparisons."""

ON_GPU = ("gpu", *gpu_parts.PARTS)
NEED_TORCH = ("step", "evaluate", "gpu_peers")
NEED_CONFIG = ("step", "penalty", "scaling", "restart", *ON_GPU)


def main(arguments: list[str]) -> None:
    """Runs the benchmarks that are named, prints the table and writes the results."""
    names = _names(arguments[1:])
    if {*NEED_CONFIG} & {*names}:
        _check_config_exists()
    if _JSON.value and not Path(_JSON.value).absolute().parent.is_dir():
        raise ValueError(f"--json is {_JSON.value!r}; expected a file in a folder.")
    if names[0] in ON_GPU:
        _gpu(names[0])
        return
    keep_freed_memory()
    facts, results, tables = machine(), [], {}
    limits = ceilings.measure(size=2048, copied=2**25)
    for name in names:
        print(f"{name} ...", flush=True)
        if name in TABLES:
            tables[name] = TABLES[name]()
        results += BENCHMARKS[name]()
    for text in tables.values():
        print(text, end="\n\n")
    facts["GFLOP/s of a matrix product"] = round(limits.flops / 1e9, 1)
    facts["GB/s of a copy"] = round(limits.bytes_moved / 1e9, 2)
    print(table(results, facts, limits))
    found = {"machine": facts, "results": [r.as_dict() for r in results]}
    found |= {"tables": {name: text.splitlines() for name, text in tables.items()}}
    _write(found)


def _write(found: dict[str, Any]) -> None:
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=2) + "\n")


def _names(arguments: list[str]) -> list[str]:
    choices = [*BENCHMARKS, *ON_GPU, "all"]
    if len(arguments) != 1 or arguments[0] not in choices:
        found = " ".join(arguments) or "nothing"
        raise ValueError(
            f"the benchmark is {found!r}; expected one of {', '.join(choices)}."
        )
    if arguments[0] == "all":
        left_out = () if _has_torch() else NEED_TORCH
        return [name for name in BENCHMARKS if name not in left_out]
    if arguments[0] in NEED_TORCH and not _has_torch():
        raise ValueError(
            f"the benchmark {arguments[0]} compares with PyTorch, which is not "
            "installed; expected python -m pip install '.[benchmarks]' before it."
        )
    return arguments


def _check_config_exists() -> None:
    path = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0]
    if not Path(path).is_file():
        raise ValueError(
            f"--config is {path!r} and there is no such file; start from a checkout of "
            "the project, or give --config=PATH[:VARIANT]."
        )


def _start() -> None:
    """Runs main; an error of the user's becomes one line and exit status 1."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # what --verbosity starts from
    try:
        app.run(main)
    except (
        AttributeError,
        FloatingPointError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    _start()
