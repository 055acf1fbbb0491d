"""The rooms of the house: who imports whom, read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "invariance_jax"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "configs").glob("*.py")), ROOT / "launch.py"]

CORE = {"types", "arguments", "numerics"}
PURE = {"transforms", "losses", "evaluation", "models"}
PROGRAMS = {"train", "evaluate", "report", "embed", "check", "studies"}
EVERYTHING = (
    CORE
    | PURE
    | PROGRAMS
    | {
        "data",
        "training",
        "experiments",
        "cluster",
        "benchmarks",
    }
)

# The rooms that a room may import, next to itself.
ALLOWED = {
    "types": set(),
    "arguments": {"types"},
    "numerics": {"types", "arguments"},
    **dict.fromkeys(PURE, CORE),
    "data": CORE | {"transforms"},
    "training": CORE | PURE | {"data"},
    "experiments": CORE | PURE | {"data", "training"},
    **dict.fromkeys(PROGRAMS, EVERYTHING - {"benchmarks"}),
    "cluster": EVERYTHING - {"benchmarks"},
    "benchmarks": EVERYTHING,
    # Inside functions only: see `test_importing_the_package_is_light`.
    "__init__": EVERYTHING,
}

# What importing the package alone must not import.
MACHINERY = {
    "absl",
    "matplotlib",
    "ml_collections",
    "optax",
    "orbax",
    "tensorboardX",
    "tensorflow_datasets",
    "tqdm",
    "wandb",
}


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room(path: Path) -> str:
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


PURE_MODULES = [path for path in MODULES if room(path) in CORE | PURE]
NOT_PARALLEL = [p for p in SOURCES if label(p) != f"{PACKAGE}/training/parallel.py"]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(tree: ast.AST) -> set[str]:
    """Returns the dotted names of all that a syntax tree imports, at any depth."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(tree: ast.AST) -> set[str]:
    parts = [name.split(".") for name in imported(tree)]
    rooms = {part[1] for part in parts if part[0] == PACKAGE and len(part) > 1}
    return rooms - {"__version__", "load"}


def identifiers(tree: ast.AST) -> set[str]:
    """Returns every name and attribute that the code mentions, strings aside."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= set(node.name.split("."))
    return found


def code_lines(function: ast.AST, lines: list[str]) -> int:
    """Returns the lines of a function's body that are code."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return 0
    text = lines[body[0].lineno - 1 : function.end_lineno]
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text)


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_a_room_imports_only_the_rooms_below_it(path):
    allowed = ALLOWED[room(path)] | {room(path)}
    assert imported_rooms(parse(path)) <= allowed


def test_launch_imports_only_programs():
    tree = parse(ROOT / "launch.py")
    assert imported_rooms(tree) <= PROGRAMS | {"cluster"}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=label)
def test_configs_import_nothing_of_the_package(path):
    assert not imported_rooms(parse(path))


@pytest.mark.parametrize("path", PURE_MODULES, ids=label)
def test_pure_rooms_import_jax_flax_chex_and_numpy_only(path):
    packages = {name.split(".")[0] for name in imported(parse(path))}
    allowed = {PACKAGE, "jax", "chex", "numpy", *sys.stdlib_module_names}
    assert packages <= allowed | ({"flax"} if room(path) == "models" else set())


@pytest.mark.parametrize("path", PURE_MODULES, ids=label)
def test_pure_rooms_do_not_ask_for_devices(path):
    asked = {"device_count", "local_device_count", "devices", "local_devices"}
    assert not identifiers(parse(path)) & asked


@pytest.mark.parametrize("path", NOT_PARALLEL, ids=label)
def test_only_parallel_maps_over_devices(path):
    assert "pmap" not in identifiers(parse(path))


@pytest.mark.parametrize("path", NOT_PARALLEL, ids=label)
def test_only_parallel_names_an_axis(path):
    literal = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.keyword)
        and node.arg == "axis_name"
        and isinstance(node.value, ast.Constant)
        and node.value.value is not None
    ]
    assert not literal


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_derivative_rules_allow_forward_mode(path):
    assert "custom_vjp" not in identifiers(parse(path))


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_tensorflow_is_not_a_dependency(path):
    packages = {name.split(".")[0] for name in imported(parse(path))}
    assert not packages & {"tensorflow", "torch", "keras"}


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_modules_are_short(path):
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", [*MODULES, ROOT / "launch.py"], ids=label)
def test_functions_are_short(path):
    lines = path.read_text().splitlines()
    functions = ast.FunctionDef, ast.AsyncFunctionDef
    long = {
        node.name: code_lines(node, lines)
        for node in ast.walk(parse(path))
        if isinstance(node, functions) and code_lines(node, lines) >= 40
    }
    assert not long


def test_launch_is_short():
    assert len((ROOT / "launch.py").read_text().splitlines()) < 100


def test_importing_the_package_is_light():
    code = f"import sys, {PACKAGE}; print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    packages = {name.split(".")[0] for name in result.stdout.split()}
    assert not packages & (MACHINERY | {"flax", "tensorflow"})
