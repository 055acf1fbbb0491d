"""The rooms of the house: who imports whom, read from the syntax trees."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "invariance_jax"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))

# A room imports those of the rows above it, and of its own row.
ROWS = (
    ("types",),
    ("arguments", "numerics"),
    ("transforms", "losses", "models", "evaluation"),
    ("data",),
    ("settings",),
    ("runtime",),
    ("tasks",),
    ("runs",),
    ("training",),
    ("experiments",),
    ("report",),
    ("sweeps",),
    ("slurm",),
    ("train", "evaluate", "embed", "export", "check"),
    ("benchmarks",),
)
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
PURE = {*ROWS[0], *ROWS[1], *ROWS[2]}
# jax itself needs SciPy.
PURE_PACKAGES = {PACKAGE, "chex", "flax", "jax", "jaxlib", "numpy", "optax", "scipy"}
"""jax, flax, chex, numpy, and what these bring."""

TWICE = {"averaging", "invariance", "linearization", "spirograph"}
"""Subjects that are seen from two rooms or more, each with a module there."""

LIGHT = {
    PACKAGE: "flax matplotlib ml_collections optax orbax pandas seaborn tensorflow",
    f"{PACKAGE}.data": "PIL array_record tensorflow tensorflow_datasets",
    f"{PACKAGE}.report": "matplotlib pandas",
    f"{PACKAGE}.slurm.job": "absl flax jax",
}
"""What importing a module leaves out."""


def label(path):
    return str(path.relative_to(ROOT))


def room(path):
    if path.stem == "__main__":  # a program, which may import every room
        return ROWS[-1][0]
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


TREES = {path: ast.parse(path.read_text(), str(path)) for path in MODULES}
LAUNCH = ast.parse((ROOT / "launch.py").read_text())
PURE_TREES = {path: tree for path, tree in TREES.items() if room(path) in PURE}


def imported(tree):
    """Returns the dotted names of all that a syntax tree imports, at any depth."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages(tree):
    return {name.split(".")[0] for name in imported(tree)}


def rooms(tree):
    parts = [name.split(".") for name in imported(tree)]
    found = {part[1] for part in parts if part[0] == PACKAGE and len(part) > 1}
    return found - {"__version__", "load"}


def identifiers(tree):
    """Returns every name and attribute that the code mentions, strings aside."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found |= {*node.name.split(".")}
    return found


def code_lines(function, lines):
    """Returns the lines of a function's body that are code."""
    body = function.body[ast.get_docstring(function) is not None :]
    if not body:
        return 0
    text = [line.strip() for line in lines[body[0].lineno - 1 : function.end_lineno]]
    return sum(bool(line) and not line.startswith("#") for line in text)


def test_a_room_imports_only_the_rooms_above_it():
    wrong = {
        f"{label(path)}: {other}"
        for path, tree in TREES.items()
        if room(path) != "__init__"  # inside functions only, see below
        for other in rooms(tree)
        if LEVEL[other] > LEVEL[room(path)]
    }
    assert not wrong


def test_every_room_has_its_row():
    assert {room(path) for path in MODULES} == {*LEVEL, "__init__"}


def test_pure_rooms_import_jax_flax_chex_numpy_and_what_these_bring():
    standard = PURE_PACKAGES | sys.stdlib_module_names
    found = {
        label(path): packages(tree) - standard for path, tree in PURE_TREES.items()
    }
    assert not {path: names for path, names in found.items() if names}


def test_pure_rooms_do_not_ask_for_devices():
    asked = {"device_count", "local_device_count", "devices", "local_devices"}
    assert not [label(p) for p, tree in PURE_TREES.items() if identifiers(tree) & asked]


def test_only_parallel_maps_over_devices_and_names_an_axis():
    def names_an_axis(node):
        named = isinstance(node, ast.keyword) and node.arg == "axis_name"
        constant = named and isinstance(node.value, ast.Constant)
        return constant and node.value.value is not None

    for path, tree in TREES.items():
        if path.name != "parallel.py":
            assert "pmap" not in identifiers(tree), label(path)
            assert not any(map(names_an_axis, ast.walk(tree))), label(path)


def test_derivative_rules_allow_forward_mode():
    for path, tree in TREES.items():
        assert "custom_vjp" not in identifiers(tree), label(path)


def test_tensorflow_and_torch_are_no_dependency():
    # The benchmarks measure against PyTorch, in modules of their own.
    trees = {p: tree for p, tree in TREES.items() if "torch" not in p.name}
    others = {"tensorflow", "torch", "keras"}
    found = [p for p, tree in trees.items() if packages(tree) & others]
    assert {room(path) for path in found} <= {"benchmarks"}


def test_a_module_is_one_idea_and_functions_are_short():
    for path, tree in TREES.items():
        lines = path.read_text().splitlines()
        declares = path.parent.name == "settings"  # a line for each word of a key
        assert len(lines) <= 500 or declares, label(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = code_lines(node, lines)
                # That of images is a list of operations with all their settings.
                most = 55 if node.name == "make_transformation" else 45
                assert count <= most, f"{label(path)}: {node.name} has {count} lines"


def test_a_name_of_a_module_stands_twice_only_for_one_subject():
    names = Counter(path.stem for path in MODULES if not path.stem.startswith("__"))
    assert {name for name, count in names.items() if count > 1} <= TWICE


def test_launch_is_short():
    assert len((ROOT / "launch.py").read_text().splitlines()) <= 120
    assert packages(LAUNCH) <= {PACKAGE, "absl"} | sys.stdlib_module_names


@pytest.mark.parametrize("name", LIGHT)
def test_an_import_is_light(name):
    command = [sys.executable, "-c", f"import sys, {name}; print(*sys.modules)"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = {name.split(".")[0] for name in done.stdout.split()}
    assert not found & {*LIGHT[name].split()}
