"""The configs: every key declared, documented and read; every variant resolves."""

import ast
import fnmatch
import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from configs import base
from invariance_jax.data import loading
from invariance_jax.training.settings import resolve

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*sorted((ROOT / "invariance_jax").rglob("*.py")), ROOT / "launch.py"]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))
RUNS = [name for name in NAMES if name != "base"]

# Names under which the code holds a configuration, nested or flat.
ROOTS = ("config", "settings", "values")


def label(path):
    return str(path.relative_to(ROOT))


def keys(config, prefix=""):
    """Yields the dotted names of the values of a configuration."""
    for name in config:
        if isinstance(config[name], ConfigDict):
            yield from keys(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def chain(node):
    """Returns `a.b.c` for the syntax tree of that expression, None for another.

    `a["b.c"]` is the same, and the open parts of `a[f"{b}_c"]` are stars.
    """
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        start, end = chain(node.value), node.attr
    elif isinstance(node, ast.Subscript):
        start, end = chain(node.value), text(node.slice)
    else:
        return None
    return start and end and f"{start}.{end}"


def text(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) or "*" for part in node.values)
    return None


def reads(path):
    """Returns the chains that a file reads, its local short names written out."""
    nodes = list(ast.walk(ast.parse(path.read_text(), str(path))))
    short = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = chain(node.value)
            if value and value.split(".")[0] in ROOTS:
                short.setdefault(node.targets[0].id, set()).add(value)
    found = set()
    for node in nodes:
        dotted = isinstance(node, ast.Attribute | ast.Subscript) and chain(node)
        if dotted and isinstance(node.ctx, ast.Load):
            first, rest = dotted.split(".", 1)
            found |= {f"{name}.{rest}" for name in short.get(first, ())} | {dotted}
    return found


READS = {path: reads(path) for path in SOURCES}

DECLARED = sorted(keys(base.get_config()))


def get_config(name):
    return importlib.import_module(f"configs.{name}").get_config


def variants(name):
    """Returns the variants of a config file, from what it says about an unknown one."""
    with pytest.raises(ValueError, match="'no such'; expected one of") as error:
        get_config(name)("no such")
    return re.findall(r"\w+", str(error.value).split("expected one of ")[1])


VARIANTS = [(name, variant) for name in RUNS for variant in variants(name)]


def configuration(name, variant):
    return get_config(name)(variant)


each_run = pytest.mark.parametrize(
    ("name", "variant"), VARIANTS, ids=[":".join(pair) for pair in VARIANTS]
)


def test_base_declares_keys():
    assert "penalty.weight" in DECLARED
    assert "checkpoints.keep_every_steps" in DECLARED


@pytest.mark.parametrize("key", DECLARED)
def test_every_key_is_read(key):
    # The bounds become one array when the config is resolved.
    key = "derived.bounds" if key.startswith("data.bounds.") else key
    everything = set().union(*READS.values())
    assert any(is_read(key, read) for read in everything)


def is_read(key, read):
    parts = read.split(".")
    ends = [".".join(parts[start:]) for start in range(len(parts))]
    # A function may be handed one section under its own name: `optimizer.momentum`.
    names = [f"{root}.{key}" for root in ROOTS] + [key] * ("." in key)
    return any(fnmatch.fnmatchcase(name, end) for name in names for end in ends)


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_every_key_that_is_read_is_declared(path):
    sections = {key.rsplit(".", depth)[0] for key in DECLARED for depth in range(3)}
    methods = {*dir(ConfigDict), *dir(dict)}
    for read in READS[path]:
        root, *parts = read.split(".")
        if root == "config":
            while parts and parts[-1] in methods:
                parts.pop()
            assert not parts or ".".join(parts) in sections, read


# A report reads the runs of other versions, whose keys may differ.
@pytest.mark.parametrize(
    "path", [p for p in SOURCES if "report" not in p.parts], ids=label
)
def test_no_default_hides_in_a_get(path):
    assert not {read for read in READS[path] if re.search(r"\bconfig.*\.get$", read)}


def test_every_key_has_a_comment():
    lines = inspect.getsource(base.get_config).splitlines()
    for above, line in zip(lines, lines[1:], strict=False):
        if re.match(r"    config\.\w+(\.\w+)* = (?!ConfigDict)", line):
            assert above.lstrip().startswith(("#", "config.")), line


@pytest.fixture(autouse=True)
def any_image_set(monkeypatch):
    """Describes every image set as CIFAR-10, since none is prepared here."""

    def describe(name, *, data_dir):
        return SimpleNamespace(
            name=name,
            image_shape=(32, 32, 3),
            num_classes=10,
            num_train=50_000,
            num_test=10_000,
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
        )

    monkeypatch.setattr(loading, "describe", describe)


@each_run
def test_config_changes_values_only(name, variant):
    assert sorted(keys(configuration(name, variant))) == DECLARED


@each_run
def test_config_resolves(name, variant):
    resolve(configuration(name, variant))


@each_run
def test_resolving_leaves_the_config_alone(name, variant):
    config = configuration(name, variant)
    before = config.to_json_best_effort()
    resolve(config)
    assert config.to_json_best_effort() == before


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_a_smoke_variant(name):
    assert "smoke" in variants(name)


@pytest.mark.parametrize("name", RUNS)
def test_header_gives_the_command(name):
    header = importlib.import_module(f"configs.{name}").__doc__
    assert f"python launch.py --config=configs/{name}.py" in header


@each_run
def test_header_gives_the_result_of_a_variant(name, variant):
    if variant == "smoke":
        pytest.skip("its result means nothing")
    header = importlib.import_module(f"configs.{name}").__doc__
    entry = re.search(rf"^  {variant}\b.*\n(?:    .*\n)*", header, re.MULTILINE)
    assert entry
    # Mean and standard error, or the admission that there is none.
    assert re.search(r"\d \+- \.?\d|not yet run", entry.group())


@pytest.mark.parametrize("name", RUNS)
def test_the_default_is_one_of_the_variants(name):
    default = get_config(name)().to_json_best_effort()
    every = [configuration(name, variant) for variant in variants(name)]
    assert default in [config.to_json_best_effort() for config in every]
