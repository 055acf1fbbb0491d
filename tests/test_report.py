"""The page of one run: its parts, figures and files; what it is not written over."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import finished_runs
import numpy as np
import pandas as pd
import pytest
from finished_runs import CLASSES, EXPERIMENTS, change, write_report, write_run

from invariance_jax import report

AVERAGING = "Quality against the number of averaged views"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    run = write_run(root / "quick", seeds=3, experiments=tuple(EXPERIMENTS))
    return write_report([run], root / "out")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    kept, config = ("averaging", "shift", "label_fraction"), {"data.name": "cifar10"}
    run = write_run(root / "run", kind="images", experiments=kept, config=config)
    return write_report([run], root / "out")


def test_report_writes_only_the_documented_files(single):
    paths = [path.relative_to(single.folder) for path in single.folder.rglob("*.*")]
    written = {str(path) for path in paths}
    names = {"averaging", "averaging_targets", "views", "predictions", "projection"}
    names |= {"neighbors", "training", "invariance", "invariance_checkpoints", "shift"}
    names |= {"linearization", "linearization_parameters", "nuisance_prediction"}
    names |= {"poincare_ratio"}
    drawn = {f"figures/{name}.png" for name in {*names, "label_fraction"}}
    assert {path for path in written if path.startswith("figures")} == drawn
    assert {f"tables/{n}.csv" for n in ("results", "downstream", "shift_1")} <= written
    assert {path.parts[0] for path in paths} == {"report.html", "figures", "tables"}


def test_report_in_a_work_directory_leaves_its_other_files(tmp_path):
    run = write_run(tmp_path / "run", kind="none", experiments=())
    (run / "figures").mkdir()
    (run / "figures" / "mine.png").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    first = report.run([run], run).read_bytes()
    assert report.run([run], run).read_bytes() == first  # the same input, the same file
    assert all(path.read_bytes() == content for path, content in before.items())


def test_first_screen_then_sections_then_settings(single):
    assert "MSE, one view(2.00 ± 0.12)e-3Constant".lower() in single.text.lower()
    assert "MSE, average of 8 views(2.50 ± 0.14)e-4" in single.text
    assert "normalized variance of n(h)0.0210 ± 0.0012" in single.text
    assert "Mean ± standard error over 3 seeds, test split." in single.text
    order = ["Downstream task", "Embeddings", "Feature averaging", "Invariance"]
    order += ["Linearization", "Poincaré ratio", "Nuisance prediction", "Shift"]
    order += ["Label fraction"]
    heads = re.findall("<h[23]>(.*?)</h[23]>", single.source)
    assert heads[:3] == [AVERAGING, "Views", "Downstream task"]
    sections = re.findall("<h2>(.*?)</h2>", single.source)
    assert sections == [*order, "Training", "Settings"]
    folded = single.source.split("<section")[-1]
    assert folded.count("<details>") == 3 and "penalty.weight" in folded
    assert "--workdir &#39;my runs/a&#39;" in folded


def test_downstream_table_has_words_and_grey_rows_of_the_paper(single):
    rows = {(r[0], r[1]): r[2:] for r in single.find("features", "M", "MSE")}
    assert rows["encoder", "8"][:2] == ["(2.50 ± 0.14)e-4", "(6.0 ± 0.3)e-5"]
    assert {("probe with its own l2", "8"), ("averaged predictions", "4")} <= {*rows}
    assert rows["constant predictor", ""][0] == "0.2276"
    assert rows["paper, penalty", "30"][0] == "(9.60 ± 0.10)e-4"
    numbers = ["(2.97 ± 0.08)e-3", "6.77e-4", "0.0112"]
    assert rows["paper, no penalty", "1"][:3] == numbers
    assert '<tr class="faint"><td class="text">paper, penalty' in single.source
    assert "ddof 0" in single.text and "may not have converged" in single.text


def test_classification_shows_class_names_and_cifar_numbers(images):
    for title in ("Predicted against true classes", "Principal components of h"):
        assert {*CLASSES} <= images.figures[title]
    rows = {(r[0], r[1]): r[2:] for r in images.find("features", "M", "accuracy")}
    assert rows["encoder", "plain images"] == ["0.9640", "0.1080", "0.9500"]
    assert rows["raw pixels", "plain images"][0] == "0.8400"
    assert rows["paper, no penalty", "plain images"][0] == "0.9304 ± 0.0004"
    legend = {"crop and flip only", "plain images", "paper, penalty"}
    assert legend <= images.figures[AVERAGING]
    shares = images.find("run", "share of labels", "M")
    assert "no crop, flip or grayscale" in images.text  # also of the fixed head
    first = ["paper, penalty", "share 1 of 8 (about 0.05)", "plain images", "0.9120"]
    assert first in [row[:4] for row in shares]
    assert "to the right of its plain image" in images.text
    assert "standard error over" not in images.text


def test_another_split_is_named_and_has_no_numbers_of_the_paper(tmp_path):
    config = {"data.name": "cifar10"}
    run = write_run(tmp_path / "run", kind="images", config=config, drawn=False)
    change(run / "results.json", lambda r: r["settings"].update(split="validation"))
    text = write_report([run], tmp_path / "out").text
    assert "one seed, validation split" in text
    assert "test split" not in text and "paper, " not in text


def test_run_without_labels_has_variance_views_and_neighbours(tmp_path):
    page = write_report([write_run(tmp_path / "run", kind="none")], tmp_path / "out")
    wanted = {"Views", "Nearest neighbours", "Principal components of h"}
    assert wanted <= {*page.figures}
    left_out = "downstream, averaging, shift, label_fraction left out."
    assert f"The data set of run has no labels: {left_out}" in page.text
    assert "probe" not in page.text.split()


def test_experiment_of_a_users_own_has_a_table_and_curves(tmp_path):
    places = [{"place": f"<{p}>", "n_bits": n} for p in "ab" for n in (1, 2)]
    more = {"../mine:run": [("my_speed", at, at["n_bits"] / 3) for at in places]}
    more["flat_thing"] = [("silhouette", {"seed": "x", "mean": 3}, 0.25)]
    run = write_run(tmp_path / "paper, mine", kind="none", more=more, bare=True)
    page = write_report([run], tmp_path / "out")
    assert (page.folder / "figures" / ".._mine-run.png").exists()
    assert page.find("place", "n bits", "my speed")[1] == ["<a>", "1", "0.3333"]
    assert page.find("seed ", "mean ", "silhouette")[1] == ["x", "3", "0.2500"]
    assert '<tr class="faint">' not in page.source  # a row of the paper
    assert "Flat thing" in page.text and "../mine:run" in page.text


def test_another_page_is_not_written_over(tmp_path):
    run, out = write_run(tmp_path / "run", bare=True), tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("mine")
    with pytest.raises(ValueError, match=r"report\.html is not from a report; move it"):
        report.run([run], out)
    assert [path.name for path in out.iterdir()] == ["report.html"]
    (out / "report.html").unlink()
    report.run([run], out)
    shutil.rmtree(out / "tables")  # or the page alone was copied
    report.run([run], out)


def test_experiments_of_similar_names_and_numbers_have_parts_of_their_own(tmp_path):
    more = {"a:b_c": [("rank", {}, 3.0), ("mse", {"views": 1}, 7.0)]}
    more["a_b:c"] = [("rank", {}, 4.0)]
    page = write_report([write_run(tmp_path / "run", more=more)], tmp_path / "out")
    assert page.find("rank")[1:] == [["3.0000"]]
    assert "4.0000" in page.text and "7.0000" in page.text
    tables = page.folder / "tables"
    assert {"a-b_c_1.csv", "a_b-c_1.csv"} <= {path.name for path in tables.iterdir()}
    assert ",7.0," not in (tables / "downstream.csv").read_text()


def test_files_of_tables_are_tidy_and_unrounded(single):
    found, shift = (
        pd.read_csv(single.folder / "tables" / f"{name}.csv")
        for name in ("results", "shift_1")
    )
    content = json.loads((single.folder.parent / "quick" / "results.json").read_text())
    np.testing.assert_array_equal(found["value"], [r["value"] for r in content["rows"]])
    assert {"parameter", "how", "shift", "head", "views", "mean", "n"} <= {*shift}
    assert {*shift["run"]} == {"quick", "paper, no penalty", "paper, penalty"}


def test_shift_is_shown_beside_the_paper_with_units(single):
    shown = single.figures["Quality under another distribution of the nuisance"]
    expected = {"M = 1", "M = 8", "refitted head", "fixed head", "paper, penalty"}
    expected |= {"shift of h (hole) (plane units)", "width factor of h (hole)"}
    assert expected | {"value in training"} <= shown
    assert "constant predictor" not in shown  # far above


def test_ratios_of_two_experiments_have_a_label_that_is_true_of_both(single):
    for title in ("First-order change at the full step", "Derivative bound over total"):
        (shown,) = (single.figures[name] for name in single.figures if title in name)
        assert "ratio" in shown


def test_settings_of_this_machine_change_nothing(tmp_path):
    root, run = Path(__file__).parents[1], write_run(tmp_path / "run", bare=True)
    finished_runs.write_log(run, 0)
    (tmp_path / "matplotlibrc").write_text("font.size: 40\nbackend: qtagg\n")
    code = (
        "import sys; from invariance_jax import report\n"
        "report.run(sys.argv[1:2], sys.argv[2])"
    )
    pages, odd = [], {"LC_ALL": "C"}
    for folder, added in ((root, {}), (tmp_path, odd)):
        environment = {**os.environ, "PYTHONPATH": str(root), **added}
        arguments = [sys.executable, "-c", code, str(run), str(tmp_path / "out")]
        subprocess.run(arguments, cwd=folder, env=environment, check=True)
        pages.append((tmp_path / "out" / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = write_run(tmp_path / "run", bare=True)
    assert report.run([run], "~/out") == tmp_path / "out" / "report.html"
