"""The studies: their points, their runs, and the rows that compare them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import tiny_config

from configs import spirograph
from invariance_jax import evaluate, studies, train
from invariance_jax.experiments import points
from invariance_jax.training import keys
from invariance_jax.training.settings import flatten, resolve

CHANGES = {
    "seeds": 2,
    "evaluation.experiments": ("downstream", "penalty_weight"),
    "studies.steps": 10,
    "studies.weights": (0.1, 0.5),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, compiled_once):
    """The work directory of a run over two seeds with a study."""
    workdir = tmp_path_factory.mktemp("studies") / "run"
    config = tiny_config(CHANGES)
    studies.prepare(config, workdir)
    train.run(config, workdir)
    evaluate.run(config, workdir)
    studies.run(config, workdir)
    return workdir


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "run"))


def rows(workdir, study="penalty_weight"):
    results = json.loads((workdir / "results.json").read_text())
    return results["experiments"][study]["rows"]


def summary(folder):
    found = json.loads((folder / "results.json").read_text())["summary"]
    return {name: entry["mean"] for name, entry in found.items()}


def test_each_weight_is_a_work_directory(run):
    names = sorted(path.name for path in (run / "studies").iterdir())
    # The weight of the configuration needs no folder of its own.
    assert names == ["base", "penalty.weight=0.0", "penalty.weight=0.5"]
    for name in names:
        assert (run / "studies" / name / "seed_1" / "checkpoints" / "10").exists()


def test_rows_hold_every_number_of_the_runs(run):
    found = rows(run)
    assert [row["at"] for row in found] == [
        {"run": "no penalty", "weight": 0.0},
        {"run": "weight 0.1", "weight": 0.1},
        {"run": "weight 0.5", "weight": 0.5},
    ]
    each = [summary(run / "studies" / "base" / f"seed_{n}") for n in (0, 1)]
    for name in ("mse@1", "variance.normalized"):
        values = [one[name] for one in each]
        assert found[1]["values"][name]["mean"] == pytest.approx(np.mean(values))
        assert found[1]["values"][name]["n"] == 2


def test_differences_are_paired(run):
    each = [
        [summary(run / "studies" / name / f"seed_{n}")["mse@3"] for n in (0, 1)]
        for name in ("base", "penalty.weight=0.0")
    ]
    pairs = np.subtract(*each)
    values = rows(run)[1]["values"]
    assert values["difference.mse@3"]["mean"] == pytest.approx(pairs.mean())
    # 12.706 is the 97.5 % point of Student's t with one degree of freedom.
    half = 12.7062 * np.std(pairs, ddof=1) / np.sqrt(2)
    low, high = (values[f"interval.mse@3.{end}"]["mean"] for end in ("low", "high"))
    assert (low, high) == pytest.approx((pairs.mean() - half, pairs.mean() + half))


def test_a_study_says_how_its_runs_were_made(run):
    study = json.loads((run / "results.json").read_text())["experiments"][
        "penalty_weight"
    ]
    assert study["settings"]["steps"] == 10
    assert study["settings"]["split"] == "validation"
    assert study["settings"]["weights"] == [0.1, 0.5]
    assert study["command"]


def test_what_is_finished_is_not_repeated(copy, monkeypatch):
    shutil.rmtree(copy / "studies" / "penalty.weight=0.5")
    made = []
    whole = train.run
    monkeypatch.setattr(
        train, "run", lambda *arguments: (made.append(arguments[1]), whole(*arguments))
    )
    before = rows(copy)
    studies.run(tiny_config(CHANGES), copy)
    assert [path.name for path in made] == ["penalty.weight=0.5"]
    assert rows(copy) == before


def test_an_evaluation_keeps_the_studies(copy):
    before = rows(copy)
    evaluate.run(tiny_config(CHANGES), copy)
    assert rows(copy) == before


def test_a_folder_of_another_run_is_named_before_anything_runs(copy):
    config = tiny_config({**CHANGES, "studies.steps": 12})
    with pytest.raises(ValueError, match=r"studies/.*holds a run with steps = 10"):
        studies.prepare(config, copy)


def test_a_study_of_no_penalty_is_refused(tmp_path):
    config = tiny_config({**CHANGES, "penalty.weight": 0.0})
    with pytest.raises(ValueError, match="penalty.weight is 0.0; expected more than 0"):
        studies.prepare(config, tmp_path)


def test_a_run_that_diverges_is_a_result(copy, monkeypatch):
    shutil.rmtree(copy / "studies" / "penalty.weight=0.5")

    def diverge(config, workdir):
        raise FloatingPointError("loss is not finite")

    monkeypatch.setattr(train, "run", diverge)
    studies.run(tiny_config(CHANGES), copy)
    last = rows(copy)[-1]
    assert last["values"] == {"diverged": {"mean": 1.0, "standard_error": None, "n": 1}}


def test_nothing_is_compared_to_another_run_than_that_without_a_penalty(
    copy, monkeypatch
):
    shutil.rmtree(copy / "studies" / "penalty.weight=0.0")

    def diverge(config, workdir):
        raise FloatingPointError("loss is not finite")

    monkeypatch.setattr(train, "run", diverge)
    studies.run(tiny_config(CHANGES), copy)
    first, *others = rows(copy)
    assert [*first["values"]] == ["diverged"]
    for row in others:
        assert "mse@1" in row["values"]
        assert not any(name.startswith("difference.") for name in row["values"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"mse@1": 0.1, "variance.normalized": 0.1}, 0.0),
        ({"mse@1": 0.51, "variance.normalized": 0.1}, 1.0),
        ({"mse@1": 0.1, "variance.normalized": 0.6}, 1.0),
    ],
)
def test_collapse_is_flagged(values, expected):
    settings = resolve(tiny_config())
    assert studies._collapsed(settings, {"mse.constant": 1.0, **values}) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"penalty.parameters": ("rback", "gfore")},
        {"penalty.directions": 4},
        {"penalty.batch_statistics": "example"},
        {"penalty.fraction": 0.5},
        {"penalty.estimator": "sign"},
        {"penalty.views": 2},
        {"penalty.every_steps": 2},
        {"penalty.warmup_steps": 1500, "logging.profile_steps": "1000:1010"},
        {"penalty.batch_limit": 1000.0},
    ],
    ids=lambda changes: [*changes][0],
)
def test_studies_of_other_penalties_are_valid(tmp_path, changes):
    config = spirograph.get_config("quick")
    config.update_from_flattened_dict({"evaluation.experiments": ("all",), **changes})
    found = studies.prepare(config, tmp_path)
    short = found["baselines"]["consistency"][1]
    assert short.penalty.warmup_steps == config.penalty.warmup_steps // 5
    limits = {one.penalty.batch_limit for _, one in found["limits"].values()}
    assert config.penalty.batch_limit in limits


@pytest.mark.parametrize("study", keys.STUDIES[1:])
def test_forms_of_the_gradient_penalty_need_one(tmp_path, study):
    changes = {"penalty.kind": "consistency", "evaluation.experiments": (study,)}
    with pytest.raises(ValueError, match="penalty.kind is 'consistency'; expected 'gr"):
        studies.prepare(tiny_config({**CHANGES, **changes}), tmp_path)


def test_a_study_needs_examples_to_be_measured_on(tmp_path, monkeypatch):
    settings = ConfigDict(resolve(tiny_config(CHANGES)).to_dict())
    settings.data.validation_examples = 0  # as image sets have if none is held out
    monkeypatch.setattr(studies, "resolve", lambda config: settings)
    with pytest.raises(ValueError, match=r"studies.split is 'validation', but data.va"):
        studies.prepare(tiny_config(CHANGES), tmp_path)


@pytest.mark.parametrize("study", keys.STUDIES)
def test_points_change_keys_of_the_configuration(study):
    config = spirograph.get_config("quick")
    found = points.make_points(study, resolve(config), ("h", "rback", "gfore"))
    assert [*found][0] == "no penalty"
    known = {key for key, _ in flatten(config)}
    assert all({*changes} <= known for changes in found.values())


def test_every_study_of_quick_is_valid(tmp_path):
    config = spirograph.get_config("quick")
    config.evaluation.experiments = ("all",)
    found = studies.prepare(config, tmp_path)
    assert [*found] == [*keys.STUDIES]
    names = {name for study in found.values() for name, _ in study.values()}
    assert "base" in names
    assert not any((tmp_path).iterdir())
