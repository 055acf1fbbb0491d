"""Times the hot paths: `python -m invariance_jax.benchmarks NAME`.

README.md in this folder says what each NAME compares; "all" runs those without a GPU.
The output ends with a table and the machine; `--json` also writes both to a file.
"""

import importlib
import json
from pathlib import Path

from absl import flags

from invariance_jax.benchmarks import MODULES, ON_GPU, check_names, steps, timing
from invariance_jax.benchmarks.timing import Options, Timer
from invariance_jax.runtime import startup
from invariance_jax.settings.command_line import define_config
from invariance_jax.sweeps.variants import read_sweep

_CONFIG = define_config(
    "config",
    "Configuration file of the run that steps, penalty, scaling and restart time, with "
    "a variant after a colon; default: configs/spirograph.py:quick.",
)
_JSON = flags.DEFINE_string("json", None, "File to which the results are written.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 15, "Maximum number of measurements of each side.", lower_bound=1
)
_MIN_SECONDS = flags.DEFINE_float(
    "min_seconds", 0.3, "Minimum seconds of one measurement.", lower_bound=0.0
)
_CASES = flags.DEFINE_list(
    "cases", [], "gpu, gpu_peers: run the cases whose name contains one of these texts."
)
_SECONDS = flags.DEFINE_float(
    "seconds", 240.0, "gpu: seconds after which no further case starts."
)
_SWEEP = flags.DEFINE_string(
    "sweep", None, "penalty: a sweep file whose variants are compared to its first one."
)

_READERS = {
    "config": ("steps", "penalty", "scaling", "restart"),
    "cases": ON_GPU,
    "seconds": ("gpu",),
    "sweep": ("penalty",),
}
"""Flag -> the benchmarks that read it, if not all do."""


def main(arguments: list[str]) -> None:
    """Runs the named benchmarks, prints a table and writes the results."""
    names = check_names(arguments[1:], timing.has_torch())
    for name, readers in _READERS.items():
        if flags.FLAGS[name].present and not {*names} & {*readers}:
            expected = ", ".join(readers)
            raise ValueError(f"--{name} goes with {expected}, not {arguments[1]}")
    options = Options(
        Timer(_REPEATS.value, _MIN_SECONDS.value),
        _CONFIG.value or timing.configuration("spirograph", "quick"),
        tuple(_CASES.value),
        _SECONDS.value,
        read_sweep(_SWEEP.value) if _SWEEP.value else None,
    )
    steps.check(names, options)
    if _JSON.value:
        Path(_JSON.value).open("a").close()  # an error here, not after the benchmarks
    timing.keep_freed_memory()
    rows = []
    for name in names:
        # Imported on demand, so that `gpu` runs in a process without PyTorch.
        module = importlib.import_module(f"{__package__}.{MODULES.get(name, name)}")
        for row in getattr(module, f"time_{name}")(options):
            print(json.dumps(row), flush=True)
            rows.append(row)
    machine = timing.machine()
    print("", timing.table(rows), "", json.dumps(machine), sep="\n")
    if _JSON.value:
        results = {"machine": machine, "rows": rows}
        Path(_JSON.value).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    startup.run(main)
