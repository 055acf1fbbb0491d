"""Comparisons of several runs: statistics, tables, texts, and kept results."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from finished_runs import change, write_report, write_run
from scipy import special

from configs.results import keep
from invariance_jax import report
from invariance_jax.report import aggregate, compare, read

AVERAGING = "Quality against the number of averaged views"
HOSTILE = "<script>alert('x')<\u2215script> $a_{ & \"q\""


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    first = write_run(root / "a" / HOSTILE, seeds=3, config={"penalty.weight": 0.0})
    second = write_run(root / "a" / "_run", seeds=3, scale=0.5, spread=0.12)
    third = write_run(root / "b" / "_run", scale=2.0, bare=True)
    change(third / "results.json", lambda r: r["rows"].extend(_rows_of(second, 2.0)))
    return write_report([first, second, third], root / "out")


def _rows_of(run, factor):
    """The rows of the first seed of a run, times a factor."""
    rows = json.loads((run / "results.json").read_text())["rows"]
    return [row | {"value": factor * row["value"]} for row in rows if row["seed"] == 0]


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
    page = write_report(paths, tmp_path / "out").text
    for text in (page, report.comparison_text(paths)):
        assert ("(Holm)" in text) == bool(correction) and correction in text
    assert ("Bars: 95 % intervals" in page) == (3 in seeds)


def test_comparison_has_main_numbers_and_paired_differences(several):
    main = several.find("run", "seeds", "MSE, one view")
    assert [row[0] for row in main[1:4]] == [HOSTILE, "a/_run", "b/_run"]
    assert main[2][1:3] == ["3", "(1.00 ± 0.07)e-3"] and main[3][2] == "1.76e-3"
    assert ["paper, weight 0.1", "1", "0.2230", "", ""] in main
    rows = {(r[0], r[1]): r[2:] for r in several.find("run", "number", "difference")}
    values = 2e-3 * np.array([0.5 * 0.88 - 0.9, 0.5 - 1, 0.5 * 1.12 - 1.1])
    half = 4.302653 * values.std(ddof=1) / 3**0.5
    ends = f"{-1e-3 - half:.2e} to {-1e-3 + half:.2e}".replace("e-0", "e-")
    assert rows["a/_run", "MSE, one view"] == ["-1.00e-3", ends, "3"]
    assert rows["b/_run", "MSE, one view"] == ["-4.00e-5", "one pair: none", "1"]
    different = several.find("key", HOSTILE)[1:]
    assert different == [["penalty.weight", "0.0", "0.1", "0.1"]]
    assert HOSTILE in several.figures[AVERAGING]
    assert "(lower is better)" in several.figures[f"Paired differences to {HOSTILE}"]
    files = {path.name for path in (several.folder / "figures").iterdir()}
    assert {"differences.png", "views-2-a__run.png", "projection-2-a__run.png"} <= files


def test_a_run_that_was_evaluated_on_its_way_is_told_apart(tmp_path):
    paths = [write_run(tmp_path / name, bare=True) for name in ("end", "way")]
    results = paths[1] / "results.json"
    change(results, lambda content: content["settings"].update(step=250))
    text = "1500 steps of 256 examples, evaluated after 250."
    for run, expected in zip(paths, (False, True), strict=True):
        assert (text in write_report([run], run).text) == expected
    rows = write_report(paths, tmp_path / "out").find("key", "end", "way")
    assert rows[1:] == [["evaluation.step", "1500", "250"]]


@pytest.mark.parametrize(
    ("kind", "settings", "data"),
    [
        ("images", {}, "b: fashion_mnist (10 classes), test split."),
        ("spirograph", {"split": "train"}, "(m, b, sigma, rfore), train split."),
        ("spirograph", {"targets": ["m", "b"]}, "b: spirograph (m, b), test split."),
    ],
)
def test_runs_of_other_data_or_another_split_are_not_paired(
    tmp_path, kind, settings, data
):
    paths = [write_run(tmp_path / "a", seeds=2, drawn=False)]
    paths.append(write_run(tmp_path / "b", kind=kind, seeds=2, drawn=False))
    change(paths[1] / "results.json", lambda r: r["settings"].update(settings))
    text = report.comparison_text(paths)
    assert "95 % interval" not in text
    assert text.endswith(" without a pair (other seeds, data, targets or split): b.")
    page = write_report(paths, tmp_path / "out")
    assert not (page.folder / "figures" / "differences.png").exists()
    assert data in page.text


def test_the_constant_predictor_is_shown_if_the_targets_are_the_same(tmp_path):
    paths = [write_run(tmp_path / n, scale=90, drawn=False) for n in "ab"]
    same = write_report(paths, tmp_path / "same").figures[AVERAGING]
    change(paths[1] / "results.json", lambda r: r["settings"].update(targets=["m"]))
    other = write_report(paths, tmp_path / "other").figures[AVERAGING]
    assert "constant predictor" in same - other


def test_a_table_of_one_of_several_runs_names_it(tmp_path):
    kinds = {"a": "images", "b": "spirograph"}
    paths = [write_run(tmp_path / n, kind=k, drawn=False) for n, k in kinds.items()]
    page = write_report(paths, tmp_path / "out")
    found = page.find("run", "features", "M", "R² of m")
    assert [row[0] for row in found[1:]] == ["b", "b"]


def test_words_say_what_averaging_did_to_an_accuracy():
    columns = {"views": ["plain", 1, 8], "mean": [0.7, 0.5, 0.75]}
    table = pd.DataFrame({"metric": "accuracy", **columns})
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
    assert shown in write_report(paths[1:], tmp_path / "rest").text
    assert "further variants" not in write_report(paths[1:], paths[1]).text
    note = next(line for line in text if line.startswith("Mean ± standard error over"))
    assert "Paper: Foster et al. (2021), ResNet-18, 50 epochs" in note


def test_a_number_that_is_not_finite_is_no_single_pair(tmp_path):
    paths = [write_run(tmp_path / name, seeds=2, drawn=False) for name in "ab"]
    content = (paths[1] / "results.json").read_text()
    (paths[1] / "results.json").write_text(re.sub(r"0\.0018\d*", "null", content))
    words = report.comparison_text(paths).split("MSE, one view")[-1].split()
    assert words[:4] == ["nan", "not", "finite", "2"]


def test_a_number_that_two_experiments_measured_counts_once(tmp_path):
    more = {"downstream": [("mse", {"views": 1}, 2e-3), ("mse.constant", {}, 0.2276)]}
    (run,) = read.read_runs([write_run(tmp_path / "run", more=more)])
    assert {*aggregate.over_seeds(aggregate.long_table([run.rows]))["n"]} == {1}


def kept(paths):
    return keep.rows_of(["plain", "penalty"], read.read_runs(paths))


def test_kept_results_are_compared_to_the_first(several):
    rows = kept([several.folder.parent / "a" / name for name in (HOSTILE, "_run")])
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
    rows = [row for row in kept(paths) if row["metric"] == "norm"]
    assert [float(row["difference"] or 0) for row in rows] == [0, 2]


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
    expected = f"same seeds, data, targets and split; .*{found}"
    with pytest.raises(ValueError, match=expected):
        kept(paths)
