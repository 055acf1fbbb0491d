"""The report: its files, tables and figures, comparisons, seeds, and bad input."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import TARGETS, Page, change, write_run, write_seed
from matplotlib.figure import Figure

from invariance_jax import report
from invariance_jax.report import (
    averaging,
    paper,
    read,
    results,
    samples,
    style,
    tables,
    training,
)

HOSTILE = "<script>alert('x')</script> $a_{ & \"q\""


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("single")
    return report.run([write_run(root / "quick")], root / "out")


@pytest.fixture(scope="module")
def again(single: Path) -> Path:
    """The same report a second time, into the work directory itself."""
    workdir = single.parent.parent / "quick"
    (workdir / "figures").mkdir()
    (workdir / "figures" / "mine.png").write_text("mine")
    return report.run([workdir], workdir)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    first = write_run(root / "a" / HOSTILE.replace("/", "\u2215"), device=HOSTILE)
    second = write_run(root / "a" / "_run", seeds=3, num_views=(1, 4), weight=0.0)
    third = write_run(root / "b" / "_run", scale=2.0)
    return report.run([first, second, third], root / "out")


def test_report_writes_only_the_documented_files(single: Path) -> None:
    written = {str(p.relative_to(single.parent)) for p in single.parent.rglob("*.*")}
    names = ("views", "training", "averaging", "predictions")
    expected = {f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")}
    of = ("mse", "r_squared", "measurements", "config", "experiments", "paper")
    expected |= {f"tables/{name}.csv" for name in of}
    assert written == expected | {"report.html"}


def test_report_in_a_work_directory_leaves_its_other_files(again: Path) -> None:
    assert (again.parent / "figures" / "mine.png").read_text() == "mine"
    inputs = {"config.json", "results.json", "metrics.jsonl", "samples.npz"}
    written = {"report.html", "figures", "tables"}
    assert {path.name for path in again.parent.iterdir()} == inputs | written


@pytest.mark.parametrize("which", ["single", "several"])
def test_page_loads_nothing_from_outside(
    which: str, request: pytest.FixtureRequest
) -> None:
    page = Page(request.getfixturevalue(which))
    for tag, attributes in page.tags:
        for name in ("src", "srcset"):
            if name in attributes:
                assert attributes[name].startswith("data:image/png;base64,"), tag
        if "href" in attributes:
            assert attributes["href"].startswith("#section-")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == (4 if which == "single" else 8)
    assert all(image["alt"] for image in images)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_page_links_reach_their_sections(several: Path) -> None:
    tags = Page(several).tags
    links = {attributes["href"][1:] for tag, attributes in tags if tag == "a"}
    assert links == {attributes["id"] for tag, attributes in tags if tag == "section"}


def test_page_has_a_dark_style_and_a_dark_image_for_each_figure(single: Path) -> None:
    assert "@media (prefers-color-scheme: dark)" in single.read_text()
    tags = [tag for tag, _ in Page(single).tags]
    assert tags.count("source") == tags.count("img") == 4


def test_overview_names_command_commit_versions_and_devices(single: Path) -> None:
    text = " ".join(Page(single).text)
    assert "python launch.py --config=configs/a.py --workdir=quick" in text
    for fact in ("0123abc", "jax 0.10.0", "2 x cpu", "9,000 examples per second"):
        assert fact in text
    assert "45 s" in text and "steps (derived)" in text
    assert "1500 steps of 256 examples" in text


def test_result_table_has_a_row_per_number_of_views(single: Path) -> None:
    rows = Page(single).find("M", "mean", "m", "b", "sigma", "rfore")
    assert [row[0] for row in rows] == ["M", "1", "2", "4", "8", "constant"]
    assert rows[1] == ["1", "2.00e-3", "1.00e-2", "1.00e-3", "1.00e-4", "1.00e-5"]
    assert rows[-1][:2] == ["constant", "0.2276"]


def test_result_table_over_seeds_has_standard_errors(several: Path) -> None:
    rows = Page(several).find("run", "seeds", "penalty.weight")
    assert rows[2][:4] == ["a/_run", "3", "0.0", "2.00e-3 ± 2.0e-4"]


def test_comparison_has_a_row_per_run_with_gaps_where_m_was_not_measured(
    several: Path,
) -> None:
    header, first, second, third = Page(several).find("run", "seeds")
    assert header[3:7] == ["mse@1", "mse@2", "mse@4", "mse@8"]
    assert second[4] == "" and second[5] == "5.00e-4 ± 5.0e-5"
    assert first[3] == "2.00e-3" and third[3] == "4.00e-3"
    assert [second[0], third[0]] == ["a/_run", "b/_run"]


def test_comparison_lists_the_settings_that_differ(several: Path) -> None:
    rows = Page(several).find("key", HOSTILE.replace("/", "\u2215"))
    assert rows[1:] == [["penalty.weight", "0.1", "0.0", "0.1"]]


def test_runs_on_different_splits_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name) for name in ("one", "other")]
    change(
        paths[1] / "results.json", lambda r: r["settings"].update(split="validation")
    )
    for path in paths:
        change(
            path / "config.json",
            lambda c: c["config"].update(evaluation={"split": "test"}),
        )
    page = Page(report.run(paths, tmp_path / "out"))
    text = " ".join(page.text)
    assert "different splits, not to be compared: one test, other validation" in text
    row = next(
        r for r in page.find("key", "one", "other") if r[0] == "evaluation.split"
    )
    assert row[1:] == ["test", "validation"]


def test_results_of_rows_only_are_shown(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    rows = [{"at": {"parameter": "h"}, "values": {"r2": {"mean": 0.5, "n": 1}}}]

    def edit(results: dict[str, Any]) -> None:
        results["summary"] = {}
        results["experiments"] = {"nuisance_prediction": {"seconds": 1, "rows": rows}}

    change(path / "results.json", edit)
    assert "0.5" in report.table(json.loads((path / "results.json").read_text()))
    assert report.run([path], path).exists()


def test_names_and_values_of_a_run_are_escaped(several: Path) -> None:
    assert "<script>alert" not in several.read_text()
    page = Page(several)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert HOSTILE in " ".join(page.text)


def test_each_compared_run_has_its_own_figures_and_tables(several: Path) -> None:
    stems = {path.stem for path in (several.parent / "figures").glob("*.png")}
    assert {"training", "averaging", "views-a__run", "predictions-b__run"} <= stems
    assert len(stems) == 2 + 3 * 2
    assert (several.parent / "tables" / "mse-a__run.csv").is_file()


def test_csv_holds_unrounded_numbers_with_error_and_n(several: Path) -> None:
    with (several.parent / "tables" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["mse@4"]) == 2e-3 / 4
    assert float(rows[0]["mse@8"]) == 2e-3 / 8
    assert float(rows[1]["mse@4 standard_error"]) == pytest.approx(5e-5)
    assert rows[1]["mse@4 n"] == "3"
    assert rows[0]["mse@4 standard_error"] == "" and rows[1]["mse@8"] == ""


def test_the_same_inputs_give_the_same_files(single: Path, again: Path) -> None:
    assert again.read_bytes() == single.read_bytes()
    svg = Path("figures") / "averaging.svg"
    assert (again.parent / svg).read_bytes() == (single.parent / svg).read_bytes()


def test_table_prints_every_number_aligned(tmp_path: Path) -> None:
    results = json.loads((write_run(tmp_path) / "results.json").read_text())
    lines = report.table(results).splitlines()
    assert lines[0].startswith("Results: one seed: no standard error; test split")
    assert lines[4].split() == ["M", "mean", "m", "b", "sigma", "rfore"]
    assert lines[8].split()[:3] == ["8", "2.50e-4", "1.25e-3"]
    assert len(lines[4]) == len(lines[5]) == len(lines[8])
    assert any(line.split() == ["variance.normalized", "2.10e-2"] for line in lines)
    assert any(line.startswith("Coefficient of determination") for line in lines)


def test_table_over_seeds_says_n_and_fits_a_wide_terminal(tmp_path: Path) -> None:
    results = json.loads((write_run(tmp_path, seeds=3) / "results.json").read_text())
    text = report.table(results)
    assert "mean ± standard error over n = 3 seeds" in text
    assert "2.00e-3 ± 2.0e-4" in text
    assert max(map(len, text.splitlines())) <= 110


def test_table_shows_classification_and_unknown_names() -> None:
    one = {"mean": 0.93, "standard_error": None, "n": 1}
    names = ("accuracy@plain", "accuracy@8", "cross_entropy@8", "mse@1.shift", "else")
    results = {"format": 1, "settings": {}, "summary": {name: one for name in names}}
    lines = [line.split() for line in report.table(results).splitlines()]
    assert ["M", "accuracy", "cross-entropy"] in lines
    assert ["plain", "0.9300"] in lines and ["8", "0.9300", "0.9300"] in lines
    assert ["mse@1.shift", "0.9300"] in lines and ["else", "0.9300"] in lines


@pytest.mark.parametrize(
    ("statistic", "text"),
    [
        ((1.99e-3, 3e-5, 3), "1.99e-3 ± 3.0e-5"),
        ((0.99912, 0.00004, 3), "0.999120 ± 0.000040"),
        ((-0.5, None, 1), "-0.5000"),
        ((0.0, 0.0, 3), "0 ± 0"),
        ((float("nan"), None, 1), "nan"),
        ((float("inf"), float("nan"), 2), "inf ± nan"),
        ((12345.0, None, 1), "1.23e4"),
    ],
)
def test_numbers_are_shown_with_fitting_digits(
    statistic: tuple[float, float | None, int], text: str
) -> None:
    assert tables.show(results.Statistic(*statistic)) == text


def test_training_curve_is_the_mean_over_the_seeds_at_common_steps() -> None:
    axes = Figure().subplots()
    curves = [
        (np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0])),
        (np.array([2, 3, 4]), np.array([4.0, 7.0, 9.0])),
    ]
    training._draw_curves(axes, curves, style.line_style(0, style.LIGHT))
    assert len(axes.lines) == 3
    np.testing.assert_array_equal(axes.lines[-1].get_xdata(), [2, 3])
    np.testing.assert_array_equal(axes.lines[-1].get_ydata(), [3.0, 5.0])


def test_averaging_figure_has_error_bars_and_the_papers_numbers(tmp_path: Path) -> None:
    runs = read.read_runs([write_run(tmp_path / "run", seeds=2)])
    figure = averaging.averaging_figure(runs)(style.LIGHT)
    assert len(figure.axes) == 5
    mean, first = figure.axes[0], figure.axes[1]
    drawn = np.asarray(mean.lines[0].get_ydata(), float)
    np.testing.assert_allclose(drawn, 2e-3 / np.array([1, 2, 4, 8]))
    bar = np.asarray(mean.collections[0].get_segments()[0], float)
    np.testing.assert_allclose(bar[:, 1], [1.8e-3, 2.2e-3])
    ours = {tuple(line.get_ydata()) for line in mean.lines}
    assert set(paper.MEAN.values()) <= ours
    assert 5.07e-4 in [line.get_ydata()[0] for line in first.lines]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_the_papers_numbers_are_not_drawn_beside_other_images(tmp_path: Path) -> None:
    workdir = write_run(tmp_path / "run")
    change(
        workdir / "config.json",
        lambda c: c["config"]["data"].update(normalization="image"),
    )
    figure = averaging.averaging_figure(read.read_runs([workdir]))(style.LIGHT)
    assert len(figure.axes[0].lines) == 1


@pytest.mark.parametrize(
    ("key", "same", "other"),
    [
        ("data.image_size", 32, 64),
        ("data.bounds.bback", [0.0, 0.6], [0.0, 1.0]),
        ("data.targets", ["b", "m", "rfore", "sigma"], ["m", "b"]),
        ("data.name", "spirograph", "cifar10"),
    ],
)
def test_runs_are_comparable_with_the_paper_only_on_its_images_and_tasks(
    key: str, same: object, other: object
) -> None:
    config = {"data.name": "spirograph"}
    assert paper.is_comparable({**config, key: same})
    assert not paper.is_comparable({**config, key: other})


def test_the_default_configuration_is_comparable_with_the_paper() -> None:
    base = pytest.importorskip("configs.base")
    config = json.loads(json.dumps(base.get_config().to_dict()))
    assert paper.is_comparable(read.flatten(config))


def test_runs_differ_in_line_and_marker_as_well_as_colour() -> None:
    styles = [style.line_style(i, style.LIGHT, marker=True) for i in range(6)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(entry[key]) for entry in styles}) == 6
    assert style.line_style(6, style.LIGHT)["linestyle"] != styles[0]["linestyle"]


def test_views_and_predictions_draw_what_the_samples_hold(tmp_path: Path) -> None:
    (run,) = read.read_runs([write_run(tmp_path / "run")])
    image = samples.views_figure(run)(style.LIGHT).axes[0].images[0].get_array()
    np.testing.assert_array_equal(image[9:17, 18:26, :3], run.samples.views[1, 2])
    axes = samples.predictions_figure(run)(style.LIGHT).axes
    assert [panel.get_title() for panel in axes] == TARGETS
    points = axes[2].collections[1].get_offsets()
    np.testing.assert_allclose(points[:, 0], run.samples.true[:, 2])
    np.testing.assert_allclose(points[:, 1], run.samples.predicted[:, 2])


def test_run_without_log_or_samples_is_reported_and_says_so(tmp_path: Path) -> None:
    workdir = write_run(tmp_path / "run")
    (workdir / "metrics.jsonl").unlink()
    (workdir / "samples.npz").unlink()
    page = Page(report.run([workdir], tmp_path / "out"))
    assert "No training log found." in " ".join(page.text)
    assert [tag for tag, _ in page.tags].count("img") == 1


def test_log_keeps_the_later_of_two_lines_and_counts_torn_ones(tmp_path: Path) -> None:
    workdir = write_run(tmp_path / "run")
    lines = ['{"step": 1, "loss": 5.0}', '{"step": 2, "lo', '{"step": 1, "loss": 3.0}']
    lines += ['{"step": 0, "loss": 9.0, "probe_mse": null}', "[1]", "7"]
    (workdir / "metrics.jsonl").write_text("\n".join(lines))
    (run,) = read.read_runs([workdir])
    steps, values = run.logs[0].curves["loss"]
    assert steps.tolist() == [0, 1] and values.tolist() == [9.0, 3.0]
    assert run.logs[0].skipped == 3 and "probe_mse" not in run.logs[0].curves


def test_seed_folders_that_the_aggregate_does_not_count_are_left_out(
    tmp_path: Path,
) -> None:
    workdir = write_run(tmp_path / "run", seeds=2)
    write_seed(workdir / "seed_10", 10)
    (run,) = read.read_runs([workdir])
    assert [log.label for log in run.logs] == ["seed_0", "seed_1"]


@pytest.mark.parametrize("missing", ["results.json", "config.json"])
def test_unfinished_directory_is_refused_before_anything_is_written(
    tmp_path: Path, missing: str
) -> None:
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad")
    (bad / missing).unlink()
    with pytest.raises(
        ValueError, match=rf"bad has no {missing}.*not finished"
    ) as info:
        report.run([good, bad], tmp_path / "out")
    assert "\n" not in str(info.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["results.json", "config.json"])
@pytest.mark.parametrize(
    ("found", "message"),
    [(3, "has format 3, this version reads up to format 2"), (None, "has format None")],
)
def test_newer_or_missing_format_is_refused(
    tmp_path: Path, file: str, found: object, message: str
) -> None:
    workdir = write_run(tmp_path / "run")
    change(workdir / file, lambda content: content.update(format=found))
    with pytest.raises(ValueError, match=f"run: {file} {message}"):
        report.run([workdir], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none does not exist"):
        report.run([tmp_path / "none"], tmp_path / "out")


def test_directory_given_twice_is_refused(tmp_path: Path) -> None:
    workdir = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="run is given twice"):
        report.run([workdir, tmp_path / "." / "run"], tmp_path / "out")


@pytest.mark.parametrize("workdirs", [[], "run"])
def test_workdirs_must_be_a_list_of_directories(workdirs: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workdirs must be a list"):
        report.run(workdirs, tmp_path / "out")


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    workdir = write_run(tmp_path / "run")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out must be a directory"):
        report.run([workdir], tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("results.json", "{", "results.json is not valid JSON"),
        ("results.json", "[]", "results.json must hold an object, not list"),
        ("results.json", '{"format": 1}', "results.json has no summary"),
        (
            "results.json",
            '{"format": 1, "summary": {"mse@1": 3}}',
            "summary entry 'mse@1' must have a mean",
        ),
        ("samples.npz", "torn", "samples.npz: "),
    ],
)
def test_unreadable_file_is_named(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    workdir = write_run(tmp_path / "run")
    (workdir / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        report.run([workdir], tmp_path / "out")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"views": np.zeros((2, 8, 8, 3), np.uint8)}, r"views must have shape"),
        ({"true": np.zeros((5, 3))}, r"true must have shape \[N, 4\]"),
    ],
)
def test_samples_of_another_shape_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    workdir = write_run(tmp_path / "run")
    np.savez(workdir / "samples.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        report.run([workdir], tmp_path / "out")


def test_importing_the_report_does_not_import_matplotlib() -> None:
    code = "import sys, invariance_jax.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
