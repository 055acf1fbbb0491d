"""What the report shows of the experiments: reading, figures, tables, the page."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import Page, change, write_run
from made_up_experiments import LABELS, NUISANCE, TARGETS, add, experiments

from invariance_jax import report
from invariance_jax.report import (
    averaging,
    commands,
    curves,
    document,
    grids,
    headlines,
    paper,
    read,
    results,
    studies,
    study_tables,
    style,
    tables,
)
from invariance_jax.report import (
    experiments as sections,
)
from invariance_jax.report.drawing import draw
from invariance_jax.report.panels import Curve, Dots, Interval, Panel, Spots
from invariance_jax.training import keys

Runs = list[read.Run]


def content(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "results.json").read_text())


def panels(figure: Any) -> tuple[Any, ...]:
    """The panels of a figure that is not yet drawn."""
    assert figure is not None
    return figure.args[0]


def looks(panel: Panel) -> list[Any]:
    return [curve.look for curve in panel.curves]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("one")
    return read.read_runs([add(write_run(root / "run", seeds=3), experiments(3))])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("two")
    first = add(write_run(root / "first", seeds=2), experiments(2))
    found = experiments(1, scale=1.5)
    del found["linearization"]
    second = add(write_run(root / "second", weight=0.0), found)
    return read.read_runs([first, second])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("images")
    workdir = write_run(root / "run", seeds=3, data="cifar10")
    return read.read_runs([add(workdir, experiments(3, images=True))])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts one grey pixel in place of every figure."""
    pixel = b"\x89PNG"

    def render(name: str, title: str, caption: str, _: object) -> style.Picture:
        return style.Picture(name, title, caption, pixel, pixel, b"<svg/>")

    monkeypatch.setattr(document, "render", render)


def test_rows_are_read_as_the_file_has_them(one: Runs) -> None:
    (run,) = one
    written = content(Path(run.path))["experiments"]
    assert [*run.results.experiments] == [*written]
    assert run.results.experiments["shift"].seconds == 12.3
    assert run.results.experiments["limits"].seconds is None
    for name, found in run.results.experiments.items():
        for row, expected in zip(found.rows, written[name]["rows"], strict=True):
            assert row.at == expected["at"]
            as_dicts = {k: v._asdict() for k, v in row.values.items()}
            assert as_dicts == expected["values"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "experiments must be an object, found list"),
        ({"shift": 3}, "experiment 'shift' must have a list of rows, found 3"),
        ({"shift": {"rows": {}}}, "experiment 'shift' must have a list of rows"),
        (
            {"shift": {"rows": [], "seconds": "1"}},
            "experiment 'shift': seconds must be a number or null, found 1",
        ),
        (
            {"shift": {"rows": [{"at": {}}]}},
            'experiment \'shift\': row 1 must have the objects "at" and "values"',
        ),
        (
            {"shift": {"rows": [{"at": {"shift": [1]}, "values": {}}]}},
            r"row 1: shift must be a text or a number, found \[1\]",
        ),
        (
            {"shift": {"rows": [{"at": {}, "values": {"mse": 3}}]}},
            "experiment 'shift': row 1: 'mse' must have a mean, .* found 3",
        ),
    ],
)
def test_damaged_experiments_are_refused_by_name(
    tmp_path: Path, found: object, message: str
) -> None:
    workdir = write_run(tmp_path / "run")
    change(workdir / "results.json", lambda c: c.update(experiments=found))
    with pytest.raises(ValueError, match=f"run: results.json: .*{message}"):
        report.run([workdir], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_experiment_and_study_has_a_section_in_their_order() -> None:
    named = [name for name in keys.EXPERIMENTS if name != "downstream"]
    assert [*sections.SECTIONS] == [*named, *keys.STUDIES]


def test_a_run_without_experiments_has_only_the_averaging(tmp_path: Path) -> None:
    runs = read.read_runs([write_run(tmp_path / "run")])
    assert [*sections.sections(runs)] == ["averaging"]


@pytest.mark.usefixtures("undrawn")
def test_an_experiment_that_is_not_known_is_a_plain_table(tmp_path: Path) -> None:
    value = {"mean": 0.5, "standard_error": None, "n": 1}
    rows = [{"at": {"place": "<b>", "n": 3}, "values": {"speed": value}}]
    workdir = add(write_run(tmp_path / "run"), {"new_thing": {"rows": rows}})
    page = Page(report.run([workdir], tmp_path / "out"))
    assert "New thing" in " ".join(page.text)
    assert page.find("place", "n")[1:] == [["<b>", "3", "0.5000"]]


def test_shift_draws_the_rows_of_each_head(one: Runs) -> None:
    shown = panels(curves.shift_figure(one))
    assert len(shown) == 2 * 3  # M, grids
    panel = next(p for p in shown if p.title.endswith("M = 8") and "width" in p.x)
    ours = [curve for curve in panel.curves if curve.look == 0]
    assert [(curve.name, curve.hollow) for curve in ours] == [
        ("refitted head", False),
        ("fixed head", True),
    ]
    place = {"parameter": "h", "how": "widen", "views": 8}
    for curve, head in zip(ours, ("refitted", "fixed"), strict=True):
        expected = {
            row.at["shift"]: row.values["mse"]
            for row in one[0].results.experiments["shift"].rows
            if {**row.at, **place, "head": head} == row.at
        }
        assert dict(curve.points) == expected
    assert [(mark.axis, mark.level) for mark in panel.marks] == [("x", 1.0)]
    assert {p.group for p in shown} == {"mse, 1", "mse, 8"}


def test_shift_has_the_papers_numbers_for_one_view_and_a_moved_law(one: Runs) -> None:
    shown = panels(curves.shift_figure(one))
    beside = [p for p in shown if "penalty" in looks(p)]
    assert [p.x for p in beside] == [
        "shift of h (plane units)",
        "shift of background (intensity)",
    ]
    assert all(p.title.endswith("M = 1") for p in beside)
    (curve,) = [c for c in beside[0].curves if c.look == "no penalty"]
    assert [(x, y.mean) for x, y in curve.points] == [
        (-0.5, 5.06e-3),
        (-0.3, 3.27e-3),
        (-0.1, 2.98e-3),
        (0.1, 3.12e-3),
        (0.3, 4.09e-3),
        (0.5, 6.89e-3),
    ]


def test_the_papers_numbers_are_left_out_beside_other_images(tmp_path: Path) -> None:
    workdir = add(write_run(tmp_path / "run", seeds=3), experiments(3))
    changed = {"normalization": "image"}
    change(workdir / "config.json", lambda c: c["config"]["data"].update(changed))
    runs = read.read_runs([workdir])
    drawn = curves.shift_figure(runs), averaging.averaging_figure(runs)
    drawn += (studies.weight_figure(runs),)
    found = {look for figure in drawn for p in panels(figure) for look in looks(p)}
    assert found == {0, "collapsed"}
    assert grids.paper_table(runs) is None
    assert not any("paper" in c for t in grids.shift_tables(runs) for c in t.columns)


def test_shift_of_images_has_accuracies_of_the_same_set(images: Runs) -> None:
    shown = panels(curves.shift_figure(images))
    assert [p.title for p in shown[:2]] == ["accuracy, M = 1", "cross-entropy, M = 1"]
    assert [looks(p)[-2:] for p in shown[:2]] == [["no penalty", "penalty"], [0, 0]]
    assert shown[0].curves[-1].points[0][1].mean == 0.9336
    assert shown[0].bounded and shown[0].marks[0].level == 0.5
    (table,) = grids.shift_tables(images)
    assert table.columns[-1] == "paper, penalty: accuracy, refitted, M = 1"
    assert table.rows[4][0] == "0.875" and table.rows[4][-1].mean == 0.9096
    (other,) = images
    other = other._replace(config={"data": {"name": "svhn_cropped"}})
    assert looks(panels(curves.shift_figure([other]))[0]) == [0, 0]


def test_shift_shows_the_constant_predictor_only_near_it(one: Runs) -> None:
    (run,) = one
    summary = {**run.results.summary, "mse.constant": results.Statistic(0.04, None, 1)}
    near = run._replace(results=run.results._replace(summary=summary))
    names = [
        {mark.name for p in panels(curves.shift_figure([r])) for mark in p.marks}
        for r in (run, near)
    ]
    assert [("constant predictor" in found) for found in names] == [False, True]


def test_shift_by_task_has_a_panel_per_task_and_grid(one: Runs) -> None:
    shown = panels(curves.shift_figure(one, by_task=True))
    assert [p.title for p in shown] == [f"{name}, M = 1" for name in TARGETS] * 3


def test_invariance_shows_all_parameters_then_each(one: Runs) -> None:
    first, second = panels(curves.parameters_figure(one))
    assert [*first.names] == ["all", *NUISANCE] and "n(h)" in first.title
    rows = one[0].results.experiments["invariance"].rows
    h = next(r for r in rows if r.at.get("parameter") == "gback" and r.at["of"] == "h")
    mean, error, _ = h.values["normalized"]
    assert second.spots[0].values["gback"] == Interval(mean, mean - error, mean + error)


def test_checkpoints_are_drawn_if_there_are_several(one: Runs) -> None:
    shown = panels(curves.checkpoints_figure(one))
    assert [x for x, _ in shown[0].curves[0].points] == [250, 500, 1000, 1500]
    found = one[0].results.experiments["invariance"]
    kept = tuple(row for row in found.rows if row.at.get("step", 250) == 250)
    single = {"invariance": found._replace(rows=kept)}
    run = one[0]._replace(results=one[0].results._replace(experiments=single))
    assert curves.checkpoints_figure([run]) is None
    assert curves.parameters_figure([run]) is not None


def test_linearization_shows_mean_and_median_over_the_steps(one: Runs) -> None:
    error, ratio, cosine = panels(curves.linearization_figure(one))
    assert [(c.name, c.hollow) for c in ratio.curves] == [
        ("mean", False),
        ("median", True),
    ]
    assert error.scale == "log" and [x for x, _ in error.curves[0].points][-1] == 1
    assert [p.marks[0].level for p in (error, ratio, cosine)] == [1, 1, 1]
    dots = panels(curves.linearization_parameters_figure(one))
    assert [*dots[0].names] == ["all", *NUISANCE]
    assert [panel.zero for panel in dots] == [1, 1, 1, None]


def test_nuisance_prediction_has_a_line_at_the_constant_predictor(one: Runs) -> None:
    (dots,) = panels(curves.nuisance_figure(one))
    assert dots.zero == 0 and [*dots.names] == [*NUISANCE]


def test_label_fractions_are_drawn_and_the_papers_only_listed(images: Runs) -> None:
    accuracy, _ = panels(curves.fractions_figure(images))
    assert [c.name for c in accuracy.curves] == ["plain images", "M = 8"]
    assert accuracy.scale == "log" and looks(accuracy) == [0, 0]
    found = sections.SECTIONS["label_fraction"].tables(images)
    (listed,) = [table for table in found if table.name == "paper_labels"]
    assert [cell.mean for cell in listed.rows[0][1:]] == [*paper.LABELS["no penalty"]]
    assert "n = 3" in listed.note and "not known" in listed.note


def test_penalty_weight_starts_at_0_and_rings_what_collapsed(one: Runs) -> None:
    shown = panels(studies.weight_figure(one))
    assert [p.title for p in shown] == [
        "mean over the tasks, M = 1",
        "mean over the tasks, M = 8",
        "variance of n(h)",
    ]
    ours = shown[1].curves[0]
    assert [x for x, _ in ours.points] == [0, 0.001, 0.01, 0.03, 0.1, 0.3, 1, 10]
    assert ours.band and shown[1].scale == "symlog"
    rings = shown[1].curves[-1]
    assert rings.look == "collapsed" and [x for x, _ in rings.points] == [10]
    assert rings.points[0][1].standard_error is None
    sweep = next(c for c in shown[0].curves if c.look == "penalty")
    assert [(x, y.mean) for x, y in sweep.points] == [*paper.WEIGHTS.items()]
    assert "one seed" in sweep.name


def test_studies_show_paired_differences_with_their_intervals(one: Runs) -> None:
    shown = panels(studies.difference_figure(one, "limits"))
    first = shown[0]
    assert [*first.names] == [*LABELS["limits"]] and first.zero == 0
    row = one[0].results.experiments["limits"].rows[1]
    found = first.spots[0].values[str(row.at["run"])]
    assert found.mean == row.values["difference.mse@1"].mean
    assert found.low == row.values["interval.mse@1.low"].mean
    assert found.high == row.values["interval.mse@1.high"].mean
    assert [one.collapsed for one in first.spots[0].values.values()] == [0, 0, 1]


def test_studies_of_one_seed_have_no_interval(two: Runs) -> None:
    spots = panels(studies.difference_figure(two[1:], "limits"))[0].spots
    for value in spots[0].values.values():
        assert value.low == value.mean == value.high


def test_a_run_that_diverged_is_named_and_has_no_dot(one: Runs) -> None:
    gone = results.Row({"run": "wild"}, {"diverged": results.Statistic(1, None, 1)})
    found = one[0].results.experiments["limits"]
    changed = {"limits": found._replace(rows=(*found.rows, gone))}
    run = one[0]._replace(results=one[0].results._replace(experiments=changed))
    first = panels(studies.difference_figure([run], "limits"))[0]
    assert first.names[-1] == "wild (diverged)"
    assert "wild (diverged)" not in first.spots[0].values
    numbers, _ = study_tables.study_tables([run], "limits")
    assert numbers.rows[-1][0] == "wild (diverged)"


def test_what_a_collapse_put_off_the_scale_is_an_arrow() -> None:
    values = {
        "a": Interval(1.0, 0.5, 1.5),
        "b": Interval(-1.0, -1.5, -0.5),
        "c": Interval(300.0, 299.0, 301.0, collapsed=True),
    }
    dots = Dots("", "x", [Spots("run", 0, values)], ["a", "b", "c"], zero=0.0)
    axes = draw([dots], columns=1)(style.LIGHT).axes[0]
    assert axes.get_xlim() == (-1.5 - 0.9, 1.5 + 0.9)
    assert [text.get_text() for text in axes.texts] == ["3e+02 \N{RIGHTWARDS ARROW}"]


@pytest.mark.parametrize(
    ("values", "bounded", "scale"),
    [
        ([1e-3, 5e-2], False, "log"),
        ([1e-3, 2e-3], False, "linear"),
        ([0.0, 1.0], False, "linear"),
        ([0.1, 0.9], True, "linear"),
    ],
)
def test_axes_are_logarithmic_where_positive_numbers_span_them(
    values: list[float], bounded: bool, scale: str
) -> None:
    points = [(x, results.Statistic(y, None, 1)) for x, y in enumerate(values)]
    panel = Panel("", "", "", [Curve("run", 0, points)], bounded=bounded)
    axes = draw([panel], columns=1)(style.LIGHT).axes[0]
    assert axes.get_yscale() == scale


def test_panels_of_a_group_have_the_same_limits() -> None:
    def panel(level: float) -> Panel:
        points = [(0.0, results.Statistic(level, 0.1, 2))]
        return Panel("", "", "", [Curve("run", 0, points)], group="one")

    figure = draw([panel(1.0), panel(2.0)], columns=2)(style.LIGHT)
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_numbers_that_are_not_finite_are_left_out_of_a_figure() -> None:
    numbers = [(1.0, 1e-3), (2.0, np.nan), (3.0, np.inf), (4.0, 1.0)]
    points = [
        (x, results.Statistic(y, np.nan if x == 2 else 0.1, 2)) for x, y in numbers
    ]
    gone = [(1.0, results.Statistic(np.nan, np.nan, 2))]
    curve, band = Curve("run", 0, points), Curve("other", 1, gone, band=True)
    values = {"a": Interval(np.nan, np.nan, np.nan), "b": Interval(1.0, 1.0, 1.0)}
    dots = Dots("", "", [Spots("run", 0, values)], ["a", "b"], zero=0.0)
    shown = [Panel("", "", "", [curve, band], scale="symlog"), dots]
    picture = style.render("name", "", "", draw(shown, columns=2))
    assert picture.light.startswith(b"\x89PNG") and picture.dark != picture.light


def test_kinds_of_curves_differ_without_colour() -> None:
    points = [(float(x), results.Statistic(1.0, 0.1, 2)) for x in range(2)]
    shown = [Curve("a", 0, points), Curve("b", 0, points, hollow=True)]
    shown += [Curve("c", 1, points), Curve("d", "penalty", points)]
    axes = draw([Panel("", "", "", shown)], columns=1)(style.LIGHT).axes[0]
    lines = [container.lines[0] for container in axes.containers]
    filled = [line.get_markerfacecolor() == line.get_color() for line in lines]
    assert filled == [True, False, True, True]
    assert len({line.get_marker() for line in lines}) == 3
    assert len({str(line._dash_pattern) for line in (lines[0], *lines[1:3])}) == 3


def test_a_comparison_has_a_curve_per_run_that_measured_it(two: Runs) -> None:
    names = ["first, refitted head", "second, refitted head"]
    panel = panels(curves.shift_figure(two))[2]
    assert [c.name for c in panel.curves if not c.hollow] == names
    assert looks(panel) == [0, 1, 0, 1]
    assert looks(panels(curves.linearization_figure(two))[0]) == [0]
    dots = panels(studies.difference_figure(two, "placement"))[0]
    assert [(s.name, s.look) for s in dots.spots] == [("first", 0), ("second", 1)]
    weights = panels(studies.weight_figure(two))[1]
    assert looks(weights) == [0, 1, "collapsed"]


@pytest.mark.parametrize("name", [*sections.SECTIONS])
def test_tables_of_a_comparison_begin_with_the_run(two: Runs, name: str) -> None:
    section = sections.SECTIONS[name]
    for table in (*section.tables(two), *section.more(two)):
        assert table.columns[0] == "run"
        assert {row[0] for row in table.rows} <= {"first", "second"}
        assert {len(row) for row in table.rows} == {len(table.columns)}


def test_shift_table_has_a_row_per_shift_and_a_column_per_head(one: Runs) -> None:
    table = grids.shift_tables(one)[1]
    assert table.name == "shift_background_move"
    heads = ["refitted, M = 1", "refitted, M = 8", "fixed, M = 1", "fixed, M = 8"]
    assert [*table.columns[:5]] == ["shift", *(f"mse, {head}" for head in heads)]
    assert [row[0] for row in table.rows] == ["0", "0.1", "0.2", "0.3", "0.4"]
    rows = one[0].results.experiments["shift"].rows
    place = {"parameter": "background", "shift": 0.3, "head": "fixed", "views": 8}
    (row,) = [row for row in rows if {**row.at, **place} == row.at]
    assert table.rows[3][4] == row.values["mse"]
    assert [cell.mean for cell in table.rows[3][5:]] == [4.70e-3, 3.30e-3]


def test_studies_list_numbers_differences_and_states(one: Runs) -> None:
    numbers, changes = study_tables.study_tables(one, "limits")
    assert [row[0] for row in numbers.rows] == [
        "no penalty",
        *LABELS["limits"][:2],
        "none (collapsed)",
    ]
    assert numbers.rows[0][1] == "3"
    assert [row[0] for row in changes.rows] == [row[0] for row in numbers.rows[1:]]
    assert [*changes.columns[:4]] == ["short run", "mse@1", "mse@1, from", "mse@1, to"]
    assert len({*changes.columns}) == len(changes.columns)
    (every,) = study_tables.every_number(one, "limits")
    assert ("none", "mse.b@1") in {row[:2] for row in every.rows}
    assert not [row for row in every.rows if str(row[1]).startswith("difference")]


def test_downstream_tasks_stand_beside_the_papers(one: Runs, images: Runs) -> None:
    table = grids.paper_table(one)
    cells = dict(zip(table.columns, table.rows[-1], strict=True))
    assert cells["run"] == "paper, penalty"
    assert cells["mse@30"] == results.Statistic(9.6e-4, 1e-5, 3)
    assert cells["mse.b@1"].mean == 7.36e-3
    assert "n = 3" in table.note and "ddof 0" in table.note
    rows = grids.paper_table(images).rows
    assert rows[1][2] == results.Statistic(0.9304, 4e-4, 3)
    assert rows[0][2].mean == pytest.approx(0.9)


def test_ensembles_and_baselines_are_rows_and_curves(tmp_path: Path) -> None:
    names = {"mse.ensemble@1": 1e-3, "mse.pixels@8": 0.1, "mse.untrained@8": 0.05}
    workdir = add(write_run(tmp_path / "run"), {}, **names)
    runs = read.read_runs([workdir])
    table = tables.result_tables(runs[0].results)[0]
    assert [row[0] for row in table.rows[4:]] == [
        "ensemble, 1",
        "pixels, 8",
        "untrained, 8",
        "constant",
    ]
    first = panels(averaging.averaging_figure(runs))[0]
    assert [c.name for c in first.curves if isinstance(c.look, int)] == [
        "features, all views",
        "predictions, all views",
        "raw pixels",
        "untrained encoder",
    ]


@pytest.mark.usefixtures("undrawn")
def test_page_has_sections_figures_tables_and_commands(
    one: Runs, tmp_path: Path
) -> None:
    written = report.run([str(one[0].path)], tmp_path)
    page = Page(written)
    titles = [section.title for section in sections.SECTIONS.values()]
    first, last = ["Overview", "Downstream tasks"], ["Training", "Views", "Predictions"]
    headings = re.findall("<h2>(.*?)</h2>", written.read_text())
    assert headings == [*first, *titles, *last]
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert {"shift", "shift_tasks", "linearization", "penalty_weight", *LABELS} <= drawn
    files = {path.stem for path in (tmp_path / "tables").glob("*.csv")}
    assert {"shift_h_move", "shift-all", "limits", "limits-all", "paper"} <= files
    assert {"invariance_parameters", "nuisance_prediction", "label_fraction"} <= files
    assert (
        "python launch.py --config=configs/a.py --workdir=run --mode=evaluate "
        "--config.evaluation.experiments=shift"
    ) in "".join(page.text)


@pytest.mark.usefixtures("undrawn")
def test_csv_of_an_experiment_is_unrounded(one: Runs, tmp_path: Path) -> None:
    report.run([str(one[0].path)], tmp_path)
    with (tmp_path / "tables" / "shift-all.csv").open() as file:
        found = list(csv.DictReader(file))
    rows = one[0].results.experiments["shift"].rows
    for line, row in zip(found, rows, strict=True):
        assert float(line["shift"]) == row.at["shift"]
        assert line["head"] == row.at["head"]
        assert float(line["mse.b"]) == row.values["mse.b"].mean
        error = float(line["mse.b standard_error"])
        assert error == row.values["mse.b"].standard_error


def test_overview_has_a_main_number_and_the_time_of_each_experiment(one: Runs) -> None:
    table = headlines.headline_table(one)
    found = {row[0]: row for row in table.rows}
    assert [*found] == ["downstream", *sections.SECTIONS]
    rows = one[0].results.experiments["shift"].rows
    worst = max(rows, key=lambda row: row.values["mse"].mean)
    assert found["shift"][3] == worst.values["mse"]
    assert f"shift = {worst.at['shift']:g}, {worst.at['head']}" in found["shift"][2]
    assert found["shift"][4] == "12.3" and found["limits"][4] is None
    assert found["averaging"][1:3] == ("mse", "M = 8")
    low = min(
        one[0].results.experiments["limits"].rows[1:],
        key=lambda row: row.values["mse@8"].mean,
    )
    assert found["limits"][2] == f"{low.at['run']} (1 collapsed)"
    assert found["limits"][3] == low.values["difference.mse@8"]


def test_overview_of_a_comparison_has_a_column_per_run(two: Runs) -> None:
    table = headlines.headline_table(two)
    assert [*table.columns[2:]] == ["first", "second"]
    found = {row[0]: row[2:] for row in table.rows}
    assert found["linearization"][1] is None
    assert found["averaging"][1] == two[1].results.summary["mse@8"]


def test_terminal_shows_the_experiments_briefly(one: Runs) -> None:
    lines = report.table(content(Path(one[0].path))).splitlines()
    assert "h, mean moved" in lines and "Limits: short runs" in lines
    assert not [line for line in lines if "differences to no penalty" in line]
    assert any(line.split()[:1] == ["rback"] for line in lines)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (
            "launch.py --config=a.py --workdir=w",
            "python launch.py --config=a.py --workdir=w --mode=evaluate "
            "--config.evaluation.experiments=shift",
        ),
        (
            "launch.py --mode=all --config=a.py:quick --config.seeds=3 --workdir=w "
            "--config.evaluation.experiments=('averaging', 'shift') --cluster=slurm",
            "python launch.py --config=a.py:quick --config.seeds=3 --workdir=w "
            "--mode=evaluate --config.evaluation.experiments=shift",
        ),
        (None, None),
    ],
)
def test_command_of_an_experiment_is_made_from_that_of_the_run(
    one: Runs, recorded: str | None, expected: str | None
) -> None:
    run = one[0]._replace(command=recorded)
    assert commands.of_experiment(run, "shift") == expected


def test_an_experiment_has_the_command_that_measured_it(one: Runs) -> None:
    results = one[0].results
    own = "launch.py --mode=evaluate --config=a.py --config.studies.steps=9 --workdir=w"
    measured = results.experiments["shift"]._replace(command=own)
    results = results._replace(experiments={"shift": measured})
    run = one[0]._replace(command="launch.py --config=a.py", results=results)
    assert "--config.studies.steps=9" in str(commands.of_experiment(run, "shift"))


def test_commands_of_a_run_are_those_of_training_and_evaluation(one: Runs) -> None:
    trained = "launch.py --config=a.py --config.penalty.parameters=('h', 'bback')"
    measured = "launch.py --mode=evaluate --workdir=w"
    run = one[0]._replace(
        command=trained, results=one[0].results._replace(command=measured)
    )
    assert commands.of_run(run) == [
        "python launch.py --config=a.py \"--config.penalty.parameters=('h', 'bback')\"",
        "python launch.py --mode=evaluate --workdir=w",
    ]


def test_captions_say_n_and_the_standard_error_of_the_paper(
    one: Runs, images: Runs
) -> None:
    for runs in (one, images):
        for name in ("averaging", "shift"):
            captions = [f.caption for f in sections.SECTIONS[name].figures(runs)]
            assert any("n = 3" in c and "ddof 0" in c for c in captions)


def _numbers(panel: Panel) -> np.ndarray:
    return np.array([y.mean for c in panel.curves for _, y in c.points])


def test_accuracies_of_the_paper_are_drawn_for_its_sets(images: Runs) -> None:
    panel = panels(averaging.accuracy_figure(images))[0]
    assert looks(panel)[-2:] == ["no penalty", "penalty"]
    assert {0.9341, 0.9483} <= {*_numbers(panel)}
    levels = [mark.level for mark in panel.marks]
    assert levels == pytest.approx([0.9, 0.9304, 0.9338])
