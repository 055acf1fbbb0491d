"""Records of experiments: what is kept, used again, and joined over seeds."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from tiny import tiny_config

from invariance_jax import evaluate, train
from invariance_jax.experiments import EXPERIMENTS
from invariance_jax.experiments.subject import Measured, Row
from invariance_jax.runs import records


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work directory of a trained run that is not evaluated."""
    workdir = tmp_path_factory.mktemp("records") / "run"
    train.run(tiny_config(), workdir)
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def calls(monkeypatch):
    """Replaces the experiments by counted ones that return one number and one row."""
    made = []
    for number, name in enumerate(EXPERIMENTS):

        def run(subject, name=name, number=number):
            made.append(name)
            row = Row({"place": name}, {"value": 10.0 * number})
            return Measured({f"{name}@1": float(number)}, [row])

        monkeypatch.setitem(EXPERIMENTS, name, run)
    monkeypatch.setattr(evaluate.samples, "write", lambda subject, predictions: None)
    return made


def config(*names, **changes):
    return tiny_config({"evaluation.experiments": names, **changes})


def test_what_was_interrupted_goes_on(workdir, calls, monkeypatch):
    whole = EXPERIMENTS["averaging"]

    def fail(subject):
        raise KeyboardInterrupt

    monkeypatch.setitem(EXPERIMENTS, "averaging", fail)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config("downstream", "averaging"), workdir)
    monkeypatch.setitem(EXPERIMENTS, "averaging", whole)
    results = evaluate.run(config("downstream", "averaging"), workdir)
    assert calls == ["downstream", "averaging"]
    assert {"downstream@1", "averaging@1"} <= {*results["summary"]}


def test_more_experiments_are_added_to_what_is_there(workdir, calls):
    evaluate.run(config("downstream"), workdir)
    results = evaluate.run(config("invariance"), workdir)
    assert calls == ["downstream", "invariance"]
    assert results["settings"]["experiments"] == ("downstream", "invariance")
    assert [*results["experiments"]] == ["downstream", "invariance"]


def test_another_setting_is_measured_anew(workdir, calls, caplog):
    caplog.set_level(logging.INFO)
    evaluate.run(config("downstream"), workdir)
    evaluate.run(config("downstream", **{"evaluation.l2": 0.5}), workdir)
    assert calls == ["downstream"] * 2
    assert "downstream was measured with l2 = 1e-08" in caplog.text


def test_a_setting_that_changes_no_number_is_not_compared(workdir, calls):
    evaluate.run(config("downstream"), workdir)
    changes = {"evaluation.batch_size": 7, "evaluation.label_fractions": (0.5, 1.0)}
    evaluate.run(config("downstream", **changes), workdir)
    assert calls == ["downstream"]


def test_a_setting_of_another_experiment_keeps_what_is_there(workdir, calls):
    evaluate.run(config("downstream", "averaging", "shift"), workdir)
    changes = {"evaluation.baselines": ("pixels",)}
    results = evaluate.run(config("downstream", **changes), workdir)
    assert calls == ["downstream", "averaging", "shift", "downstream"]
    assert [*results["experiments"]] == ["downstream", "averaging", "shift"]


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
    results = evaluate.run(config("downstream"), workdir)
    assert calls == ["downstream"] * 2
    assert results["settings"]["step"] == 10


def test_a_damaged_record_is_named(workdir, calls):
    evaluate.run(config("downstream"), workdir)
    path = workdir / "experiments" / "downstream.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"downstream\.json is damaged"):
        evaluate.run(config("downstream"), workdir)


def test_all_is_every_experiment_and_study():
    names = ("a", "b")
    assert records.chosen(config("all"), names) == names
    assert records.chosen(config("shift"), ("shift", "averaging")) == ("shift",)


def of_seed(seed, value, place="x", **settings):
    row = {"at": {"place": place}, "values": {"error": records.summarize([value])}}
    return {
        "seeds": [seed],
        "seconds": 1.0,
        "settings": {"l2": 1.0, **settings},
        "summary": {"mse@1": records.summarize([2 * value])},
        "experiments": {"shift": {"seconds": 2.0, "rows": [row]}},
    }


def test_rows_are_joined_over_seeds():
    joined = records.aggregate([of_seed(0, 1.0), of_seed(1, 3.0)])
    (row,) = joined["experiments"]["shift"]["rows"]
    expected = {"mean": 2.0, "standard_error": 1.0, "n": 2}
    assert row == {"at": {"place": "x"}, "values": {"error": expected}}
    assert joined["summary"]["mse@1"]["mean"] == 4.0
    assert joined["experiments"]["shift"]["seconds"] == 4.0


def test_a_row_that_a_seed_lacks_is_left_out():
    joined = records.aggregate([of_seed(0, 1.0), of_seed(1, 3.0, place="y")])
    assert joined["experiments"]["shift"]["rows"] == []


def test_seeds_that_were_evaluated_in_different_ways_are_not_joined():
    with pytest.raises(ValueError, match=r"evaluation\.l2 = 1\.0, seed 1 with 2\.0"):
        records.aggregate([of_seed(0, 1.0), of_seed(1, 3.0, l2=2.0)])


def test_studies_that_are_there_are_kept(tmp_path):
    study = {"seconds": None, "rows": []}
    content = of_seed(0, 1.0)
    records.write_results(tmp_path, content | {"experiments": {"limits": study}})
    records.write_results(tmp_path, content)
    read = json.loads((tmp_path / "results.json").read_text())
    assert [*read["experiments"]] == ["shift", "limits"]
