"""The benchmark of a GPU in nine minutes: steps, and PyTorch's beside them.

Each part is a process of its own (`parts`), since what one leaves in the memory of the
device decides what fits for the other.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

import jax

from invariance_jax.benchmarks import ceilings, gpu, parts, step
from invariance_jax.benchmarks.runs import configuration
from invariance_jax.benchmarks.timing import table

PARTS = {"gpu_steps": (300.0, ".92"), "gpu_peers": (530.0, ".4")}
"""Name -> seconds after which it is ended, share of the memory that JAX takes."""

_FRACTION = "XLA_CLIENT_MEM_FRACTION"
_COMMAND = "-m", "invariance_jax.benchmarks"

# No step is begun afterwards.
_STEPS_UNTIL = 250.0


def run(flags: Sequence[str], with_peers: bool) -> list[str]:
    """Returns what the parts printed; what they print is shown as it comes.

    Args:
      flags: of each part.
      with_peers: whether PyTorch is there.

    Returns:
      Lines.

    Raises:
      ValueError: if there is no GPU.
    """
    # Asked by another process: one that asks keeps most of the memory.
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    backend = subprocess.run(ask, capture_output=True, text=True).stdout.strip()
    if backend != "gpu":
        raise ValueError(f"the benchmark gpu needs a GPU; JAX finds {backend!r}.")
    with tempfile.TemporaryDirectory() as folder:
        # Some programs are compiled twice.
        environment = {"JAX_COMPILATION_CACHE_DIR": folder} | dict(os.environ)
        chosen = {
            name: parts.Part(
                (*_COMMAND, name, *flags),
                until,
                {} if _FRACTION in environment else {_FRACTION: share},
            )
            for name, (until, share) in PARTS.items()
            if with_peers or name != "gpu_peers"
        }
        lines = parts.run(chosen, environment)
    return lines if with_peers else [*lines, "gpu_peers: not run, no PyTorch"]


def lines_of(name: str, repeats: int, min_seconds: float) -> Iterator[str]:
    """Yields what a part measures, each line when it is there.

    Args:
      name: of the part.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Raises:
      ValueError: if there is no GPU.
    """
    if jax.default_backend() != "gpu":
        raise ValueError(f"the benchmark needs a GPU; there are {jax.devices()}.")
    measure = {"gpu_steps": _steps, "gpu_peers": _peers}[name]
    yield from measure(repeats, min_seconds)


def _steps(repeats: int, min_seconds: float) -> Iterator[str]:
    """Yields the steps of the paper's runs."""
    runs = configuration("spirograph"), configuration("cifar10", "resnet18")
    for row in gpu.run(
        gpu.cases(*runs),
        seconds=_STEPS_UNTIL,
        repeats=min(repeats, 3),
        min_seconds=min_seconds,
    ):
        yield gpu.line(row)


def _peers(repeats: int, min_seconds: float) -> Iterator[str]:
    """Yields the steps against PyTorch's, those of a precision together.

    PyTorch is tuned in bfloat16, which is first; in float32 it runs as the authors do.
    """
    for precision in ("bfloat16", "float32"):
        config = configuration("spirograph")
        config.precision = precision
        results = step.run(
            config,
            repeats=min(repeats, 5),
            min_seconds=min_seconds,
            device="cuda",
            tuned=precision == "bfloat16",
        )
        limits = ceilings.measure(
            size=8192,
            copied=2**25,
            precision=gpu.PRECISIONS[precision],
            products=gpu.PRODUCTS,
        )
        yield from table(results, {"precision": precision}, limits).splitlines()
