"""The report: its page, figures, tables and texts; comparisons; bad input."""

import base64
import html
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
from finished_runs import CLASSES, EXPERIMENTS, Page, change, samples, write_run
from scipy import special

from configs.results import keep
from invariance_jax import report
from invariance_jax.report import aggregate, commands, compare, draw, paper, read
from invariance_jax.report.sections import SECTIONS, Spec
from invariance_jax.report.style import line_style, looks
from invariance_jax.report.words import Words

TRUE = {"experiment": "own", "metric": "m", "at": {}, "seed": 0, "value": True}
PLACED = TRUE | {"at": {"place": [1]}, "value": 1.0}
HOSTILE = "<script>alert('x')<\u2215script> $a_{ & \"q\""
AVERAGING = "Quality against the number of averaged views"


def figures(page):
    """Heading of a figure -> its SVG as text."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(
        r"<figure>(?:<h3>(.*?)</h3>)?\s*<div[^>]*><img[^>]*base64,([^\"]*)\"", text
    )
    return {html.unescape(t): base64.b64decode(svg).decode() for t, svg in found}


def said(svg):
    """The texts in a figure."""
    return set(map(html.unescape, re.findall(r"<text[^>]*>([^<]*)</text>", svg)))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    root = tmp_path_factory.mktemp("single")
    run = write_run(root / "quick", seeds=3, experiments=tuple(EXPERIMENTS))
    return report.run([run], root / "out")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    kept, config = ("averaging", "shift", "label_fraction"), {"data.name": "cifar10"}
    run = write_run(root / "run", kind="images", experiments=kept, config=config)
    return report.run([run], root / "out")


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    first = write_run(root / "a" / HOSTILE, seeds=3, config={"penalty.weight": 0.0})
    second = write_run(root / "a" / "_run", seeds=3, scale=0.5, spread=0.12)
    third = write_run(root / "b" / "_run", scale=2.0, bare=True)
    change(third / "results.json", lambda r: r["rows"].extend(_rows_of(second, 2.0)))
    return report.run([first, second, third], root / "out")


def _rows_of(run, factor):
    """The rows of the first seed of a run, times a factor."""
    rows = json.loads((run / "results.json").read_text())["rows"]
    return [row | {"value": factor * row["value"]} for row in rows if row["seed"] == 0]


def test_report_writes_only_the_documented_files(single):
    paths = [path.relative_to(single.parent) for path in single.parent.rglob("*.*")]
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


@pytest.mark.parametrize("which", ["single", "several"])
def test_page_loads_and_runs_nothing(which, request):
    path = request.getfixturevalue(which)
    page = Page(path)
    for tag, attributes in page.tags:
        assert str(attributes.get("src", "data:image/svg+xml")).startswith("data:"), tag
        assert str(attributes.get("href", "#section-")).startswith("#section-")
        assert not any(name.startswith("on") for name in attributes)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert links == {f"#{a['id']}" for tag, a in page.tags if tag == "section"}
    assert not any("<script" in svg for svg in figures(path).values())


def test_first_screen_then_sections_then_settings(single):
    page = Page(single)
    assert "MSE, one view(2.00 ± 0.12)e-3Constant".lower() in page.text.lower()
    assert "MSE, average of 8 views(2.50 ± 0.14)e-4" in page.text
    assert "normalized variance of n(h)0.0210 ± 0.0012" in page.text
    assert "Mean ± standard error over 3 seeds, test split." in page.text
    text = single.read_text(encoding="utf-8")
    order = ["Downstream task", "Embeddings", "Feature averaging", "Invariance"]
    order += ["Linearization", "Poincaré ratio", "Nuisance prediction", "Shift"]
    order += ["Label fraction"]
    heads = re.findall("<h[23]>(.*?)</h[23]>", text)
    assert heads[:3] == [AVERAGING, "Views", "Downstream task"]
    assert re.findall("<h2>(.*?)</h2>", text) == [*order, "Training", "Settings"]
    folded = text[text.rindex("<section") :]
    assert folded.count("<details>") == 3 and "penalty.weight" in folded
    assert "--workdir &#39;my runs/a&#39;" in folded


def test_downstream_table_has_words_and_grey_rows_of_the_paper(single):
    rows = {(r[0], r[1]): r[2:] for r in Page(single).find("features", "M", "MSE")}
    assert rows["encoder", "8"][:2] == ["(2.50 ± 0.14)e-4", "(6.0 ± 0.3)e-5"]
    assert {("probe with its own l2", "8"), ("averaged predictions", "4")} <= {*rows}
    assert rows["constant predictor", ""][0] == "0.2276"
    assert rows["paper, penalty", "30"][0] == "(9.60 ± 0.10)e-4"
    numbers = ["(2.97 ± 0.08)e-3", "6.77e-4", "0.0112"]
    assert rows["paper, no penalty", "1"][:3] == numbers
    text = single.read_text(encoding="utf-8")
    assert '<tr class="faint"><td class="text">paper, penalty' in text
    assert "ddof 0" in text and "may not have converged" in text


def test_classification_shows_class_names_and_cifar_numbers(images):
    shown, page = figures(images), Page(images)
    for title in ("Predicted against true classes", "Principal components of h"):
        assert {*CLASSES} <= said(shown[title])
    rows = {(r[0], r[1]): r[2:] for r in page.find("features", "M", "accuracy")}
    assert rows["encoder", "plain images"] == ["0.9640", "0.1080", "0.9500"]
    assert rows["raw pixels", "plain images"][0] == "0.8400"
    assert rows["paper, no penalty", "plain images"][0] == "0.9304 ± 0.0004"
    legend = {"crop and flip only", "plain images", "paper, penalty"}
    assert legend <= said(shown[AVERAGING])
    shares = page.find("run", "share of labels", "M")
    assert "no crop, flip or grayscale" in page.text  # also of the fixed head
    first = ["paper, penalty", "share 1 of 8 (about 0.05)", "plain images", "0.9120"]
    assert first in [row[:4] for row in shares]
    assert "to the right of its plain image" in page.text
    assert "standard error over" not in page.text


def test_another_split_is_named_and_has_no_numbers_of_the_paper(tmp_path):
    config = {"data.name": "cifar10"}
    run = write_run(tmp_path / "run", kind="images", config=config, drawn=False)
    change(run / "results.json", lambda r: r["settings"].update(split="validation"))
    text = Page(report.run([run], tmp_path / "out")).text
    assert "one seed, validation split" in text
    assert "test split" not in text and "paper, " not in text


def test_run_without_labels_has_variance_views_and_neighbours(tmp_path):
    page = report.run([write_run(tmp_path / "run", kind="none")], tmp_path / "out")
    wanted = {"Views", "Nearest neighbours", "Principal components of h"}
    assert wanted <= {*figures(page)}
    text = Page(page).text
    left_out = "downstream, averaging, shift, label_fraction left out."
    assert f"The data set of run has no labels: {left_out}" in text
    assert "probe" not in text.split()


def test_experiment_of_a_users_own_has_a_table_and_curves(tmp_path):
    places = [{"place": f"<{p}>", "n_bits": n} for p in "ab" for n in (1, 2)]
    more = {"../mine:run": [("my_speed", at, at["n_bits"] / 3) for at in places]}
    more["flat_thing"] = [("silhouette", {"seed": "x", "mean": 3}, 0.25)]
    run = write_run(tmp_path / "paper, mine", kind="none", more=more, bare=True)
    page = report.run([run], tmp_path / "out")
    assert (page.parent / "figures" / ".._mine-run.png").exists()
    found = Page(page)
    assert found.find("place", "n bits", "my speed")[1] == ["<a>", "1", "0.3333"]
    assert found.find("seed ", "mean ", "silhouette")[1] == ["x", "3", "0.2500"]
    assert '<tr class="faint">' not in page.read_text()  # a row of the paper
    assert "Flat thing" in found.text and "../mine:run" in found.text


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


def test_experiments_of_similar_names_have_files_of_their_own(tmp_path):
    more = {name: [("size", {"place": 1}, 2.0)] for name in ("a:b_c", "a_b:c")}
    run = write_run(tmp_path / "run", more=more, bare=True)
    tables = report.run([run], tmp_path / "out").parent / "tables"
    assert {"a-b_c_1.csv", "a_b-c_1.csv"} <= {path.name for path in tables.iterdir()}


def test_files_of_tables_are_tidy_and_unrounded(single):
    found = pd.read_csv(single.parent / "tables" / "results.csv")
    content = json.loads((single.parent.parent / "quick" / "results.json").read_text())
    np.testing.assert_array_equal(found["value"], [r["value"] for r in content["rows"]])
    shift = pd.read_csv(single.parent / "tables" / "shift_1.csv")
    assert {"parameter", "how", "shift", "head", "views", "mean", "n"} <= {*shift}
    assert {*shift["run"]} == {"quick", "paper, no penalty", "paper, penalty"}


def test_shift_is_shown_beside_the_paper_with_units(single):
    shown = said(figures(single)["Quality under another distribution of the nuisance"])
    expected = {"M = 1", "M = 8", "refitted head", "fixed head", "paper, penalty"}
    expected |= {"shift of h (hole) (plane units)", "width factor of h (hole)"}
    assert expected | {"value in training"} <= shown
    assert "constant predictor" not in shown  # far above


def test_only_runs_with_a_shift_say_where_training_was(tmp_path):
    """The strength of a Spirograph run has no meaning."""
    kept, config = ("shift",), {"augmentation.strength": 1.0}
    first = write_run(tmp_path / "a", experiments=(), config=config, drawn=False)
    paths = [first, *(tmp_path / name for name in "bc")]
    for path, strength in zip(paths[1:], (0.5, 0.25), strict=True):
        config = {"augmentation.strength": strength}
        write_run(path, kind="images", experiments=kept, config=config, drawn=False)
    title = "Quality under another distribution of the nuisance"
    for count, is_marked in ((2, True), (3, False)):
        shown = figures(report.run(paths[:count], tmp_path / "out"))
        assert ("value in training" in said(shown[title])) == is_marked


def test_ratios_of_two_experiments_have_a_label_that_is_true_of_both(single):
    shown = figures(single)
    for title in (
        "First-order change at the full step, by parameter",
        "Derivative bound over total effect, by parameter",
    ):
        assert "ratio" in said(shown[title])


def test_intervals_are_corrected_for_the_number_of_runs():
    """Until a difference is not significant: 5 % / 4, / 3, / 2 and again / 2."""
    n, mean = 8, np.array([4.0, 2.0, -6.0, 1.0])
    columns = {"metric": "mse", "views": None, "standard_error": 1.0, "n": n}
    pairs = pd.DataFrame({"run": [*"abcd"], "mean": mean, **columns})
    other = pairs.assign(views=8).iloc[:1]
    found = aggregate.holm(pd.concat([pairs, other], ignore_index=True))
    expected = special.stdtrit(n - 1, 1 - 0.025 / np.array([3, 2, 4, 2, 1]))
    np.testing.assert_allclose(found["high"] - found["mean"], expected)
    np.testing.assert_allclose(found["mean"] - found["low"], expected)
    assert [*(found["low"] * found["high"] > 0)] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("seeds", "correction"),
    [((1, 3), ""), ((3, 3), "corrected for up to 2 runs (Holm)"), ((1, 1), "")],
)
def test_a_correction_is_named_only_where_intervals_are_corrected(
    tmp_path, seeds, correction
):
    """A single pair has no interval; nothing is corrected for its run."""
    paths = [write_run(tmp_path / "first", seeds=3, drawn=False)]
    for number, n in enumerate(seeds):
        paths.append(write_run(tmp_path / f"{number}", seeds=n, drawn=False))
    page = Page(report.run(paths, tmp_path / "out")).text
    for text in (page, report.comparison_text(paths)):
        assert ("(Holm)" in text) == bool(correction) and correction in text
    assert ("Bars: 95 % intervals" in page) == (3 in seeds)


def test_comparison_has_main_numbers_and_paired_differences(several):
    page = Page(several)
    main = page.find("run", "seeds", "MSE, one view")
    assert [row[0] for row in main[1:4]] == [HOSTILE, "a/_run", "b/_run"]
    assert main[2][1:3] == ["3", "(1.00 ± 0.07)e-3"] and main[3][2] == "1.76e-3"
    assert ["paper, weight 0.1", "1", "0.2230", "", ""] in main
    rows = {(r[0], r[1]): r[2:] for r in page.find("run", "number", "difference")}
    values = 2e-3 * np.array([0.5 * 0.88 - 0.9, 0.5 - 1, 0.5 * 1.12 - 1.1])
    half = 4.302653 * values.std(ddof=1) / 3**0.5
    ends = f"{-1e-3 - half:.2e} to {-1e-3 + half:.2e}".replace("e-0", "e-")
    assert rows["a/_run", "MSE, one view"] == ["-1.00e-3", ends, "3"]
    assert rows["b/_run", "MSE, one view"] == ["-4.00e-5", "one pair: none", "1"]
    assert page.find("key", HOSTILE)[1:] == [["penalty.weight", "0.0", "0.1", "0.1"]]
    shown = figures(several)
    assert HOSTILE in said(shown[AVERAGING])
    assert "(lower is better)" in said(shown[f"Paired differences to {HOSTILE}"])
    files = {path.name for path in (several.parent / "figures").iterdir()}
    assert {"differences.png", "views-2-a__run.png", "projection-2-a__run.png"} <= files


def test_kept_results_are_compared_to_the_first(several):
    folder = several.parent.parent / "a"
    rows = keep.rows_of(
        ["plain", "penalty"], read.read_runs([folder / HOSTILE, folder / "_run"])
    )
    at = "MSE", "M = 1"
    (row,) = [r for r in rows if (r["run"], r["metric"], r["at"]) == ("penalty", *at)]
    numbers = [float(row[name]) for name in ("mean", "difference", "n", "seconds")]
    assert numbers == [0.001, -0.001, 3, 45]


def test_a_kept_number_is_not_mixed_with_others_of_its_name(tmp_path):
    more = {"own:f": [("norm", {"strength": 0.3}, 2.0), ("norm", {}, 1.0)]}
    paths = [
        write_run(tmp_path / name, seeds=2, scale=scale, bare=True, more=more)
        for name, scale in (("a", 1.0), ("b", 3.0))
    ]
    rows = keep.rows_of(["plain", "penalty"], read.read_runs(paths))
    found = [float(r["difference"] or 0) for r in rows if r["metric"] == "norm"]
    assert found == [0, 2]


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda content: content.update(seeds=[0, 2]), r"\(0, 1, .*\(0, 2, "),
        (lambda content: content["settings"].update(split="train"), "test s.*train s"),
        (lambda content: content["settings"].update(targets=["b"]), r"rfore\).*\(b\)"),
    ],
)
def test_kept_results_are_of_the_same_seeds_and_split(tmp_path, edit, found):
    paths = [write_run(tmp_path / name, seeds=2, drawn=False) for name in ("a", "b")]
    change(paths[1] / "results.json", edit)
    with pytest.raises(
        ValueError, match=f"same seeds, data, targets and split; .*{found}"
    ):
        keep.rows_of(["plain", "penalty"], read.read_runs(paths))


def test_a_number_that_is_not_finite_is_no_single_pair(tmp_path):
    paths = [write_run(tmp_path / name, seeds=2, drawn=False) for name in "ab"]
    content = (paths[1] / "results.json").read_text()
    (paths[1] / "results.json").write_text(re.sub(r"0\.0018\d*", "null", content))
    words = report.comparison_text(paths).split("MSE, one view")[-1].split()
    assert words[:4] == ["nan", "not", "finite", "2"]


def test_a_run_that_was_evaluated_on_its_way_is_told_apart(tmp_path):
    paths = [write_run(tmp_path / name, bare=True) for name in ("end", "way")]
    results = paths[1] / "results.json"
    change(results, lambda content: content["settings"].update(step=250))
    text = "1500 steps of 256 examples, evaluated after 250."
    for run, expected in zip(paths, (False, True), strict=True):
        assert (text in Page(report.run([run], run)).text) == expected
    rows = Page(report.run(paths, tmp_path / "out")).find("key", "end", "way")
    assert rows[1:] == [["evaluation.step", "1500", "250"]]


@pytest.mark.parametrize("other", ["data", "split", "targets"])
def test_runs_of_other_data_or_another_split_are_not_paired(tmp_path, other):
    paths = [write_run(tmp_path / name, seeds=2, drawn=False) for name in "ab"]
    if other == "data":
        paths[1] = write_run(tmp_path / "b", kind="images", seeds=2, drawn=False)
    else:
        evaluated = {"split": {"split": "train"}, "targets": {"targets": ["m", "b"]}}
        settings = evaluated[other]
        change(paths[1] / "results.json", lambda r: r["settings"].update(settings))
    text = report.comparison_text(paths)
    assert "95 % interval" not in text
    assert text.endswith(" without a pair (other seeds, data, targets or split): b.")
    page = report.run(paths, tmp_path / "out")
    assert not (page.parent / "figures" / "differences.png").exists()
    different = {
        "data": "b: fashion_mnist (10 classes), test split.",
        "split": "b: spirograph (m, b, sigma, rfore), train split.",
        "targets": "b: spirograph (m, b), test split.",
    }
    assert different[other] in Page(page).text


def test_the_constant_predictor_is_shown_if_the_targets_are_the_same(tmp_path):
    paths = [write_run(tmp_path / n, scale=90, drawn=False) for n in "ab"]
    shown = said(figures(report.run(paths, tmp_path / "same"))[AVERAGING])
    assert "constant predictor" in shown
    change(paths[1] / "results.json", lambda r: r["settings"].update(targets=["m"]))
    shown = said(figures(report.run(paths, tmp_path / "other"))[AVERAGING])
    assert "constant predictor" not in shown


def test_a_table_of_one_of_several_runs_names_it(tmp_path):
    kinds = {"a": "images", "b": "spirograph"}
    paths = [write_run(tmp_path / n, kind=k, drawn=False) for n, k in kinds.items()]
    page = Page(report.run(paths, tmp_path / "out"))
    found = page.find("run", "features", "M", "R² of m")
    assert [row[0] for row in found[1:]] == ["b", "b"]


def test_words_say_what_averaging_did_to_an_accuracy():
    table = frame(metric="accuracy", views=["plain", 1, 8], mean=[0.7, 0.5, 0.75])
    expected = "Averaging 8 views raises the accuracy of plain images by 0.050."
    assert compare.in_words(table) == [expected]
    same = "Averaging 8 views hardly changes the accuracy of plain images."
    assert compare.in_words(table.assign(mean=[0.75, 0.5, 0.7504])) == [same]
    for metric in ("accuracy", "mse"):
        assert compare.in_words(table.assign(metric=metric, mean=0.0))[1:] == []
        for unknown in ([np.nan, 0.5, 0.5], [0.7, 0.5, np.inf]):
            assert compare.in_words(table.assign(metric=metric, mean=unknown)) == []
    penalty = table.iloc[:1].assign(metric="penalty.final", views=None, mean=0.2)
    both = compare.in_words(pd.concat([table, penalty]))
    assert both[0] == expected and "--config.penalty.weight=0" in both[1]


def test_terminal_shows_the_main_numbers_and_a_comparison_by_labels(tmp_path):
    paths = [write_run(tmp_path / f"x={n}", seeds=3, scale=n) for n in (1, 2)]
    results = json.loads((paths[0] / "results.json").read_text())
    lines = report.table(results).split("\n")
    first = "MSE, one view                (2.00 ± 0.12)e-3  (3 seeds, test split)"
    assert lines[0] == first and len(lines) == 4
    assert lines[3] == "Averaging 8 views divides the error of one view by 8."
    results["rows"].append(results["rows"][0] | {"metric": "penalty.final", "at": {}})
    assert "--config.penalty.weight=0" in report.table(results)
    assert report.table(results, of_sweep=True).split("\n") == lines
    variants = {path.name: {"label": f"variant {path.name[-1]}"} for path in paths}
    variants |= {f"y={n}": {"label": f"y {n}"} for n in range(6)}
    (tmp_path / "sweep.json").write_text(json.dumps({"variants": variants}))
    text = report.comparison_text(paths).split("\n")
    assert text[2].split()[:3] == ["variant", "2", "3"]
    assert "(4.00 ± 0.23)e-3" in text[2]
    assert text[-1].startswith("Run minus variant 1")
    shown = "not shown: variant 1, y 0, y 1, y 2, y 3, ... and 2 more."
    assert shown in Page(report.run(paths[1:], tmp_path / "rest")).text
    assert "further variants" not in Page(report.run(paths[1:], paths[1])).text
    note = next(line for line in text if line.startswith("Mean ± standard error over"))
    assert "Paper: Foster et al. (2021), ResNet-18, 50 epochs" in note


def frame(**columns):
    """Aggregated rows, a row for each value of the columns."""
    usual = {"run": "r", "metric": "mse", "target": np.nan, "standard_error": np.nan}
    return pd.DataFrame({**usual, **columns})


def drawn(spec, table, names):
    """The texts in the figure of a table."""
    with looks():
        shown = draw.Shown(names, Words(), {}, np.nan)
        (picture,) = draw.figure(spec, table, shown)
    return said(base64.b64decode(picture.url.split(",")[1]).decode())


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1e-3, 5e-2], {"0.001", "0.01"}),
        ([0.5, 0.52], {"0.5000", "0.5200"}),
        ([0.5, np.nan, np.inf, 0.52], {"0.5000", "0.5200"}),
    ],
)
def test_axes_are_logarithmic_where_finite_numbers_span_them(values, texts):
    table = frame(mean=values, x=range(len(values)))
    assert texts <= drawn(Spec("x", "", "", "x"), table, ["r"])


def test_only_panels_of_the_same_metric_share_its_limits():
    metrics, values = ["mse"] * 2 + ["accuracy"] * 2, [0.001, 0.3, 0.5, 0.52]
    table = frame(metric=metrics, mean=values, x=[0, 1] * 2)
    spec = Spec("x", "", "", "x", share=True)
    assert {"0.001", "0.500", "0.520", "accuracy"} <= drawn(spec, table, ["r"])


@pytest.mark.parametrize(
    ("experiment", "legend"),
    [
        ("averaging", {"encoder", "raw pixels"}),
        ("nuisance_prediction", {"linear", "nonlinear"}),
        ("linearization", {"ratio", "median ratio"}),
        ("own", {"none", "a"}),
    ],
)
def test_curves_of_one_run_are_named_by_words_and_not_by_its_folder(
    tmp_path, experiment, legend
):
    more = {
        "averaging": [
            ("accuracy", {"views": m, **at}, 0.8 + m / 90)
            for m in (1, 8)
            for at in ({}, {"encoder": "pixels"})
        ],
        "nuisance_prediction": [
            ("r2", {"parameter": "b", **at}, 0.5) for at in ({}, {"probe": "nonlinear"})
        ],
        "linearization": [
            (metric, {"step": step, "parameters": "all"}, 1 + step)
            for metric in ("relative_error", "ratio", "median_ratio", "cosine")
            for step in (0.1, 1.0)
        ],
        "own": [("m", {"n": n, **at}, n) for n in (1, 2) for at in ({}, {"in": "a"})],
    }
    run = write_run(tmp_path / "folder", bare=True, more={experiment: more[experiment]})
    shown = figures(report.run([run], tmp_path / "out"))
    texts = set[str]().union(*map(said, shown.values()))
    assert legend <= texts and "folder" not in texts


def test_the_paper_has_ticks_beyond_ours_and_none_between():
    runs = ["r"] * 2 + ["paper, penalty"] * 3
    table = frame(run=runs, x=[1, 8, 1, 7, 30], mean=[1, 2, 3, 4, 5])
    spec = Spec("x", "", "", "x", log=True)
    found = drawn(spec, table, ["r", "paper, penalty"])
    assert {"1", "8", "30"} <= found and "7" not in found


def test_collapse_does_not_hide_the_other_differences():
    table = frame(run=[*"abcd"], mean=[1.0, -2.0, 1.5, 300], standard_error=0.1)
    spec = Spec("x", "", "", "run", dots=True, line=0.0)
    assert "(1 outside the axis)" in drawn(spec, table, [*"abcd"])


def test_parameters_that_change_nothing_do_not_hide_the_others():
    names, values = ["all", "brightness", "saturation", "hue"], [0.4, 0.01, 0, 1e-7]
    table = frame(metric="normalized", parameter=names, mean=values, of="h")
    table["table"] = "parameters"
    (spec,) = (s for s in SECTIONS["invariance"].figures if s.dots)
    texts = drawn(spec, table, ["r"])
    assert "0.4" in texts and "(1 outside the axis)" not in texts


def test_probes_have_words():
    assert Words().value("probe", "lbfgs500") == "500 steps of L-BFGS"


def test_runs_differ_in_line_and_marker_as_well_as_colour():
    looks = [line_style(number) for number in range(7)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(look[key]) for look in looks[:6]}) == 6
    assert len({str(look) for look in looks}) == 7


def test_statistics_over_seeds_and_pairs():
    rows = pd.DataFrame(
        [
            {"run": run, "experiment": "e", "metric": "m", "seed": seed, "value": value}
            for run, values in {"a": [1.0, 3.0], "b": [2.0, 5.0, np.nan]}.items()
            for seed, value in enumerate(values)
        ]
    )
    table = aggregate.over_seeds(rows)
    assert table["mean"][0] == 2 and table["standard_error"][0] == 1
    assert np.isnan(table["mean"][1]) and list(table["n"]) == [2, 3]
    (pair,) = aggregate.paired(rows, "a").to_dict("records")
    half = 12.7062047 * 0.5  # of n = 2, t(.975) times the error of (1, 2)
    found = [pair["mean"], pair["n"], pair["low"], pair["high"]]
    np.testing.assert_allclose(found, [1.5, 2, 1.5 - half, 1.5 + half])


def test_a_number_that_two_experiments_measured_counts_once(tmp_path):
    more = {"downstream": [("mse", {"views": 1}, 2e-3), ("mse.constant", {}, 0.2276)]}
    (run,) = read.read_runs([write_run(tmp_path / "run", more=more)])
    assert {*aggregate.over_seeds(aggregate.long_table([run.rows]))["n"]} == {1}


def test_numbers_of_the_same_name_are_in_the_sections_of_both_experiments(tmp_path):
    more = {f"mine:{name}": [("rank", {}, n)] for n, name in enumerate("ab", start=3)}
    more["mine:a"] += [("mse", {"views": 1}, 7.0)]
    page = Page(report.run([write_run(tmp_path / "run", more=more)], tmp_path / "out"))
    assert page.find("rank")[1:] == [["3.0000"]]
    assert "4.0000" in page.text and "7.0000" in page.text
    files = tmp_path / "out" / "tables"
    assert ",7.0," not in (files / "downstream.csv").read_text()


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
    text = Page(report.run([run], tmp_path / "out")).text
    assert "4 unreadable line(s) of seed_1/metrics.jsonl skipped" in text


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


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("projection_explained", "Principal components of h"),
        ("predicted_single", "Predicted against true values"),
    ],
)
def test_a_picture_is_left_out_if_one_of_its_arrays_is_missing(tmp_path, name, title):
    run = write_run(tmp_path / "run", experiments=())
    arrays = samples("spirograph")
    del arrays[name]
    np.savez(run / "samples.npz", **arrays)
    shown = {*figures(report.run([run], tmp_path / "out"))}
    assert title not in shown and {"Views", "Nearest neighbours"} <= shown


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


def test_the_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = write_run(tmp_path / "run", bare=True)
    assert report.run([run], "~/out") == tmp_path / "out" / "report.html"


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
