"""Figures: axes, panels, curves, and what they are named."""

import numpy as np
import pandas as pd
import pytest
from finished_runs import samples, texts, write_report, write_run

from invariance_jax.report import draw
from invariance_jax.report.sections import SECTIONS, Spec
from invariance_jax.report.style import line_style, looks
from invariance_jax.report.words import Words


def frame(**columns):
    """Aggregated rows, a row for each value of the columns."""
    usual = {"run": "r", "metric": "mse", "target": np.nan, "standard_error": np.nan}
    return pd.DataFrame({**usual, **columns})


def drawn(spec, table, names):
    """The texts in the figure of a table."""
    with looks():
        shown = draw.Shown(names, Words(), {}, np.nan)
        (picture,) = draw.figure(spec, table, shown)
    return texts(picture.url)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e-3, 5e-2], {"0.001", "0.01"}),
        ([0.5, 0.52], {"0.5000", "0.5200"}),
        ([0.5, np.nan, np.inf, 0.52], {"0.5000", "0.5200"}),
    ],
)
def test_axes_are_logarithmic_where_finite_numbers_span_them(values, expected):
    table = frame(mean=values, x=range(len(values)))
    assert expected <= drawn(Spec("x", "", "", "x"), table, ["r"])


def test_only_panels_of_the_same_metric_share_its_limits():
    metrics, values = ["mse"] * 2 + ["accuracy"] * 2, [0.001, 0.3, 0.5, 0.52]
    table = frame(metric=metrics, mean=values, x=[0, 1] * 2)
    spec = Spec("x", "", "", "x", share=True)
    assert {"0.001", "0.500", "0.520", "accuracy"} <= drawn(spec, table, ["r"])


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
    found = drawn(spec, table, ["r"])
    assert "0.4" in found and "(1 outside the axis)" not in found


def test_curves_of_one_run_are_named_by_words_and_not_by_its_folder(tmp_path):
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
    run = write_run(tmp_path / "folder", bare=True, more=more)
    found = set[str]().union(*write_report([run], tmp_path / "out").figures.values())
    legends = {"encoder", "raw pixels", "linear", "nonlinear", "none", "a"}
    assert legends | {"ratio", "median ratio"} <= found and "folder" not in found


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
        shown = write_report(paths[:count], tmp_path / "out").figures[title]
        assert ("value in training" in shown) == is_marked


def test_probes_have_words():
    assert Words().value("probe", "lbfgs500") == "500 steps of L-BFGS"


def test_runs_differ_in_line_and_marker_as_well_as_colour():
    looks = [line_style(number) for number in range(7)]
    for key in ("color", "linestyle", "marker"):
        assert len({str(look[key]) for look in looks[:6]}) == 6
    assert len({str(look) for look in looks}) == 7


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
    shown = {*write_report([run], tmp_path / "out").figures}
    assert title not in shown and {"Views", "Nearest neighbours"} <= shown
