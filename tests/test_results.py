"""Results: rows, their summary, what is kept and used again, and joined over seeds."""

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
from etils import epath
from tiny import tiny_config

from invariance_jax import evaluate
from invariance_jax.experiments import EXPERIMENTS, ExperimentResult, Row
from invariance_jax.runs import results
from invariance_jax.settings import resolve
from invariance_jax.tasks import make_task


@pytest.fixture
def workdir(trained_seeds, tmp_path):
    """A trained run that is not evaluated."""
    return Path(shutil.copytree(trained_seeds / "seed_0", tmp_path / "run"))


@pytest.fixture
def calls(monkeypatch):
    """Replaces the experiments by counted ones that return two numbers."""
    made = []
    for number, name in enumerate(EXPERIMENTS):

        def run(context, name=name, number=number):
            made.append(name)
            rows = [Row(name, number, {"views": 1}), Row("value", 0.5, {"place": name})]
            return ExperimentResult(rows)

        monkeypatch.setitem(EXPERIMENTS, name, run)
    monkeypatch.setattr(evaluate.samples, "write", lambda context, predictions: None)
    return made


def config(*names, **changes):
    return tiny_config({"evaluation.experiments": names, **changes})


def test_what_was_interrupted_goes_on(workdir, calls, monkeypatch):
    whole = EXPERIMENTS["averaging"]

    def fail(context):
        raise KeyboardInterrupt

    monkeypatch.setitem(EXPERIMENTS, "averaging", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config("downstream", "averaging"), workdir)
    monkeypatch.setitem(EXPERIMENTS, "averaging", whole)
    found = evaluate.run(config("downstream", "averaging"), workdir)
    assert calls == ["downstream", "averaging"]
    assert {"downstream@1", "averaging@1"} <= {*found["summary"]}


def test_more_experiments_are_added_to_what_is_there(workdir, calls):
    evaluate.run(config("invariance"), workdir)
    found = evaluate.run(config("downstream"), workdir)
    assert calls == ["invariance", "downstream"]
    assert found["settings"]["experiments"] == ("downstream", "invariance")
    assert [*found["experiments"]] == ["downstream", "invariance"]
    assert {*found["experiments"]["downstream"]} == {"seconds", "command"}
    order = [*dict.fromkeys(row["experiment"] for row in found["rows"])]
    assert order == ["downstream", "invariance", "training"]


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"evaluation.l2": 0.5}, ["downstream"]),
        ({"evaluation.batch_size": 7}, []),
        ({"evaluation.label_fractions": (0.5, 1.0)}, []),
        ({"evaluation.seed": 1}, ["downstream"]),
    ],
    ids=str,
)
def test_what_changes_a_number_is_measured_anew(workdir, calls, changes, again, caplog):
    caplog.set_level(logging.INFO)
    evaluate.run(config("downstream", "shift"), workdir)
    del calls[:]
    found = evaluate.run(config("downstream", **changes), workdir)
    assert calls == again
    # What the key does not change is kept, though it is not asked for.
    assert [*found["experiments"]] == ["downstream", *([] if again else ["shift"])]
    (name,) = (key.removeprefix("evaluation.") for key in changes)
    assert (f"downstream was measured with {name} = " in caplog.text) == bool(again)


def test_experiments_of_similar_names_have_files_of_their_own(workdir, caplog):
    names = dict.fromkeys(("a.b:c", "a:b.c"), "")
    for name in names:
        results.keep(epath.Path(workdir), name, [], settings={}, seconds=1.0, source="")
    assert {*results.read_records(epath.Path(workdir), {}, names)} == {*names}
    old = json.loads((workdir / "experiments" / "a.b-c.json").read_text())
    (workdir / "experiments" / "old.json").write_text(
        json.dumps(old | {"settings": {"step": 1}})
    )
    assert {*results.read_records(epath.Path(workdir), {}, names)} == {*names}
    assert not caplog.text


def test_a_key_that_an_earlier_version_lacks_was_empty(workdir, calls):
    evaluate.run(config("downstream"), workdir)
    path = workdir / "experiments" / "downstream.json"
    record = json.loads(path.read_text())
    del record["settings"]["l2_grid"]
    path.write_text(json.dumps(record))
    evaluate.run(config("downstream"), workdir)
    assert calls == ["downstream"]
    evaluate.run(config("downstream", **{"evaluation.l2_grid": (0.5,)}), workdir)
    assert calls == ["downstream"] * 2


def test_another_checkpoint_is_measured_anew(workdir, calls):
    evaluate.run(config("downstream"), workdir)
    shutil.rmtree(workdir / "checkpoints" / "20")
    found = evaluate.run(config("downstream"), workdir)
    assert calls == ["downstream"] * 2
    assert found["settings"]["step"] == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:50],
        lambda text: "[1]",
        lambda text: '{"format": 3}',
        lambda text: text.replace('"metric"', '"metrics"'),
        lambda text: text.replace('"at": {', '"at": 5, "other": {'),
    ],
)
def test_a_damaged_record_is_named(workdir, calls, damage):
    evaluate.run(config("downstream"), workdir)
    path = workdir / "experiments" / "downstream.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"downstream\.json is damaged .*remove it"):
        evaluate.run(config("downstream"), workdir)


def test_a_record_of_another_format_is_measured_anew(workdir, calls):
    evaluate.run(config("downstream"), workdir)
    (workdir / "experiments" / "downstream.json").write_text('{"format": 1}')
    evaluate.run(config("downstream"), workdir)
    assert calls == ["downstream"] * 2


OWN = """
from invariance_jax.experiments import ExperimentResult, Row

def size(context):
    h = context.features("test")
    assert h.shape == (2, 70, 16)
    return ExperimentResult([Row("size", abs(h).mean(), {"views": 1, "half": HALF})])
"""


def test_an_own_experiment_is_measured_until_its_code_changes(
    workdir, calls, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # Bytecode would be taken for that of a file of the same size and second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module, name = tmp_path / "own_size.py", "own_size:size"
    for half in (1, 1, 2):
        module.write_text(OWN.replace("HALF", str(half)))
        sys.modules.pop("own_size", None)
        found = evaluate.run(config("downstream", name), workdir)
        (row,) = [row for row in found["rows"] if row["experiment"] == name]
        assert (row["metric"], row["at"]) == ("size", {"views": 1, "half": half})
        assert found["settings"]["experiments"] == ("downstream", name)
    assert calls == ["downstream"]
    # Any key may be one that it reads.
    changes = {"evaluation.neighbors": (3,)}
    assert name not in evaluate.run(config("shift", **changes), workdir)["experiments"]


def test_an_own_experiment_that_is_not_there_is_refused(workdir, calls):
    expected = r"^evaluation.experiments is 'absent:run', but"
    with pytest.raises(ValueError, match=expected):
        evaluate.run(config("downstream", "absent:run"), workdir)
    assert calls == []


def test_all_is_every_built_in_experiment():
    task = make_task(resolve(config("all", "mine:run")))
    assert results.wanted(task) == (*EXPERIMENTS, "mine:run")
    assert results.wanted(make_task(resolve(config("shift")))) == ("shift",)
    task.metric = ""
    without = "invariance linearization poincare_ratio nuisance_prediction mine:run"
    assert results.wanted(task) == tuple(without.split())


@pytest.mark.parametrize(
    ("metric", "at", "name"),
    [
        ("mse", {"views": 8, "target": "b"}, "mse.b@8"),
        ("accuracy", {"views": 16, "family": "crop"}, "accuracy.crop@16"),
        ("accuracy", {"views": "plain", "encoder": "pixels"}, "accuracy.pixels@plain"),
        ("mse", {"views": 8, "probe": "ensemble"}, "mse.ensemble@8"),
        ("knn20", {"views": "plain"}, "knn20@plain"),
        ("variance.within", {}, "variance.within"),
        ("mse", {"views": 8, "fraction": 0.5}, None),
    ],
)
def test_names_in_the_summary(metric, at, name):
    found = results.summary(results.table("one", [Row(metric, 0.5, at)], seed=3))
    entry = {"mean": 0.5, "standard_error": None, "n": 1}
    assert found == ({name: entry} if name else {})


def of_seed(seed, value, *places, **settings):
    rows = [Row("mse", 2 * value, {"views": 1})]
    rows += [Row("error", value, {"place": place}) for place in places]
    record = {"seconds": 2.0, "command": "launch.py"}
    record["rows"] = results.table("shift", rows, seed=seed)
    more = [Row("loss.final", value)]
    return results.of_seed(seed, {"l2": 1.0, **settings}, {"shift": record}, more)


def test_results_over_seeds_are_the_rows_of_all():
    each = [of_seed(0, 1.0, "x", "y"), of_seed(4, 3.0, "x")]
    joined = results.aggregate(each)
    assert joined["rows"] == each[0]["rows"] + each[1]["rows"]
    assert joined["seeds"] == [0, 4] and joined["n"] == 2
    assert joined["seconds"] == joined["experiments"]["shift"]["seconds"] == 4.0
    assert joined["settings"] == {"l2": 1.0, "experiments": ("shift",)}
    # ddof 1: half the difference of two values.
    expected = {"mean": 4.0, "standard_error": pytest.approx(2.0), "n": 2}
    assert joined["summary"]["mse@1"] == expected
    assert joined["summary"]["loss.final"]["mean"] == 2.0


def test_what_a_seed_lacks_is_not_in_the_summary():
    first, second = of_seed(0, 1.0), of_seed(1, 3.0)
    second["rows"] = [row for row in second["rows"] if row["metric"] != "mse"]
    assert [*results.aggregate([first, second])["summary"]] == ["loss.final"]


def test_of_a_number_that_is_not_finite_there_is_no_mean():
    joined = results.aggregate([of_seed(0, 1.0), of_seed(1, float("nan"))])
    assert joined["rows"][-1]["value"] is None
    empty = {"mean": None, "standard_error": None, "n": 2}
    assert joined["summary"]["mse@1"] == empty
    json.dumps(joined, allow_nan=False)


def test_seeds_that_were_evaluated_in_different_ways_are_not_joined():
    with pytest.raises(ValueError, match=r"evaluation\.l2 = 1\.0, seed 1 with 2\.0"):
        results.aggregate([of_seed(0, 1.0), of_seed(1, 3.0, l2=2.0)])


def test_a_requested_experiment_gives_a_number_before_one_that_is_kept(caplog):
    """A user may have renamed a function; its old file is still there."""
    records = {
        name: {"seconds": 1.0, "command": "", "rows": results.table(name, rows, seed=0)}
        for name, rows in {
            "mine:before": [Row("rank", 1.0), Row("old", 3.0)],
            "mine:renamed": [Row("rank", 2.0)],
        }.items()
    }
    found = results.of_seed(0, {"experiments": ("mine:renamed",)}, records, [])
    assert {name: one["mean"] for name, one in found["summary"].items()} == {
        "rank": 2.0,
        "old": 3.0,
    }
    assert "the summary has rank of mine:renamed, not of mine:before" in caplog.text
