"""The configuration files: they resolve, say their commands, and every key is read."""

import ast
import csv
import importlib
import re
import tomllib
from pathlib import Path

import pytest

from configs.results import figures
from configs.sweeps import budget
from invariance_jax.settings import KEYS, flatten, resolve
from invariance_jax.transforms.spirograph import PARAMETERS

ROOT = Path(__file__).resolve().parents[1]
# By name: a file of a user's own beside them is none of ours.
RUNS = "cifar10 cifar100 fashion_mnist imagenet methods spirograph stamps".split()
EXAMPLES = ("align_and_spread", "convnext", "rotate_and_blur")
METRICS = ("MSE", "accuracy")
SOURCES = {*(ROOT / "invariance_jax").rglob("*.py")}
SOURCES -= {ROOT / "invariance_jax" / "settings" / "schema.py"}


def module(name):
    return importlib.import_module(f"configs.{name}")


def variants(name):
    """Returns the variants of a file, from what it says about an unknown one."""
    with pytest.raises(ValueError, match="'no such'; expected one of") as error:
        module(name).get_config("no such")
    return re.findall(r"\w+", str(error.value).split("expected one of ")[1])


VARIANTS = [(name, variant) for name in RUNS for variant in variants(name)]

each_run = pytest.mark.parametrize(
    ("name", "variant"), VARIANTS, ids=[":".join(pair) for pair in VARIANTS]
)


@pytest.fixture(scope="module")
def attributes():
    """Every name after a dot, and every text, in the package's code."""
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {*re.findall(r"\w+", node.value)}
    return found


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_read(key, attributes):
    # The bounds are read by the names of the parameters.
    name = key.split(".")[-1]
    assert name in attributes or name in PARAMETERS


@each_run
def test_a_variant_resolves(name, variant, tmp_path):
    config = module(name).get_config(variant)
    config.data.data_dir = str(tmp_path)
    before = flatten(config)
    assert resolve(config).derived.steps > 0
    assert flatten(config) == before
    # Nothing was read, downloaded or made.
    assert not list(tmp_path.iterdir())


@each_run
def test_runs_on_gpus_are_in_bfloat16(name, variant):
    on_gpu = variant in ("paper", "resnet18") or name in ("imagenet", "methods")
    expected = "bfloat16" if on_gpu else "float32"
    assert module(name).get_config(variant).precision in (
        (expected, "float32") if variant == "smoke" else (expected,)
    )


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("variant", ["quick", "smoke"])
def test_an_example_resolves(name, variant):
    example = module(f"examples.{name}")
    assert resolve(example.get_config(variant)).derived.steps > 0
    assert f"python launch.py --config=configs/examples/{name}.py" in example.__doc__


@pytest.mark.parametrize("name", RUNS)
def test_a_file_has_a_smoke_variant_and_a_default_and_says_its_command(name):
    assert "smoke" in variants(name)
    default = flatten(module(name).get_config())
    assert default in [flatten(module(name).get_config(v)) for v in variants(name)]
    assert f"python launch.py --config=configs/{name}.py" in module(name).__doc__


def test_the_figure_of_budgets_has_every_way():
    one_view, averaged = figures.budget().axes
    assert len(one_view.containers) == len(averaged.containers) == len(budget.WAYS)


def test_the_page_lists_every_sweep():
    index = tomllib.loads(Path("configs/results/index.toml").read_text())
    there = {path.stem for path in Path("configs/sweeps").glob("*.py")}
    assert there == {*index["sweeps"]["files"]}


def header(name, variant):
    """Returns what the header says of a variant, in one line."""
    entry = re.search(
        rf"^  {variant}\b.*\n(?:    .*\n)*", module(name).__doc__, re.MULTILINE
    )
    return " ".join(entry.group().split())


@each_run
def test_header_gives_the_result_of_a_variant(name, variant):
    if variant == "smoke":
        return  # its result means nothing
    # Mean and standard error, or the admission that there is none.
    assert re.search(r"\d \+- \.?\d|not yet run", header(name, variant))


@pytest.mark.parametrize(
    ("name", "variant", "file", "run"),
    [
        ("spirograph", "quick", "spirograph_winner", "penalty"),
        ("spirograph", "cpu", "spirograph_cpu", "`cpu`: MLP 3 x 1024, no penalty"),
        ("spirograph", "conv", "spirograph_conv_pairs", "the paper's penalty"),
        ("spirograph", "conv_plain", "spirograph_conv_pairs", "no penalty"),
        ("fashion_mnist", "quick", "fashion_quick", "penalty"),
        ("fashion_mnist", "quick_colorized", "fashion_colorized", "penalty"),
    ],
)
def test_header_gives_the_numbers_of_the_table(name, variant, file, run):
    text = header(name, variant).replace("Plain:", "plain images:")
    table = (ROOT / "configs" / "results" / f"{file}.csv").read_text()
    found = re.findall(r"(M = \d+|plain images): (\.\d+) \+- (\.\d+)", text)
    assert len(found) == 2
    for at, *numbers in found:
        (row,) = (
            row
            for row in csv.DictReader(table.splitlines())
            if (row["run"], row["at"]) == (run, at) and row["metric"] in METRICS
        )
        assert f"n = {row['n']} seeds" in text
        for number, column in zip(numbers, ("mean", "standard_error"), strict=True):
            digit = 10.0 ** (1 - len(number))  # the value of its last one
            exact = float(row[column] or number)  # the table lacks some errors
            assert abs(float(number) - exact) < 0.501 * digit
