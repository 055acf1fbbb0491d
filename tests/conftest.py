"""Strictness and shared fixtures: four CPU devices, rank promotion raises.

With --device=gpu or tpu the numerical tests run there, products in full float32.

Warnings are errors; the exceptions, each with its reason, stand in `.pytest.ini`.
Float64 is off unless a test asks for the fixture `x64`.
"""

import functools
import gc
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import loopback_slurm
import numpy as np
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compiled programs and the like go where the tests are, not to the user's folder.
_CACHE = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _CACHE.name

DATA = Path(__file__).parent / "data"
MOST_MAPS = 20_000

NUMERICAL = (
    *("averaging", "base", "blur", "color", "crops", "draws", "geometry"),
    *("image", "invariance", "knn", "linearization", "logistic", "losses"),
    *("normalization", "numerics", "precision", "probe_metrics", "ridge"),
    *("selection", "shifts", "spirograph", "step_precision", "variance"),
)
"""Files of tests that compute on the device and write nothing."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds what else is run: slow tests, kills of a run, a local SLURM."""
    parser.addoption("--all", action="store_true", help="run the slow tests too")
    parser.addoption("--kills", type=int, default=3, help="kills in test_crash.py")
    parser.addoption("--slurm", action="store_true", help="run jobs on a local SLURM")
    parser.addoption("--optimized", action="store_true", help="compile as a run does")
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "gpu", "tpu"),
        help="platform; on gpu and tpu the numerical tests, which are compiled there",
    )


# In half the time or less; the numbers are the same up to rounding.
QUICK_TO_COMPILE = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
if jax.__version_info__ < (0, 11):  # a newer XLA does not know the flag
    QUICK_TO_COMPILE["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"


def pytest_configure(config: pytest.Config) -> None:
    """Chooses devices; lets XLA optimize less, also in processes that tests start."""
    # Through the config and not through the environment, so that a program which a test
    # starts as a subprocess sees the devices that a user's shell would give it.
    platform = config.getoption("--device")
    flags.FLAGS.mark_as_parsed()  # so that they have their defaults
    # "gpu" asks for ROCm and oneAPI too. The CPU stays, for float64.
    names = {"gpu": "cuda,cpu", "tpu": "tpu,cpu"}.get(platform, platform)
    jax.config.update("jax_platforms", names)
    if platform != "cpu":
        # So that the processes of pytest-xdist share the memory of a card.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        jax.config.update("jax_default_matmul_precision", "highest")
        try:
            found = jax.default_backend()
        except RuntimeError as error:
            raise pytest.UsageError(f"--device is {platform}: {error}") from error
        if found != platform:
            raise pytest.UsageError(f"--device is {platform}: only {found} found")
        return
    jax.config.update("jax_num_cpu_devices", 4)
    if not config.getoption("--optimized"):
        os.environ |= QUICK_TO_COMPILE
        jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leaves out what is slow, or needs SLURM, unless it was asked for."""
    asked = config.getoption("--slurm")
    why_not = loopback_slurm.why_not() if asked else "needs --slurm"
    left_out = []
    elsewhere = config.getoption("--device") != "cpu"
    for item in items:
        if elsewhere and Path(item.path).stem.removeprefix("test_") not in NUMERICAL:
            left_out.append(item)
        elif item.get_closest_marker("slurm"):
            if why_not:
                item.add_marker(pytest.mark.skip(reason=why_not))
        elif _is_slow(item) and not config.getoption("--all"):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in {*left_out}]
        config.stash[_LEFT_OUT] = len(left_out)


_LEFT_OUT = pytest.StashKey[int]()


@functools.cache
def _slow() -> frozenset[str]:
    return frozenset((DATA / "slow.txt").read_text().split())


def _is_slow(item: pytest.Item) -> bool:
    """Returns whether a test is slow: by its mark, or by `data/slow.txt`.

    A line there names a file, or a test or a fixture of a file.
    """
    file, fixtures = Path(item.path).stem, getattr(item, "fixturenames", ())
    parts = item.name.split("[")[0], *fixtures
    named = {file, *(f"{file}::{part}" for part in parts)} & _slow()
    return bool(named) or item.get_closest_marker("slow") is not None


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Says how the rest is run."""
    count = config.stash.get(_LEFT_OUT, 0)
    if count:
        text = f"{count} slow tests were left out; all of them: python -m pytest --all"
        terminalreporter.write_line(text)


@pytest.fixture
def x64() -> Iterator[None]:
    """Turns float64 on within one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """The reference values: name -> read-only NumPy array, mostly float64."""
    with np.load(DATA / "reference.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


@pytest.fixture(scope="session")
def reference_json() -> dict[str, Any]:
    """The state-dict names and shapes that go with the reference values."""
    return json.loads((DATA / "reference.json").read_text())


@pytest.fixture(scope="session")
def trained_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of two seeds that are trained and not evaluated; copy it."""
    from tiny import SEEDS, tiny_config  # not by those who need no program

    from invariance_jax import train

    workdir = tmp_path_factory.mktemp("trained") / "run"
    train.run(tiny_config(SEEDS), workdir)
    return workdir


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps compiled programs on the disk, since every start builds them anew."""
    from invariance_jax.runtime.compilation import compilation_kept

    folder = tmp_path_factory.mktemp("cache")
    with compilation_kept(str(folder), folder):
        yield


@pytest.fixture(scope="module", autouse=True)
def programs_dropped() -> Iterator[None]:
    """Drops compiled programs before they are too many for one process.

    On Linux each takes about six memory maps of the 65 530 that a process may have;
    with one more, the compiler crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
