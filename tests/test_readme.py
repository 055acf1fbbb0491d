"""What the README shows works: snippets run, commands, keys and links exist."""

import ast
import functools
import importlib
import operator
import re
import runpy
import shlex
from pathlib import Path

import pytest

from configs import base
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.workdir import claim
from invariance_jax.training.settings import flatten, resolve
from invariance_jax.training.start import initial_state

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LAUNCH = (ROOT / "launch.py").read_text(encoding="utf-8")
CLUSTER = sorted((ROOT / "invariance_jax" / "cluster").glob("*.py"))
SOURCES = "".join([LAUNCH, *(path.read_text(encoding="utf-8") for path in CLUSTER)])
FLAGS = set(re.findall(r'DEFINE_\w+\(\s*"([\w-]+)"', SOURCES))
DECLARED = dict(flatten(base.get_config()))

# (language and what follows it, code) of every block.
BLOCKS = re.findall(r"^```([^\n]*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [code for info, code in BLOCKS if info.split()[:1] == ["python"]]
COMMANDS = [
    line.strip()
    for info, code in BLOCKS
    if info.split()[:1] in (["bash"], ["sh"], ["console"])
    for line in code.replace("\\\n", " ").splitlines()
    if line.strip() and not line.lstrip().startswith("#")
]
LAUNCHES = [line for line in COMMANDS if "launch.py" in line]


def configuration(spec):
    path, _, variant = spec.partition(":")
    get_config = runpy.run_path(str(ROOT / path))["get_config"]
    return get_config(variant) if variant else get_config()


def test_the_readme_has_snippets_and_commands():
    assert PYTHON
    assert len(LAUNCHES) >= 2


def test_snippets_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The run that a snippet loads, before its first step.
    settings = resolve(configuration("configs/spirograph.py:quick"))
    checkpoints = Checkpoints(claim(settings, "runs/quick"))
    checkpoints.save(0, initial_state(settings))
    checkpoints.close()
    names = {"__name__": "readme"}
    for number, code in enumerate(PYTHON):
        exec(compile(code, f"README.md, snippet {number + 1}", "exec"), names)
        if "get_config" in names:  # a configuration of one's own
            assert resolve(names.pop("get_config")()).epochs == 10
    # The set that a snippet prepared goes with the command that names it.
    (command,) = [line for line in LAUNCHES if "data.name=mine" in line]
    flags = dict(word.lstrip("-").split("=", 1) for word in shlex.split(command)[2:])
    config = configuration(flags["config"])
    for key, value in flags.items():
        if key.startswith("config."):
            *sections, name = key.split(".")[1:]
            section = functools.reduce(operator.getitem, sections, config)
            text = re.fullmatch(r"[\d(].*", value)
            section[name] = ast.literal_eval(value) if text else value
    assert resolve(config).data.num_classes == 4


@pytest.mark.parametrize("command", LAUNCHES)
def test_a_launch_command_is_valid(command):
    words = shlex.split(command, comments=True)
    start = words.index("launch.py")
    assert words[start - 1] == "python"
    given = [word.lstrip("-") for word in words[start + 1 :]]
    assert {word for word in given if "=" not in word} <= {"dry_run"}
    flags = dict(word.split("=", 1) for word in given if "=" in word)
    assert {name for name in flags if not name.startswith("config.")} <= FLAGS
    assert ("workdir" in flags) != (flags.get("mode") == "check")
    if "config" in flags:
        values = dict(flatten(configuration(flags["config"])))
        keys = {name.removeprefix("config.") for name in flags if "config." in name}
        assert keys <= {*values}
    else:
        assert flags["mode"] in ("evaluate", "report", "embed")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_starts_something_that_is_there(command):
    words = shlex.split(command, comments=True)
    if "-m" in words:
        module = words[words.index("-m") + 1]
        assert importlib.util.find_spec(module)
        scripts = []
    else:
        scripts = [w for w in words if re.fullmatch(r"[^-].*\.(py|sh)", w)]
    for script in scripts:
        assert (ROOT / script).is_file()


def test_the_extras_that_are_installed_exist():
    setup = (ROOT / "setup.py").read_text()
    for extras in re.findall(r"pip install [^\n]*\[([\w,]+)\]", README):
        for extra in extras.split(","):
            assert f'"{extra}": [' in setup


def test_the_variants_of_the_table_exist():
    rows = re.findall(r"^\| `(\w+)` +\| `?([\w()]+)`? .*(?:core|GPU|TPU)", README, re.M)
    assert len(rows) >= 8
    for name, variant in rows:
        spec = f"configs/{name}.py"
        configuration(spec if variant == "(default)" else f"{spec}:{variant}")


def test_the_flags_of_the_tables_are_those_of_the_program():
    section = README[README.index("## Clusters") : README.index("## Batch statistics")]
    rows = re.findall(r"^\| (`--.*?) \|", section, re.MULTILINE)
    named = set(re.findall(r"`--(\w+)`", " ".join(rows)))
    paths = [path for path in CLUSTER if path.stem in ("options", "sweeps")]
    sources = "".join(path.read_text(encoding="utf-8") for path in paths)
    assert named == set(re.findall(r'DEFINE_(?!alias)\w+\(\s*"(\w+)"', sources))


def test_the_modes_of_the_table_are_those_of_the_program():
    modes = re.search(r"^MODES = \((.*)\)", LAUNCH, re.MULTILINE).group(1)
    named = re.findall(
        r"^\| `(all|train|evaluate|report|embed|check)`", README, re.MULTILINE
    )
    assert sorted(named) == sorted(re.findall(r'"(\w+)"', modes))


def test_the_keys_that_are_named_are_declared():
    sections = {key.split(".")[0] for key in DECLARED if "." in key}
    named = set(re.findall(r"`(?:--config\.)?(\w+(?:\.\w+)+)(?: ?=[^`]*)?`", README))
    named = {name for name in named if name.split(".")[0] in sections}
    starts = {key.rsplit(".", depth)[0] for key in DECLARED for depth in range(3)}
    assert named <= starts | {"config.json", "metrics.jsonl"}
    assert named


def test_links_and_pictures_within_the_project_exist():
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", README)
    targets += re.findall(r'(?:src|href)="([^"#]+)"', README)
    for target in targets:
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"PLACEHOLDER|TODO|XXX", README)
