"""The report: its page, figures, tables and texts; comparisons; bad input."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from finished_runs import CLASSES, EXPERIMENTS, Page, change, write_log, write_run

from invariance_jax import report
from invariance_jax.report import (
    aggregate,
    commands,
    compare,
    draw,
    paper,
    read,
    sections,
    style,
    words,
)

HOSTILE = "<script>alert('x')</script> $a_{ & \"q\""
DIRECTORY = HOSTILE.replace("/", "\u2215")


def figures(page: Path) -> dict[str, str]:
    """Heading of a figure -> its SVG as text."""
    html = page.read_text(encoding="utf-8")
    found = re.findall(r"<figure><h3>(.*?)</h3>\s*<img[^>]*base64,([^\"]*)\"", html)
    return {title: base64.b64decode(content).decode() for title, content in found}


def texts(svg: str) -> list[str]:
    """What a figure says."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("single")
    run = write_run(root / "quick", seeds=3, experiments=tuple(EXPERIMENTS))
    return report.run([run], root / "out")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    kept = ("averaging", "shift", "label_fraction")
    config = {"data.name": "cifar10"}
    run = write_run(root / "run", kind="images", experiments=kept, config=config)
    return report.run([run], root / "out")


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    first = write_run(root / "a" / DIRECTORY, seeds=3, config={"penalty.weight": 0.0})
    second = write_run(root / "a" / "_run", seeds=3, scale=0.5, spread=0.12)
    third = write_run(root / "b" / "_run", scale=2.0)
    return report.run([first, second, third], root / "out")


def test_report_writes_only_the_documented_files(single: Path) -> None:
    written = {str(p.relative_to(single.parent)) for p in single.parent.rglob("*.*")}
    names = {"averaging", "averaging_targets", "views", "predictions", "projection"}
    names |= {"neighbors", "training", "invariance", "invariance_checkpoints", "shift"}
    names |= {"linearization", "linearization_parameters", "nuisance_prediction"}
    drawn = {f"figures/{name}.png" for name in {*names, "label_fraction"}}
    assert {path for path in written if path.startswith("figures")} == drawn
    assert {f"tables/{n}.csv" for n in ("results", "downstream", "shift_1")} <= written
    assert {re.sub("/.*", "", path) for path in written} == {
        "report.html",
        "figures",
        "tables",
    }


def test_report_in_a_work_directory_leaves_its_other_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind="none", experiments=())
    (run / "figures").mkdir()
    (run / "figures" / "mine.png").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    first = report.run([run], run).read_bytes()
    assert report.run([run], run).read_bytes() == first  # the same input, the same file
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("which", ["single", "several"])
def test_page_loads_nothing_and_runs_its_own_script_only(
    which: str, request: pytest.FixtureRequest
) -> None:
    page = Page(request.getfixturevalue(which))
    for tag, attributes in page.tags:
        assert str(attributes.get("src", "data:image/svg+xml")).startswith("data:"), tag
        assert str(attributes.get("href", "#section-")).startswith("#section-")
        assert not any(name.startswith("on") for name in attributes)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1 and not {"link", "iframe", "object"} & {*tags}
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy and re.search(r"script-src 'sha256-[\w+/=]+'$", policy)
    links = {a["href"] for tag, a in page.tags if tag == "a"}
    assert links == {f"#{a['id']}" for tag, a in page.tags if tag == "section"}


def test_what_comes_from_files_is_escaped_everywhere(several: Path) -> None:
    text = several.read_text(encoding="utf-8")
    assert "<script>alert" not in text and DIRECTORY in Page(several).text
    for svg in figures(several).values():
        assert "<script" not in svg
    drawn = texts(figures(several)["Quality against the number of averaged views"])
    assert DIRECTORY in [
        t.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for t in drawn
    ]


def test_first_screen_has_numbers_averaging_and_views(single: Path) -> None:
    text = re.sub(r"\s+", " ", Page(single).text)
    assert "MSE, one view(2.00 ± 0.12)e-3constant predictor: 0.2276" in text
    assert "MSE, average of 8 views(2.50 ± 0.14)e-4" in text
    assert "normalized variance of n(h)0.0210 ± 0.0012" in text
    assert "Mean ± standard error over 3 seeds, test split." in text
    order = ["Quality against", "Views", "Downstream task", "Embeddings", "Invariance"]
    order += ["Linearization", "Nuisance prediction", "Shift", "Label fraction"]
    html = single.read_text(encoding="utf-8")
    places = [html.index(f">{title}") for title in [*order, "Training", "Settings"]]
    assert sorted(places[2:]) == places[2:] and places[0] < places[1]
    folded = html[html.rindex("<section") :]
    assert folded.count("<details>") == 3 and "penalty.weight" in folded


def test_downstream_table_has_human_words_and_grey_rows_of_the_paper(
    single: Path,
) -> None:
    rows = {(row[0], row[1]): row for row in Page(single).find("features", "M", "MSE")}
    assert rows["encoder", "8"][2:4] == ["(2.50 ± 0.14)e-4", "(6.0 ± 0.3)e-5"]
    assert ("probe with its own l2", "8") in rows
    assert ("averaged predictions", "4") in rows
    assert rows["constant predictor", ""][2] == "0.2276"
    assert rows["paper, penalty", "30"][2] == "(9.60 ± 0.10)e-4"
    assert rows["paper, no penalty", "1"][2:5] == [
        "(2.97 ± 0.08)e-3",
        "6.77e-4",
        "0.0112",
    ]
    html = single.read_text(encoding="utf-8")
    assert re.search(r'<tr class="faint"><td class="text" [^>]*>paper, penalty', html)
    assert "ddof 0" in html and "may not have converged" in html


def test_no_gradient_norm_is_among_the_results(images: Path) -> None:
    assert "gradient" not in Page(images).text.replace("_", " ")
    assert "gradient_norm" in (images.parent / "tables" / "results.csv").read_text()


def test_classification_shows_class_names_and_cifar_numbers(images: Path) -> None:
    shown = figures(images)
    assert {*CLASSES} <= {*texts(shown["Predicted against true classes"])}
    assert {*CLASSES} <= {*texts(shown["Principal components of h"])}
    rows = {(row[0], row[1]): row for row in Page(images).find("features", "M")}
    assert rows["encoder", "plain images"][2:5] == ["0.9640", "0.1080", "0.9500"]
    assert rows["raw pixels", "plain images"][2] == "0.8400"
    assert rows["paper, no penalty", "plain images"][2] == "0.9304 ± 0.0004"
    legend = texts(shown["Quality against the number of averaged views"])
    assert {"crop and flip only", "plain images", "paper, penalty"} <= {*legend}
    fractions = Page(images).find("run", "share of labels", "M")
    assert [
        "paper, penalty",
        "share 1 of 8 (about 0.05)",
        "plain images",
        "0.9120",
        "",
    ] in (fractions)


def test_split_and_plain_image_are_named_rightly(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind="images", config={"data.name": "cifar10"})
    change(run / "results.json", lambda r: r["settings"].update(split="validation"))
    page = Page(report.run([run], tmp_path / "out"))
    assert "one seed, validation split" in page.text and "test split" not in page.text
    assert "at the left the plain image" in page.text
    assert "paper" not in page.text  # measured on another split
    assert "standard error" not in page.text  # there is none


def test_run_without_labels_has_variance_views_and_neighbours(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind="none")
    page = report.run([run], tmp_path / "out")
    assert {"Views", "Nearest neighbours", "Principal components of h"} <= {
        *figures(page)
    }
    assert "Downstream" not in Page(page).text and "probe" not in {
        *Page(page).text.split()
    }


def test_experiment_of_a_users_own_has_a_table_and_curves(tmp_path: Path) -> None:
    rows = [
        ("my_speed", {"place": f"<{p}>", "n_bits": n}, n / 3)
        for p in "ab"
        for n in (1, 2)
    ]
    more = {"my_thing": rows, "flat": [("silhouette", {}, 0.25)]}
    run = write_run(tmp_path / "run", kind="none", experiments=(), more=more)
    page = report.run([run], tmp_path / "out")
    assert (page.parent / "figures" / "my_thing.png").exists()
    found = Page(page)
    assert found.find("place", "n bits", "my speed")[1] == ["<a>", "1", "0.3333"]
    assert found.find("silhouette")[1] == ["0.2500"] and "My thing" in found.text


def test_results_csv_holds_every_row_unrounded(single: Path) -> None:
    found = pd.read_csv(single.parent / "tables" / "results.csv")
    rows = json.loads((single.parent.parent / "quick" / "results.json").read_text())[
        "rows"
    ]
    assert len(found) == len(rows)
    np.testing.assert_array_equal(found["value"], [row["value"] for row in rows])
    shift = pd.read_csv(single.parent / "tables" / "shift_1.csv")
    assert {"parameter", "how", "shift", "head", "views", "mean", "n"} <= {*shift}
    assert set(shift["run"]) == {"quick", "paper, no penalty", "paper, penalty"}


def test_shift_is_shown_beside_the_paper_with_units(single: Path) -> None:
    said = texts(figures(single)["Quality under another distribution of the nuisance"])
    assert {"M = 1", "M = 8", "width factor of h (hole)", "training distribution"} <= {
        *said
    }
    assert {"shift of h (hole) (plane units)", "refitted head", "paper, penalty"} <= {
        *said
    }
    assert "constant predictor" not in said  # far above


def test_comparison_has_main_numbers_and_paired_differences(several: Path) -> None:
    page = Page(several)
    main = page.find("run", "seeds", "MSE, one view")
    assert [row[0] for row in main[1:4]] == [DIRECTORY, "a/_run", "b/_run"]
    assert main[2][1:3] == ["3", "(1.00 ± 0.07)e-3"] and main[3][1:3] == [
        "1",
        "4.00e-3",
    ]
    assert ["paper, weight 0.1", "1", "0.2230", "", ""] in main
    rows = {
        (row[0], row[1]): row[2:] for row in page.find("run", "number", "difference")
    }
    # Of one seed each: 2e-3 * ((.5 * .88 - .9), -.5, (.5 * 1.12 - 1.1)).
    values = 2e-3 * np.array([-0.46, -0.5, -0.54])
    half = 4.302653 * values.std(ddof=1) / 3**0.5
    ends = f"{-1e-3 - half:.2e} to {-1e-3 + half:.2e}".replace("e-0", "e-")
    assert rows["a/_run", "MSE, one view"] == ["-1.00e-3", ends, "3"]
    assert rows["b/_run", "MSE, one view"] == ["2.20e-3", "one pair: none", "1"]
    differ = page.find("key", DIRECTORY)
    assert differ[1:] == [["penalty.weight", "0.0", "0.1", "0.1"]]
    dots = texts(
        figures(several)[
            f"Paired differences to {DIRECTORY}".replace("&", "&amp;")
            .replace("<", "&lt;")
            .replace(">", "&gt;")
            .replace("'", "&#39;")
            .replace('"', "&#34;")
        ]
    )
    assert "MSE, one view" in dots and "(lower is better)" in dots
    files = {path.name for path in (several.parent / "figures").iterdir()}
    assert {"differences.png", "views-2-a__run.png", "projection-3-b__run.png"} <= files


def test_runs_on_different_splits_are_told_apart(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, kind="none") for name in ("one", "other")]
    change(
        paths[1] / "results.json", lambda r: r["settings"].update(split="validation")
    )
    text = Page(report.run(paths, tmp_path / "out")).text
    assert "different splits, not to be compared: one test, other validation" in text


def test_points_of_a_sweep_have_their_labels(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / f"x={n}", kind="none", seeds=2) for n in (1, 2)]
    points = {path.name: {"label": f"variant {path.name[-1]}"} for path in paths}
    (tmp_path / "sweep.json").write_text(json.dumps({"format": 2, "points": points}))
    lines = report.comparison_text(paths).splitlines()
    assert lines[0].split()[:2] == ["run", "seeds"]
    assert lines[1].startswith("variant 1  2 ")
    assert lines[-1].startswith("Run minus variant 1")


def test_terminal_table_is_three_lines(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=3)
    lines = report.table(json.loads((run / "results.json").read_text())).splitlines()
    assert lines[0] == (
        "MSE, one view                (2.00 ± 0.12)e-3  (3 seeds, test split)"
    )
    assert len(lines) == 3 and lines[2].endswith("0.0210 ± 0.0012")


def test_collapse_does_not_hide_the_other_differences() -> None:
    runs = ["a", "b", "c", "d"]
    table = pd.DataFrame({"run": runs, "metric": "mse", "n": 3})
    table["mean"], table["standard_error"] = [1.0, -2.0, 1.5, 300.0], 0.1
    spec = sections.Spec("x", "", "", "run", metrics=(("mse",),), dots=True, line=0.0)
    shown = draw.Shown(table, runs, words.Words(), {}, np.nan)
    picture = draw.figure(spec, shown)
    assert picture and "(1 out of sight)" in texts(picture.svg)


@pytest.mark.parametrize(
    ("values", "labels"),
    [([1e-3, 5e-2], {"0.001", "0.01"}), ([0.5, 0.52], {"0.500", "0.520"})],
)
def test_axes_are_logarithmic_where_positive_numbers_span_them(
    values: list[float], labels: set[str]
) -> None:
    table = pd.DataFrame({"run": "r", "metric": "mse", "x": [1, 2], "mean": values})
    table = table.assign(standard_error=np.nan, target=np.nan)
    spec = sections.Spec("x", "", "", "x", where={})
    shown = draw.Shown(table, ["r"], words.Words(), {}, np.nan)
    picture = draw.figure(spec, shown)
    assert picture and labels <= {*texts(picture.svg)}


def test_runs_differ_in_line_and_marker_as_well_as_colour() -> None:
    looks = [style.line_style(number) for number in range(7)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(look[key]) for look in looks[:6]}) == 6
    assert len({str(look) for look in looks}) == 7


def test_statistics_over_seeds_and_pairs() -> None:
    rows = [
        {"run": run, "experiment": "e", "metric": "m", "seed": seed, "value": value}
        for run, values in {"a": [1.0, 3.0], "b": [2.0, 5.0, np.nan]}.items()
        for seed, value in enumerate(values)
    ]
    table = aggregate.over_seeds(pd.DataFrame(rows))
    assert table["mean"][0] == 2 and table["standard_error"][0] == 1
    assert np.isnan(table["mean"][1]) and list(table["n"]) == [2, 3]
    pairs = aggregate.paired(pd.DataFrame(rows), "a")
    half = 12.7062047 * 0.5  # of n = 2, t(.975) times the error of (1, 2)
    assert pairs["mean"][0] == 1.5 and pairs["n"][0] == 2
    np.testing.assert_allclose(
        [pairs["low"][0], pairs["high"][0]], [1.5 - half, 1.5 + half]
    )


def test_a_number_that_two_experiments_measured_counts_once(tmp_path: Path) -> None:
    more = {"downstream": [("mse", {"views": 1}, 2e-3), ("mse.constant", {}, 0.2276)]}
    path = write_run(tmp_path / "run", more=more)
    (run,) = read.read_runs([path])
    table = aggregate.over_seeds(aggregate.long_table([run.rows]))
    assert set(table["n"]) == {1}
    assert compare.places(table)[0] == ("mse", 1)


@pytest.mark.parametrize(
    ("key", "same", "other"),
    [
        ("data.image_size", 32, 64),
        ("data.bounds.bback", [0.0, 0.6], [0.0, 1.0]),
        ("data.targets", ["b", "m", "rfore", "sigma"], ["m", "b"]),
        ("data.normalization", "row", "image"),
        ("data.name", "spirograph", "svhn_cropped"),
        ("augmentation.name", None, "mine:views"),
    ],
)
def test_the_paper_is_comparable_only_on_its_images_and_targets(
    tmp_path: Path, key: str, same: object, other: object
) -> None:
    (run,) = read.read_runs([write_run(tmp_path / "run")])
    assert paper.data_of(run._replace(config={**run.config, key: same})) == "spirograph"
    assert not len(paper.rows([run._replace(config={**run.config, key: other})]))


def test_papers_numbers_are_the_published_ones(tmp_path: Path) -> None:
    (run,) = read.read_runs([write_run(tmp_path / "run")])
    rows = paper.rows([run]).set_index(["run", "experiment"])
    one = rows.loc[("paper, penalty", "averaging")]
    mean = one[one["target"].isna()].set_index("views")["mean"]
    expected = {
        1: 1.99,
        2: 1.63,
        3: 1.46,
        4: 1.36,
        5: 1.28,
        10: 1.11,
        20: 1.0,
        30: 0.96,
    }
    np.testing.assert_allclose(
        1e3 * mean[[*expected]].astype(float), [*expected.values()]
    )
    moved = rows.loc[("paper, no penalty", "shift")]
    moved = moved[moved["parameter"] == "background"]["mean"]
    np.testing.assert_allclose(moved, [3.0e-3, 3.09e-3, 3.61e-3, 4.7e-3, 6.46e-3])
    assert not rows.index.get_level_values(0).str.contains("weight").any()


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (
            "launch.py --config=a.py --workdir 'my runs/w'",
            "python launch.py --config=a.py --workdir 'my runs/w' --mode=evaluate "
            "--config.evaluation.experiments=shift",
        ),
        (
            "launch.py --mode all --config=a.py:quick --config.penalty.weight .1 "
            "--config.evaluation.experiments \"('averaging', 'shift')\" --cluster=slurm "
            "--out 'a b' --workdir=w",
            "python launch.py --config=a.py:quick --config.penalty.weight .1 --workdir=w "
            "--mode=evaluate --config.evaluation.experiments=shift",
        ),
    ],
)
def test_command_of_an_experiment_can_be_used_again(
    tmp_path: Path, recorded: str, expected: str
) -> None:
    path = write_run(tmp_path / "run")
    change(path / "config.json", lambda c: c.update(command=recorded))
    (run,) = read.read_runs([path])
    assert commands.of_experiment(run, "shift") == expected
    trained, evaluated = commands.of_run(run)
    assert trained == f"python {recorded}" or '"(' in trained
    assert evaluated == "python launch.py --mode=evaluate --workdir=run"


def test_damaged_lines_of_the_log_are_counted_and_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seeds=2, kind="none")
    lines = ['{"step": 1, "loss": 5.0}', '{"step": 2, "lo', '{"step": 1, "loss": 3.0}']
    lines += [
        '{"step": 0, "loss": 9.0, "penalty": null}',
        "[1]",
        "7",
        '{"step": 1e999}',
    ]
    content = "\n".join(lines).encode() + b"\n\xff\xfe{}"
    (run / "seed_1" / "metrics.jsonl").write_bytes(content)
    write_log(run, 9)  # of no seed that counts
    (found,) = read.read_runs([run])
    log = found.log[found.log["seed"] == "seed_1"]
    assert log[["step", "name", "value"]].to_numpy().tolist() == [
        [1, "loss", 3.0],
        [0, "loss", 9.0],
    ]
    assert found.skipped == {"seed_1/metrics.jsonl": 5}
    page = Page(report.run([run], tmp_path / "out"))
    assert "5 unreadable line(s) of seed_1/metrics.jsonl skipped" in page.text


def test_run_without_log_or_samples_is_reported(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "samples.npz"):
        (run / name).unlink()
    page = report.run([run], tmp_path / "out")
    assert "Training curves" not in figures(page) and "Views" not in figures(page)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        ("results.json", {"format": 2}, "has format 2, this version reads 3: use inv"),
        ("results.json", {"format": None}, "has format None"),
        ("results.json", {"rows": {}}, "must have a list of rows, found {}"),
        (
            "results.json",
            {"rows": [{"at": {}}]},
            "row 1 must have an experiment, a metric",
        ),
        ("results.json", "[]", "results.json must hold an object, not list"),
        ("results.json", "{", "results.json is not valid JSON"),
        ("config.json", "{", "config.json is not valid JSON"),
        ("samples.npz", "torn", "samples.npz: "),
        ("results.json", None, "has no results.json: the run is not finished"),
        ("config.json", None, "has no config.json: the run is not finished"),
    ],
)
def test_bad_work_directory_is_named_before_anything_is_written(
    tmp_path: Path, file: str, edit: Any, message: str
) -> None:
    good, bad = (write_run(tmp_path / name, kind="none") for name in ("good", "bad"))
    if isinstance(edit, dict):
        change(bad / file, lambda content: content.update(edit))
    elif edit is None:
        (bad / file).unlink()
    else:
        (bad / file).write_text(edit)
    with pytest.raises(ValueError, match=f"bad.*{re.escape(message)}") as info:
        report.run([good, bad], tmp_path / "out")
    assert "\n" not in str(info.value) and not (tmp_path / "out").exists()


def test_coordinates_that_are_no_text_or_number_are_refused(tmp_path: Path) -> None:
    more = {"mine": [("m", {"place": [1]}, 0.5)]}
    run = write_run(tmp_path / "run", more=more, experiments=())
    with pytest.raises(ValueError, match=r"row 2: place must be a text or a number"):
        report.run([run], tmp_path / "out")


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    np.savez(run / "samples.npz", views=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"views must have 5 dimensions, found shape"):
        report.run([run], tmp_path / "out")


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind="none")
    (tmp_path / "file").write_text("mine")
    for workdirs, message in (
        ([], "workdirs must be a list"),
        (str(run), "workdirs must be a list"),
        ([run, tmp_path / "." / "run"], "run is given twice"),
        ([tmp_path / "none"], "none does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            report.run(workdirs, tmp_path / "out")
    with pytest.raises(ValueError, match="out must be a directory"):
        report.run([run], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_settings_of_this_machine_change_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", kind="none")
    (tmp_path / "matplotlibrc").write_text("font.size: 40\nbackend: qtagg\n")
    code = (
        "import sys; from invariance_jax import report\n"
        "assert not {'matplotlib', 'pandas'} & {*sys.modules}\n"
        "report.run(sys.argv[1:2], sys.argv[2])"
    )
    pages = []
    root = Path(__file__).parents[1]
    for number, added in enumerate(({}, {"MPLBACKEND": "nonsense", "LC_ALL": "C"})):
        environment = {**os.environ, "PYTHONPATH": str(root), **added}
        out = tmp_path / f"out_{number}"
        folder = tmp_path if added else root
        arguments = [sys.executable, "-c", code, str(run), str(out)]
        subprocess.run(arguments, cwd=folder, env=environment, check=True)
        pages.append((out / "report.html").read_bytes())
    assert pages[0] == pages[1]
