"""What a report reads: work directories, the paper, commands; bad input."""

import re

import finished_runs
import numpy as np
import pandas as pd
import pytest
from finished_runs import change, samples, write_report, write_run

from invariance_jax import report
from invariance_jax.report import commands, paper, read

TRUE = {"experiment": "own", "metric": "m", "at": {}, "seed": 0, "value": True}

PLACED = TRUE | {"at": {"place": [1]}, "value": 1.0}


def misnamed(content):
    content["config"]["encoder"]["name"] = 1.5


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("results.json", {"format": 2}, "has format 2, this version reads 3; use inv"),
        ("results.json", {"rows": {}}, "must have a list of rows, found {}"),
        ("results.json", {"rows": [{"at": {}}]}, "row 1 must have an experiment, a m"),
        ("results.json", {"rows": [TRUE]}, "row 1 must have an experiment, a metric"),
        ("results.json", {"rows": [PLACED]}, "row 1 must have an experiment, a metri"),
        ("results.json", lambda content: content.pop("seeds"), "json has no seeds"),
        ("config.json", lambda content: content.pop("derived"), "json has no derived"),
        ("results.json", "[]", "results.json cannot be read: it holds no object"),
        ("config.json", "{", "config.json cannot be read: Expecting"),
        ("config.json", misnamed, "cannot be read: encoder.name is 1.5; expected one"),
        ("config.json", '{"format": 2}', "has format 2, this version reads 3; use"),
        ("samples.npz", "torn", "cannot be read (ValueError); remove it and run --mo"),
        ("results.json", None, "has no results.json: the run is not finished"),
        ("config.json", None, "has no config.json: the run is not finished"),
    ],
)
def test_bad_work_directory_is_named_before_anything_is_written(
    tmp_path, file, edit, message
):
    good, bad = (write_run(tmp_path / name, bare=True) for name in ("good", "bad"))
    if isinstance(edit, dict):
        change(bad / file, lambda content: content.update(edit))
    elif callable(edit):
        change(bad / file, edit)
    elif edit is None:
        (bad / file).unlink()
    else:
        (bad / file).write_text(edit)
    with pytest.raises(ValueError, match=f"bad.*{re.escape(message)}") as info:
        report.run([good, bad], tmp_path / "out")
    assert "\n" not in str(info.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "name", "array", "message"),
    [
        ("images", "views", np.zeros((4, 16, 16, 3)), r"[R, V, H, W, 3], found [4, 16"),
        ("images", "plain", np.zeros((4, 8, 8, 3)), "[4, 16, 16, 3], found [4, 8, 8,"),
        ("images", "neighbors", np.zeros(10), "[Q, K, h, w, 3], found [10]"),
        ("images", "neighbor_labels", np.zeros(10, int), "[10, 8], found [10]"),
        ("images", "projection", np.zeros((200, 1)), "[N, 2], found [200, 1]"),
        ("images", "projection_explained", np.array(1.0), "[2], found []"),
        ("images", "projection_labels", np.zeros(7, int), "[200], found [7]"),
        ("images", "confusion", np.ones((9, 9), int), "[10, 10], found [9, 9]"),
        ("spirograph", "projection_targets", np.zeros(200), "[200, 4], found [200]"),
        ("spirograph", "true", np.zeros((200, 3)), "[S, 4], found [200, 3]"),
        ("spirograph", "predicted", np.zeros((9, 4)), "[200, 4], found [9, 4]"),
    ],
)
def test_samples_of_another_shape_are_refused_by_name(
    tmp_path, kind, name, array, message
):
    run = write_run(tmp_path / "run", kind=kind, experiments=())
    np.savez(run / "samples.npz", **{**samples(kind), name: array})
    message = f"samples.npz: {name} must have the shape {message}"
    with pytest.raises(ValueError, match=re.escape(message)):
        report.run([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_lines_of_the_log_are_counted_and_named(tmp_path):
    run = write_run(tmp_path / "run", seeds=2, kind="none", bare=True)
    finished_runs.write_log(run, 9)  # of no seed that counts
    lines = ['{"step": 1, "loss": 5.0}', '{"step": 2, "lo', '{"step": 1, "loss": 3.0}']
    lines += ['{"step": 0, "loss": 9.0, "penalty": null}', "[1]", "7"]
    lines += ['{"step": 1e999}']
    (run / "seed_1").mkdir()
    content = "\n".join(lines).encode() + b"\n\xff\xfe{}"
    (run / "seed_1" / "metrics.jsonl").write_bytes(content)
    (found,) = read.read_runs([run])
    expected = [["seed_1", 1, "loss", 3.0], ["seed_1", 0, "loss", 9.0]]
    assert found.log.to_numpy().tolist() == expected
    text = write_report([run], tmp_path / "out").text
    assert "4 unreadable line(s) of seed_1/metrics.jsonl skipped" in text


def test_bad_arguments_are_refused(tmp_path):
    run, file = write_run(tmp_path / "run", bare=True), tmp_path / "file"
    file.write_text("mine")
    for workdirs, out, message in (
        ([], "out", "workdirs must be a list"),
        (str(run), "out", "workdirs must be a list"),
        ([run, tmp_path / "." / "run"], "out", "run is given twice"),
        ([tmp_path / "none"], "out", "none does not exist"),
        ([run], "file", "out is .*/file is a file; expected a folder"),
        ([run], "file/new", "out is .*/file is a file; expected a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            report.run(workdirs, tmp_path / out)
    assert file.read_text() == "mine"


def test_command_of_an_experiment_can_be_used_again(tmp_path):
    path = write_run(tmp_path / "run", bare=True)
    recorded = (
        "python -c -m 3 --mode all --config=a.py --config.penalty.weight .1 --out "
        "'-a b' -cluster=c \"--config.evaluation.experiments=('averaging', 'shift')\" "
        "--workdir 'my run'"
    )
    change(path / "config.json", lambda content: content.update(command=recorded))
    (run,) = read.read_runs([path])
    assert commands.of_run(run) == [recorded, run.results["command"]]
    assert commands.of_experiment(run, "shift") == (
        "python -c -m 3 --config=a.py --config.penalty.weight .1 --workdir 'my run' "
        "--mode=evaluate --config.evaluation.experiments=shift"
    )


@pytest.mark.parametrize(
    ("key", "same", "other"),
    [
        ("data.image_size", 32, 64),
        ("data.bounds.bback", (0.0, 0.6), (0.0, 1.0)),
        ("data.targets", ("b", "m", "rfore", "sigma"), ("m", "b")),
        ("data.normalization", "row", "image"),
        ("data.name", "spirograph", "svhn_cropped"),
        ("augmentation.name", "image", "mine:views"),
    ],
)
def test_the_paper_is_comparable_only_on_its_images_and_targets(
    tmp_path, key, same, other
):
    (run,) = read.read_runs([write_run(tmp_path / "run", bare=True)])
    assert paper.data_of(run._replace(config={**run.config, key: same})) == "spirograph"
    assert not len(paper.rows([run._replace(config={**run.config, key: other})]))


def test_the_papers_network_is_that_of_its_own_numbers():
    """Also beside a classification run of ours."""
    runs = ["ours", "paper, penalty"]
    shown = pd.DataFrame({"run": runs, "metric": ["accuracy", "mse"]})
    assert "ResNet-18, 50 epochs" in paper.note(shown)
    assert "ResNet-50, 1000 epochs" in paper.note(shown.assign(metric="accuracy"))
    assert paper.note(shown[:1]) == ""


def test_papers_numbers_are_the_published_ones(tmp_path):
    (run,) = read.read_runs([write_run(tmp_path / "run", bare=True)])
    rows = paper.rows([run]).set_index(["run", "experiment"])
    one = rows.loc[("paper, penalty", "averaging")]
    mean = one[one["target"].isna()].set_index("views")["mean"]
    sweep = {1: 1.99, 2: 1.63, 3: 1.46, 4: 1.36, 5: 1.28, 10: 1.11, 20: 1.0, 30: 0.96}
    np.testing.assert_allclose(1e3 * mean[[*sweep]].astype(float), [*sweep.values()])
    moved = rows.loc[("paper, no penalty", "shift")]
    moved = moved[moved["parameter"] == "background"]["mean"]
    np.testing.assert_allclose(moved, [3.0e-3, 3.09e-3, 3.61e-3, 4.7e-3, 6.46e-3])
    assert not rows.index.get_level_values(0).str.contains("weight").any()
