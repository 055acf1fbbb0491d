"""Sweeps: variants, what is made or skipped, and what is gathered for a report."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from absl.testing import flagsaver
from finished_runs import change
from tiny import tiny_config

from configs import spirograph
from invariance_jax import evaluate, train
from invariance_jax.runs.results import aggregate
from invariance_jax.runs.workdir import check_same_run
from invariance_jax.runtime.files import call_in_file
from invariance_jax.settings import KEYS, flatten, resolve
from invariance_jax.sweeps import collect
from invariance_jax.sweeps import plan as sweeps
from invariance_jax.sweeps.variants import make_variants, read_sweep

pytestmark = pytest.mark.usefixtures("compiled_once")

ALONE = sweeps.Run(None, None, "")
SWEEPS = Path(spirograph.__file__).parent / "sweeps"
PROJECT = (
    *("baselines", "budget", "directions", "methods", "penalty_weight", "placement"),
    *("savings", "search", "search_conv", "search_images"),
)
SMALL = {"steps": 4, "checkpoints.every_steps": 4, "logging.probe_every_steps": 0}
GRID = {"penalty.weight": (0.0, 1), "seed": (0, 1)}
RUNS = [f"penalty.weight={w}/seed_{seed}" for w in ("0.0", "1.0") for seed in (0, 1)]
LABELS = {
    "no penalty": {"penalty.weight": 0},
    "base": {},
    "K = 4, log": {"penalty.directions": 4, "penalty.limit_shape": "log"},
}


def config(changes=None):
    return tiny_config({**SMALL, **(changes or {})})


# Those of the project by name: a user's own beside them is not tested.
@pytest.mark.parametrize("name", PROJECT)
def test_a_sweep_of_the_project_is_what_its_command_says(name):
    path = SWEEPS / f"{name}.py"
    text = path.read_text().split('"""')[1].replace("\\\n", "")
    (command,) = re.findall(r"^ +python launch.py (.*)$", text, re.MULTILINE)
    words = [word.partition("=") for word in shlex.split(command)]
    given = {flag: value for flag, _, value in words}
    assert given["--sweep"] == f"configs/sweeps/{name}.py"
    name, _, variant = given["--config"].partition(":")
    changed = {flag for flag in given if flag.startswith("--config.")}
    assert changed <= {f"--config.{key}" for key in KEYS}
    base = call_in_file(name, "get_config", variant)
    variants = make_variants(base, read_sweep(str(path)))
    first, *others = variants.values()
    assert first.settings.penalty.weight == 0 and len(others) > 2
    assert all(re.fullmatch(r"[\w.+=-]{1,60}", folder) for folder in variants)


@pytest.mark.parametrize(
    "name, metric, sign, kept",
    [("search", "mse", 1, 11), ("search_images", "accuracy", -1, 3)],
)
def test_a_search_goes_on_with_the_better_quarter(
    name, metric, sign, kept, tmp_path, monkeypatch
):
    path = str(SWEEPS / f"{name}.py")
    first, *labels = read_sweep(path)
    for number, label in enumerate(labels[1:]):  # of the first nothing is known
        means = {f"{metric}@{m}": {"mean": sign * ((number + m) % 47)} for m in (1, 8)}
        content = {"settings": {"num_views": [1, 8]}, "summary": means}
        (tmp_path / label).mkdir()
        (tmp_path / label / "results.json").write_text(json.dumps(content))
    monkeypatch.setenv("AFTER", str(tmp_path))
    found = read_sweep(path)
    assert [*found] == [first, *labels[1 : kept + 1]]


def write(path, sweep):
    path.write_text(f"def get_sweep():\n    return {sweep!r}\n")
    return str(path)


@pytest.fixture
def plan(tmp_path):
    """Returns a function: the plan of a sweep in the folder `sweep`."""

    def make(sweep, *, changes=None, mode="all", workdir=None, one=None):
        path = write(tmp_path / "grid.py", sweep)
        with flagsaver.flagsaver(sweep=path, sweep_run=one):
            folder = str(workdir or tmp_path / "sweep")
            return sweeps.plan(config(changes), folder, mode)

    return make


def names(plan):
    return [run.name for run in plan.runs]


def test_a_run_is_made_per_combination_and_seed_and_nothing_is_written(plan, tmp_path):
    found = plan(GRID)
    assert names(found) == RUNS
    assert [run.workdir for run in found.runs] == [
        str(tmp_path / "sweep" / name) for name in RUNS
    ]
    made = [(run.config.penalty.weight, run.config.seed) for run in found.runs]
    assert made == [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)]
    assert {run.config.seeds for run in found.runs} == {1}
    assert not (tmp_path / "sweep").exists()


def test_labels_name_the_variants(plan):
    found = plan(LABELS)
    assert names(found) == ["no_penalty", "base", "K_=_4_log"]
    penalties = [run.config.penalty for run in found.runs]
    values = [(penalty.weight, penalty.directions) for penalty in penalties]
    assert values == [(0, 1), (0.1, 1), (0.1, 4)]
    variants = found.record["variants"]
    assert [one["label"] for one in variants.values()] == [*LABELS]
    assert variants["base"]["config"]["penalty"]["weight"] == 0.1


@pytest.mark.parametrize(
    ("sweep", "changes", "expected"),
    [
        ({"penalty.weight": (0.1,)}, {}, ["penalty.weight=0.1"]),
        ({"penalty.weight": (0.1,), "seed": (3,)}, {}, ["penalty.weight=0.1"]),
        ({"seed": (0, 1), "steps": (4,)}, {}, ["steps=4/seed_0", "steps=4/seed_1"]),
        ({"one": {}}, {"seeds": 2, "seed": 5}, ["one/seed_5", "one/seed_6"]),
        ({"seed": (0, 1)}, {}, ["seed_0", "seed_1"]),
        ({"slurm": {}, "sweep.json": {}}, {}, ["slurm_", "sweep.json_"]),
        ({"config.json": {}, "report.html": {}}, {}, ["config.json_", "report.html_"]),
    ],
)
def test_seeds_have_folders_if_there_are_several(plan, sweep, changes, expected):
    assert names(plan(sweep, changes=changes)) == expected


def test_variants_change_what_the_sweep_says_and_nothing_else():
    base = config()
    grid = {"penalty.example_limit": (None, 2), "data.targets": [("m",), ("m", "b")]}
    variants = make_variants(base, grid)
    assert list(variants) == [
        "penalty.example_limit=none__data.targets=m",
        "penalty.example_limit=none__data.targets=m+b",
        "penalty.example_limit=2.0__data.targets=m",
        "penalty.example_limit=2.0__data.targets=m+b",
    ]
    before = flatten(base)
    for variant in variants.values():
        after = flatten(variant.config)
        assert {key for key in after if after[key] != before[key]} <= {*grid}
    label = "penalty.example_limit = 2, data.targets = ('m', 'b')"
    assert [*variants.values()][-1].label == label


def test_folders_are_short_and_need_no_quotes(plan):
    names = [f"{letter}, 'é' $HOME " + 300 * "x" for letter in "ab"]
    folders = [run.name for run in plan({name: {} for name in names}).runs]
    assert len({*folders}) == 2
    assert all(re.fullmatch(r"[\w.+=-]{1,100}", name, re.ASCII) for name in folders)


BOTH = "expected key -> its values, or label -> "


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ({"penalty.wieght": (1.0,)}, "penalty.wieght is not a key of a sweep; the cl"),
        ({"penalty": (1.0,)}, "penalty is not a key"),
        ({"seeds": (1, 2)}, "seeds is not a key of a sweep; the closest is seed"),
        ({"seed": (0, 2)}, r"seed is \(0, 2\); expected consecutive"),
        (
            {"penalty.weight": (0.1, -1.0)},
            "sweep: penalty.weight = -1.0: penalty.w",
        ),
        (
            {"a": {}, "b": {"penalty.weight": -1.0}},
            "sweep: b: penalty.weight is -1.0;",
        ),
        ({"batch_size": (16, "x")}, "batch_size is 'x'"),
        ({"penalty.weight": (0.1, 0.1)}, "expected each value once"),
        ({"penalty.weight": 0.1}, "penalty.weight is 0.1; expected a tuple"),
        ({"penalty.weight": ()}, "expected a tuple of values"),
        ({}, rf"grid\.py returns \{{\}}; {BOTH}"),
        (None, rf"grid\.py returns None; {BOTH}"),
        ({"a": {}, "penalty.weight": (1,)}, BOTH),
        ({"a b": {}, "a_b": {}}, "two variants have the folder a_b"),
        (
            {"seed": tuple(range(1001))},
            "the sweep has 1001 runs; expected at most 10",
        ),
        ({"steps": tuple(range(10**5))}, "the sweep has 100000 runs; expected at most"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_named_before_anything_is_written(plan, tmp_path, sweep, expected):
    with pytest.raises(ValueError, match=expected):
        plan(sweep)
    assert not (tmp_path / "sweep").exists()


def test_seeds_are_given_once(plan):
    with pytest.raises(ValueError, match=r"seeds is 2 and the grid has seed = \(0, 1"):
        plan(GRID, changes={"seeds": 2})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, r"is no file; expected a Python file"),
        ("", r"has no function get_sweep\(\)"),
        ("def get_sweep(:", r", line 1: SyntaxError: "),
        ("\nimport no_such_module", r", line 2: ModuleNotFoundError: No mod"),
        ("def get_sweep():\n    return 1 / 0", r"line 2: ZeroDivisionError: division"),
        ("def get_sweep():\n    raise SystemExit(3)", r"line 2: SystemExit: 3"),
        ("def get_sweep():\n    raise OSError('a\\nb')", r"line 2: OSError: a b"),
        ("\0", r": SyntaxError: source code string"),
        ("def get_sweep(a): pass", r": TypeError: .*missing 1 required"),
    ],
)
def test_whatever_the_file_does_is_one_line(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "grid.py").write_text(text)
    with pytest.raises(ValueError, match=f"grid.py.*{expected}") as caught:
        read_sweep(str(tmp_path / "grid.py"))
    assert "\n" not in str(caught.value)


def test_one_run_of_a_sweep_is_chosen_by_its_folder(plan):
    found = plan(GRID, one=RUNS[2])
    assert names(found) == [RUNS[2]]
    assert found.record is None
    with pytest.raises(ValueError, match="'penalty.weight=7/seed_0'; expected one of"):
        plan(GRID, one="penalty.weight=7/seed_0")
    with flagsaver.flagsaver(sweep_run="a"):
        with pytest.raises(ValueError, match="--sweep_run needs --sweep"):
            sweeps.plan(config(), "a", "all")


def test_without_a_sweep_the_run_is_the_one_that_was_asked_for(plan, tmp_path):
    (run,) = sweeps.plan(config({"seeds": 3}), str(tmp_path), "all").runs
    assert (run.name, run.workdir, run.config.seeds) == (None, str(tmp_path), 3)


@pytest.fixture(scope="module")
def made(compiled_once, tmp_path_factory):
    """A sweep of two weights and two seeds, all evaluated."""
    folder = tmp_path_factory.mktemp("made")
    with flagsaver.flagsaver(sweep=write(folder / "grid.py", GRID)):
        found = sweeps.plan(config(), str(folder / "sweep"), "all")
        sweeps.begin(found)
        for run in found.runs:
            train.run(run.config, run.workdir)
            evaluate.run(run.config, run.workdir)
    return folder / "sweep"


@pytest.fixture
def copy(made, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(made, tmp_path / "sweep")


def test_finished_runs_are_skipped(plan, copy, caplog):
    (copy / RUNS[1] / "results.json").unlink()
    with caplog.at_level("INFO", logger="invariance_jax"):
        assert names(plan(GRID)) == [RUNS[1]]
    assert f"{RUNS[0]}: finished, skipped" in caplog.text
    assert names(plan(GRID, mode="train")) == RUNS


def test_one_run_of_a_sweep_reads_the_results_of_no_other(plan, copy):
    (copy / RUNS[0] / "results.json").write_text("{")
    (copy / RUNS[1] / "results.json").unlink()
    assert names(plan(GRID, one=RUNS[1])) == [RUNS[1]]
    with pytest.raises(ValueError, match="results.json"):
        plan(GRID)


def test_a_larger_grid_makes_what_is_new(plan, copy):
    grid = {"penalty.weight": (0.0, 0.5, 1.0), "seed": (0, 1)}
    new = [f"penalty.weight=0.5/seed_{seed}" for seed in (0, 1)]
    assert names(plan(grid)) == new


EVALUATED = {"evaluation.num_views": (1, 2), "evaluation.split": "validation"}
EVALUATED |= {"data.test_examples": 50}


@pytest.mark.parametrize("key", EVALUATED)
def test_runs_that_were_evaluated_otherwise_are_not_finished(plan, copy, key):
    assert names(plan(GRID, changes={key: EVALUATED[key]})) == RUNS


def test_another_training_key_is_refused(plan, copy):
    with pytest.raises(ValueError, match="holds a run with temperature = 0.2, found"):
        plan(GRID, changes={"temperature": 0.3})


def test_a_folder_holds_one_sweep_and_parts_of_it(plan, copy):
    for sweep in ({"temperature": (0.2, 0.3)}, {"penalty.weight": (1.0, 2.0)}):
        with pytest.raises(ValueError, match=r"a sweep with penalty.weight=0.0.*lacks"):
            plan(sweep)
    assert names(plan({"penalty.weight": (1.0,), "seed": (0, 1)})) == []


def test_a_run_and_a_sweep_do_not_share_a_folder(plan, made):
    with pytest.raises(ValueError, match="holds a run; a sweep needs another workdir"):
        plan(GRID, workdir=made / RUNS[0])


def test_a_run_in_the_folder_of_a_sweep_is_refused(plan):
    found = plan(GRID)
    sweeps.begin(found)
    for mode in ("all", "evaluate"):
        with pytest.raises(ValueError, match="holds a sweep; give its --sweep, or an"):
            sweeps.plan(config(), found.workdir, mode)


@pytest.mark.parametrize("sweep", [GRID, {"seed": (0, 1)}])
def test_a_sweep_writes_over_no_other_report(plan, tmp_path, sweep):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ValueError, match=r"holds report\.html but no config\.json"):
        plan(sweep, workdir=tmp_path)


def test_a_run_over_seeds_and_a_sweep_of_these_seeds_share_a_folder(plan):
    found = plan({"seed": (0, 1)})
    sweeps.begin(found)
    again = sweeps.plan(config({"seeds": 2}), found.workdir, "all")
    assert again.workdir == found.workdir


def test_results_without_settings_are_named(plan, copy):
    change(copy / RUNS[0] / "results.json", lambda content: content.pop("settings"))
    with pytest.raises(ValueError, match=r"results\.json has no settings; remove it"):
        plan(GRID, workdir=copy)


@pytest.mark.parametrize("writes", [True, False])
def test_parts_of_all_runs_are_checked_before_the_first(plan, tmp_path, writes):
    kwargs = {"method.name": "byol", "method.kwargs": {"momentun": 0.9}}
    with pytest.raises(ValueError, match=r"^sweep: typo: method\.kwargs has momentun"):
        sweeps.start(plan({"right": {}, "typo": kwargs}), writes=writes)
    assert not (tmp_path / "sweep").exists()
    sweeps.start(found := plan(GRID), writes=writes)
    assert (Path(found.workdir) / "sweep.json").exists() == writes


def test_a_run_that_diverges_does_not_stop_the_others(plan):
    errors, found = [], plan(GRID)
    for run in found.runs:
        with sweeps.divergence_noted(found, run, errors):
            if run.config.seed == 0:
                raise FloatingPointError("loss is not finite")
    assert errors == [f"{name}: loss is not finite" for name in (RUNS[0], RUNS[2])]
    with pytest.raises(FloatingPointError), sweeps.divergence_noted(found, ALONE, []):
        raise FloatingPointError


def test_the_variants_are_aggregated_over_their_seeds(copy):
    variants = collect.finished([str(copy)])
    for variant, weight in zip(variants, (0.0, 1.0), strict=True):
        assert variant.name == f"penalty.weight={weight}"
        found, *seeds = (
            json.loads((variant / folder / "results.json").read_text())
            for folder in ("", "seed_0", "seed_1")
        )
        assert found["summary"] == aggregate(seeds)["summary"]
        assert found["seeds"] == [0, 1] and found["summary"]["mse@1"]["n"] == 2
        whole = config({"seeds": 2, "penalty.weight": weight})
        check_same_run(resolve(whole), variant)


def test_an_unfinished_variant_is_left_out_and_named(copy, caplog):
    (copy / RUNS[1] / "results.json").unlink()
    with caplog.at_level("WARNING", logger="invariance_jax"):
        (variant,) = collect.finished([str(copy)])
    assert variant.name == "penalty.weight=1.0"
    assert f"{copy / RUNS[1]}: not finished, left out" in caplog.text
    text = "penalty.weight=0.0 is not finished; variants are compared to penalty.wei"
    assert text in caplog.text
    assert not (copy / "penalty.weight=0.0" / "results.json").exists()


def test_a_finished_sweep_of_seeds_alone_logs_no_warning(copy, caplog):
    content, parent = json.loads((copy / "sweep.json").read_text()), copy / "seeds"
    (copy / "penalty.weight=0.0").rename(parent)
    content["variants"] = {".": content["variants"]["penalty.weight=0.0"]}
    (parent / "sweep.json").write_text(json.dumps(content))
    collect.finished([str(parent)])
    assert not caplog.text


def test_a_run_that_was_evaluated_on_its_way_is_not_finished(copy):
    change(copy / RUNS[0] / "results.json", lambda c: c["settings"].update(step=2))
    (variant,) = collect.finished([str(copy)])
    assert variant.name == "penalty.weight=1.0"


def test_a_sweep_without_a_finished_variant_has_no_report(copy):
    for name in RUNS:
        (copy / name / "results.json").unlink()
    with pytest.raises(ValueError, match="none of the 2 variants is finished"):
        collect.finished([str(copy)])


@pytest.mark.parametrize(
    ("file", "part", "key", "expected"),
    [
        ("config", "config", "temperature", "has temperature = 9.0; expected 0.2"),
        ("results", "settings", "l2", "was evaluated with evaluation.l2 = 9.0; ex"),
    ],
)
def test_a_seed_that_is_not_as_the_others_is_refused(copy, file, part, key, expected):
    path = copy / RUNS[1] / f"{file}.json"
    change(path, lambda content: content[part].update({key: 9.0}))
    with pytest.raises(ValueError, match=f"{re.escape(RUNS[1])} {expected}"):
        collect.finished([str(copy)])
    assert not (copy / "penalty.weight=0.0" / "results.json").exists()


def test_other_work_directories_stay_as_they_are(copy, tmp_path):
    run = copy / RUNS[0]
    found = collect.finished([str(run), str(copy), "elsewhere"])
    both = ["penalty.weight=0.0", "penalty.weight=1.0"]
    assert [path.name for path in found] == ["seed_0", *both, "elsewhere"]


DAMAGED = ("", "[]", '{"format": 2', '{"format": 2, "variants": {"a": 3}}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, r"sweep\.json cannot be read") for text in DAMAGED),
        ('{"format": 1}', "has format 1, this version reads 2"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(copy, text, expected):
    (copy / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=expected):
        collect.finished([str(copy)])
