"""Sweeps: grids, what is made, what is skipped, and what is gathered for the report."""

import json
import re
import shutil
from pathlib import Path

import pytest
from absl.testing import flagsaver
from tiny import tiny_config

from configs import spirograph
from invariance_jax import evaluate, train
from invariance_jax.runs.workdir import check_same_run, one_per_seed
from invariance_jax.sweeps import collect
from invariance_jax.sweeps import plan as sweeps
from invariance_jax.sweeps.grid import make_points, read_grid
from invariance_jax.training.settings import flatten, resolve

pytestmark = pytest.mark.usefixtures("compiled_once")

SWEEPS = sorted((Path(spirograph.__file__).parent / "sweeps").glob("*.py"))
SMALL = {"steps": 4, "checkpoints.every_steps": 4, "logging.probe_every_steps": 0}
GRID = {"penalty.weight": (0.0, 1), "seed": (0, 1)}
RUNS = [f"penalty.weight={w}/seed_{seed}" for w in ("0.0", "1.0") for seed in (0, 1)]


def config(changes=None):
    return tiny_config({**SMALL, **(changes or {})})


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_point_of_a_sweep_of_the_project_resolves(path):
    points = make_points(spirograph.get_config("quick"), read_grid(str(path)))
    assert len(points) > 1
    for point in points.values():
        resolve(point)


def write(path, grid):
    path.write_text(f"def get_sweep():\n    return {grid!r}\n")
    return str(path)


@pytest.fixture
def plan(tmp_path):
    """Returns a function: the plan of a grid in the folder `sweep`."""

    def make(grid, *, changes=None, mode="all", workdir=None, one=None):
        path = write(tmp_path / "grid.py", grid)
        with flagsaver.flagsaver(sweep=path, sweep_run=one):
            return sweeps.plan(
                config(changes), str(workdir or tmp_path / "sweep"), mode
            )

    if not sweeps.flags.FLAGS.is_parsed():
        sweeps.flags.FLAGS.mark_as_parsed()
    return make


def names(plan):
    return [run.name for run in plan.runs]


def test_a_point_is_made_per_combination_and_seed(plan, tmp_path):
    found = plan(GRID)
    assert names(found) == RUNS
    assert [run.workdir for run in found.runs] == [
        str(tmp_path / "sweep" / name) for name in RUNS
    ]
    made = [(run.config.penalty.weight, run.config.seed) for run in found.runs]
    assert made == [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)]
    assert {run.config.seeds for run in found.runs} == {1}


def test_planning_writes_nothing(plan, tmp_path):
    plan(GRID)
    assert not (tmp_path / "sweep").exists()


def test_a_point_with_one_seed_is_the_run_itself(plan):
    assert names(plan({"penalty.weight": (0.1,)})) == ["penalty.weight=0.1"]
    assert names(plan({"penalty.weight": (0.1,), "seed": (3,)})) == [
        "penalty.weight=0.1"
    ]


def test_the_seeds_of_the_configuration_are_those_of_every_point(plan):
    found = plan({"penalty.weight": (0.1,)}, changes={"seeds": 2, "seed": 5})
    assert names(found) == ["penalty.weight=0.1/seed_5", "penalty.weight=0.1/seed_6"]


def test_a_sweep_over_seeds_alone_has_the_layout_of_a_run_over_seeds(plan, tmp_path):
    found = plan({"seed": (0, 1)})
    each = one_per_seed(config({"seeds": 2}), tmp_path / "sweep")
    assert [run.workdir for run in found.runs] == [str(path) for _, path in each]


def test_points_change_what_the_grid_says_and_nothing_else():
    base = config()
    grid = {"penalty.example_limit": (None, 2), "data.targets": [("m",), ("m", "b")]}
    points = make_points(base, grid)
    assert list(points) == [
        "penalty.example_limit=none,data.targets=m",
        "penalty.example_limit=none,data.targets=m+b",
        "penalty.example_limit=2.0,data.targets=m",
        "penalty.example_limit=2.0,data.targets=m+b",
    ]
    before = dict(flatten(base))
    for point in points.values():
        after = dict(flatten(point))
        assert {key for key in after if after[key] != before[key]} <= {*grid}
        resolve(point)
    assert points["penalty.example_limit=2.0,data.targets=m"].data.targets == ("m",)


MISTAKES = {
    "unknown key": (
        {"penalty.wieght": (1.0,)},
        "penalty.wieght is not a key; the closest is penalty.weight",
    ),
    "a section": ({"penalty": (1.0,)}, "penalty is not a key"),
    "seeds": ({"seeds": (1, 2)}, "seeds is not a key; the closest is seed"),
    "gap of seeds": ({"seed": (0, 2)}, r"seed is \(0, 2\); expected consecutive"),
    "bad value": (
        {"penalty.weight": (0.1, -1.0)},
        r"sweep: penalty.weight=-1.0: penalty.weight is -1.0; expected",
    ),
    "bad type": ({"batch_size": (16, "x")}, "batch_size=x: batch_size is 'x'"),
    "value twice": ({"penalty.weight": (0.1, 0.1)}, "expected each value once"),
    "no tuple": ({"penalty.weight": 0.1}, "penalty.weight is 0.1; expected a tuple"),
    "no values": ({"penalty.weight": ()}, "expected a tuple of values"),
    "empty": ({}, r"grid\.py returns \{\}; expected key -> values"),
    "same folder": (
        {"encoder.weights": ("a b", "a_b")},
        "two points have the folder encoder.weights=a_b",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(plan, tmp_path, name):
    grid, expected = MISTAKES[name]
    with pytest.raises(ValueError, match=expected):
        plan(grid)
    assert not (tmp_path / "sweep").exists()


def test_seeds_are_given_once(plan):
    with pytest.raises(ValueError, match=r"seeds is 2 and the grid has seed = \(0, 1"):
        plan(GRID, changes={"seeds": 2})


def test_the_sweep_must_be_a_file_with_the_function(tmp_path):
    with pytest.raises(ValueError, match=r"none\.py; expected a Python file"):
        read_grid(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"has no function get_sweep\(\)"):
        read_grid(str(tmp_path / "empty.py"))


def test_one_run_of_a_sweep_is_chosen_by_its_folder(plan):
    found = plan(GRID, one=RUNS[2])
    assert names(found) == [RUNS[2]]
    assert found.record is None


def test_an_unknown_run_of_a_sweep_names_the_others(plan):
    with pytest.raises(ValueError, match="'penalty.weight=7/seed_0'; expected one of"):
        plan(GRID, one="penalty.weight=7/seed_0")


def test_one_run_needs_the_sweep(plan):
    with flagsaver.flagsaver(sweep_run="a"):
        with pytest.raises(ValueError, match="--sweep_run needs --sweep"):
            sweeps.plan(config(), "a", "all")


def test_without_a_sweep_the_run_is_the_one_that_was_asked_for(plan):
    (run,) = sweeps.plan(config({"seeds": 3}), "a", "all").runs
    assert (run.name, run.workdir, run.config.seeds) == (None, "a", 3)


def evaluated(config, workdir):
    """Leaves what a run and its evaluation leave, quickly."""
    train.run(config, workdir)
    evaluate.run(config, workdir)


@pytest.fixture(scope="module")
def made(compiled_once, tmp_path_factory):
    """A sweep of two weights and two seeds, all evaluated."""
    folder = tmp_path_factory.mktemp("made")
    if not sweeps.flags.FLAGS.is_parsed():
        sweeps.flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(sweep=write(folder / "grid.py", GRID)):
        found = sweeps.plan(config(), str(folder / "sweep"), "all")
        sweeps.run_each(found, evaluated)
    return folder / "sweep"


@pytest.fixture
def copy(made, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(made, tmp_path / "sweep")


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_finished_runs_are_skipped(plan, copy, caplog):
    (copy / RUNS[1] / "results.json").unlink()
    with caplog.at_level("INFO", logger="invariance_jax"):
        assert names(plan(GRID)) == [RUNS[1]]
    assert f"{RUNS[0]}: finished, skipped" in caplog.text


def test_training_alone_skips_nothing(plan, copy):
    assert names(plan(GRID, mode="train")) == RUNS


def test_a_larger_grid_makes_what_is_new(plan, copy):
    grid = {"penalty.weight": (0.0, 0.5, 1.0), "seed": (0, 1)}
    new = [f"penalty.weight=0.5/seed_{seed}" for seed in (0, 1)]
    assert names(plan(grid)) == new


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation.l2": 1e-2},
        {"evaluation.num_views": (1, 2)},
        {"evaluation.train_examples": 100},
        {"evaluation.split": "validation"},
        {"data.test_examples": 50},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_runs_that_were_evaluated_otherwise_are_not_finished(plan, copy, changes):
    assert names(plan(GRID, changes=changes)) == RUNS


def test_another_training_key_is_refused(plan, copy):
    with pytest.raises(ValueError, match="holds a run with temperature = 0.2, found"):
        plan(GRID, changes={"temperature": 0.3})


def test_a_folder_holds_sweeps_over_the_same_keys(plan, copy):
    with pytest.raises(ValueError, match="a sweep over penalty.weight, found temp"):
        plan({"temperature": (0.2, 0.3)})


def test_a_run_and_a_sweep_do_not_share_a_folder(plan, made):
    with pytest.raises(ValueError, match="holds a run; a sweep needs another workdir"):
        plan(GRID, workdir=made / RUNS[0])


def test_a_run_that_diverges_does_not_stop_the_others(plan):
    done = []

    def program(config, workdir):
        done.append(workdir)
        if config.seed == 0:
            raise FloatingPointError("loss is not finite")

    found = plan(GRID)
    with pytest.raises(FloatingPointError) as caught:
        sweeps.run_each(found, program)
    assert done == [run.workdir for run in found.runs]
    assert str(caught.value).count("loss is not finite") == 2
    assert f"{RUNS[2]}: loss" in str(caught.value)


def test_the_points_are_aggregated_over_their_seeds(copy):
    points = collect.finished([str(copy)])
    assert [path.name for path in points] == [
        "penalty.weight=0.0",
        "penalty.weight=1.0",
    ]
    for point, weight in zip(points, (0.0, 1.0), strict=True):
        results = json.loads((point / "results.json").read_text())
        each = [
            json.loads((point / f"seed_{seed}" / "results.json").read_text())
            for seed in (0, 1)
        ]
        values = [one["summary"]["mse@1"]["mean"] for one in each]
        found = results["summary"]["mse@1"]
        assert found["mean"] == pytest.approx(sum(values) / 2)
        error = abs(values[0] - values[1]) / 2
        assert found["standard_error"] == pytest.approx(error)
        assert (found["n"], results["seeds"]) == (2, [0, 1])
        whole = config({"seeds": 2, "penalty.weight": weight})
        check_same_run(resolve(whole), point)


def test_the_folder_of_a_point_is_that_of_a_run_over_seeds(copy):
    (point, _) = collect.finished([str(copy)])
    before = json.loads((point / "results.json").read_text())
    after = evaluate.run(None, point)
    assert after["summary"] == before["summary"]


def test_an_unfinished_point_is_left_out_and_named(copy, caplog):
    (copy / RUNS[1] / "results.json").unlink()
    with caplog.at_level("WARNING", logger="invariance_jax"):
        (point,) = collect.finished([str(copy)])
    assert point.name == "penalty.weight=1.0"
    assert f"{copy / RUNS[1]}: not finished, left out" in caplog.text
    assert not (copy / "penalty.weight=0.0" / "results.json").exists()


def test_a_run_that_was_evaluated_on_its_way_is_not_finished(copy):
    edit(copy / RUNS[0] / "results.json", lambda c: c["settings"].update(step=2))
    assert [path.name for path in collect.finished([str(copy)])] == [
        "penalty.weight=1.0"
    ]


def test_a_sweep_without_a_finished_point_has_no_report(copy):
    for name in RUNS:
        (copy / name / "results.json").unlink()
    with pytest.raises(ValueError, match="none of the 2 points is finished"):
        collect.finished([str(copy)])


def test_seeds_that_differ_by_more_than_the_seed_are_refused(copy):
    path = copy / RUNS[1] / "config.json"
    edit(path, lambda content: content["config"].update(temperature=0.3))
    expected = rf"{re.escape(RUNS[1])} has temperature = 0.3; expected 0.2"
    with pytest.raises(ValueError, match=expected):
        collect.finished([str(copy)])
    assert not (copy / "penalty.weight=0.0" / "results.json").exists()


def test_runs_that_were_evaluated_in_different_ways_are_refused(copy):
    path = copy / RUNS[1] / "results.json"
    edit(path, lambda content: content["settings"].update(l2=0.5))
    expected = rf"{re.escape(RUNS[1])} was evaluated with evaluation.l2 = 0.5; expected"
    with pytest.raises(ValueError, match=expected):
        collect.finished([str(copy)])


def test_other_work_directories_stay_as_they_are(copy, tmp_path):
    run = copy / RUNS[0]
    found = collect.finished([str(run), str(copy), "elsewhere"])
    assert [path.name for path in found] == [
        "seed_0",
        "penalty.weight=0.0",
        "penalty.weight=1.0",
        "elsewhere",
    ]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9, "grid": {}'])
def test_a_damaged_record_is_named(copy, text):
    (copy / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.json is damaged"):
        collect.finished([str(copy)])


def test_a_record_of_another_version_is_refused(copy):
    edit(copy / "sweep.json", lambda content: content.update(format=2))
    with pytest.raises(ValueError, match="has format 2, this version reads 1"):
        collect.finished([str(copy)])


@pytest.mark.parametrize("asked", [("averaging", "limits"), ("all",)])
def test_a_study_in_a_sweep_is_refused(plan, tmp_path, asked):
    changes = {"evaluation.experiments": asked}
    with pytest.raises(ValueError, match=r"penalty.weight=0.5: evaluation.experiments"):
        plan({"penalty.weight": (0.5, 1.0)}, changes=changes)
    assert not (tmp_path / "sweep").exists()
    assert plan({"penalty.weight": (0.5, 1.0)}, changes=changes, mode="train").runs
