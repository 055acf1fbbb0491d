"""What the pages show works: links, snippets, commands, keys, and the page of runs."""

import contextlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

import launch
from configs.results import page
from invariance_jax.benchmarks import timing
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.workdir import claim
from invariance_jax.runtime.startup import parse
from invariance_jax.settings import KEYS, resolve
from invariance_jax.training.build import build, initial_state

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in "README.md configs/*.md invariance_jax/*/*.md .github/*.md".split()
    for path in sorted(ROOT.glob(pattern))
}
README = PAGES["README.md"]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


LAUNCHES = [
    line.strip()
    for text in PAGES.values()
    for block in blocks(text, "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if "launch.py" in line
]
LAUNCHES += re.findall(r"`(python launch\.py [^`]*)`", README)

# ml_collections loads a configuration by a method that Python 3.12 may lack.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

each_page = pytest.mark.parametrize("name", PAGES)


def test_the_readme_is_short_and_says_what_ci_runs():
    assert 12_000 <= len(README.encode()) <= 15_000
    long = [x for x in README.splitlines() if len(x) > 100 and not x.startswith("|")]
    assert long == []
    assert "python -m pip install -e '.[test]'\n" in README
    assert "`python -m pytest`" in README
    assert len(LAUNCHES) > 10


def test_the_page_of_runs_is_what_its_generator_makes():
    assert PAGES["configs/README.md"] == page.make_page()


@pytest.mark.parametrize("name", ["results", "results_methods"])
def test_the_page_of_speed_shows_the_tables_of_its_results(name):
    folder = "invariance_jax/benchmarks"
    results = json.loads((ROOT / folder / f"{name}.json").read_text())
    assert timing.table(results["rows"]) in PAGES[f"{folder}/README.md"]
    assert f"`{results['machine']['git_commit'][:7]}`" in PAGES[f"{folder}/README.md"]


@pytest.mark.parametrize(
    "low, high, sign, verdict",
    [
        ("-0.3", "-0.1", "-", "holds"),
        ("0.1", "0.3", "-", "the opposite"),
        ("0.1", "0.3", "+", "holds"),
        ("-0.3", "-0.1", "+", "the opposite"),
        ("-0.1", "0.1", "-", "not significant"),
        ("", "", "-", "one seed"),
    ],
)
def test_a_claim_holds_where_its_interval_has_its_sign(low, high, sign, verdict):
    row = {"difference": "-0.2", "low": low, "high": high}
    ends = f" ({float(low) * 50:+.0f} % to {float(high) * 50:+.0f} %)" if low else ""
    assert page.change(row, 2.0, sign) == (f"-10 %{ends}", verdict)
    assert page.change(row, None, sign)[0].startswith("-20.0 points")


def test_no_change_is_below_minus_100_percent():
    row = {"difference": "0.30", "low": "-0.20", "high": "0.80"}
    assert page.change(row, 0.2, "-")[0] == "+150 % (-100 % to +400 %)"
    expected = "+0.30 (-0.20 to +0.80) from 0.15", "not significant"
    assert page.change(row, 0.15, "-") == expected


def anchors(text):
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@each_page
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (ROOT / name).parent / path if path else ROOT / name
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), target


@each_page
def test_nothing_is_left_to_fill_in(name):
    assert not re.search(r"PLACEHOLDER|TODO|XXX", PAGES[name])


@pytest.mark.parametrize("name", [n for n in PAGES if blocks(PAGES[n], "python")])
def test_snippets_run_one_after_the_other(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for number, code in enumerate(blocks(PAGES[name], "python")):
        if 'load("runs/quick")' in code:
            untrained_run("configs/spirograph.py:quick", "runs/quick")
        exec(compile(code, f"{name}, snippet {number + 1}", "exec"), names)
        if "get_config" in names:
            assert resolve(names.pop("get_config")()).epochs == 10


def untrained_run(config, workdir):
    command = f"python launch.py --config={ROOT}/{config} --workdir={workdir}"
    settings = resolve(parsed(command))
    with contextlib.closing(Checkpoints(claim(settings, workdir).workdir)) as saved:
        saved.save(0, initial_state(build(settings)))


def parsed(command):
    """Returns the configuration of a command, whose flags the program knows."""
    words = shlex.split(command, comments=True)
    before = sys.argv[:]
    try:
        with flagsaver.flagsaver():
            parse(words[words.index("launch.py") :])
            assert flags.FLAGS.mode in launch.MODES
            assert flags.FLAGS.workdir or flags.FLAGS.mode in ("check", "keys")
            return flags.FLAGS.config
    finally:
        sys.argv[:] = before


@pytest.mark.parametrize("command", LAUNCHES)
def test_a_launch_command_is_one_of_the_program(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parsed(command)
    # Parts, sets and files of the reader's own are not here.
    if config is not None and not re.search(r"my_|mine|flowers|weights=\w", command):
        assert resolve(config).derived.steps > 0


@each_page
def test_modes_flags_and_keys_that_are_named_exist(name):
    text = re.sub(r"```text\n.*?```", "", PAGES[name], flags=re.DOTALL)
    modes = re.findall(r"--mode=(\w+)", text)
    assert {*modes} <= {*launch.MODES}
    keys = [key for key in re.findall(r"--config\.([\w.]+)=", text) if key != "KEY"]
    sections = {key.split(".")[0] for key in KEYS if "." in key}
    code = re.findall(r"`([\w.]+)`", text)
    keys += [key for key in code if "." in key and key.split(".")[0] in sections]
    if name != ".github/CHANGELOG.md":
        assert {*keys} <= {*KEYS, "config.json"}


def test_the_flags_of_a_cluster_are_all_explained():
    text = PAGES["invariance_jax/slurm/README.md"]
    rows = " ".join(re.findall(r"^\| (`--.*?) \|", text, re.MULTILINE))
    declared = flags.FLAGS.flags_by_module_dict()["invariance_jax.slurm.options"]
    names = {one.name for one in declared} - {"dry-run"}  # its alias
    assert {*re.findall(r"`--(\w+)`", rows)} == names


def test_the_extras_that_are_installed_exist():
    setup = (ROOT / "setup.py").read_text()
    for extra in re.findall(r"pip install -e '\.\[(\w+)\]'", "".join(PAGES.values())):
        assert f'"{extra}": [' in setup
