"""The sections and figures of each experiment, as declarations that `draw` draws.

A user's own experiment has a section too: its table, and curves over its numeric
coordinate if it has exactly one.
"""

from typing import NamedTuple

import pandas as pd

from invariance_jax.report.aggregate import Where, coordinates


class Spec(NamedTuple):
    """A figure: curves over a numeric coordinate, or dots of categories."""

    name: str  # stem of its file
    title: str
    caption: str
    x: str  # the coordinate
    label: str = ""  # the label of x; {name} stands for a coordinate of the panel
    metrics: tuple[tuple[str, ...], ...] = (("mse",), ("accuracy",))  # of each panel
    where: Where = {"target": None}  # which rows are shown
    panels: tuple[str, ...] = ()  # coordinates with a panel for each value
    curves: tuple[str, ...] = ()  # coordinates with a curve for each value
    plain: str = "this run"  # the word for a curve of one run without coordinates
    dots: bool = False  # whether to draw dots, with the values of x as rows
    log: bool = False  # whether x is logarithmic
    line: float | None = None  # a level of the metrics that a line marks
    share: bool = False  # whether panels of the same metric share its limits
    columns: int = 3  # most panels side by side


class Section(NamedTuple):
    """A section of the page: its title, introduction and figures."""

    title: str
    text: str
    figures: tuple[Spec, ...] = ()
    note: str = ""  # of the tables of all its numbers


KINDS = ("encoder", "family", "probe")
"""Coordinates, besides M, that describe a probe and its features."""

_AVERAGED = "M, number of averaged views"

AVERAGING = Spec(
    "averaging",
    "Quality against the number of averaged views",
    "A linear probe on features averaged over M views.",
    "views",
    _AVERAGED,
    curves=KINDS,
    plain="encoder",
    log=True,
)
"""The figure of the first screen."""

SECTIONS = {
    "averaging": Section(
        "Feature averaging",
        "The probe is fitted and tested on features averaged over M views.",
        (
            Spec(
                "averaging_targets",
                "Error of each target against the number of averaged views",
                "MSE in squared units of the target.",
                "views",
                _AVERAGED,
                where=dict.fromkeys(KINDS),
                panels=("target",),
                log=True,
                columns=4,
            ),
        ),
    ),
    "invariance": Section(
        "Invariance",
        "How much of the variance of the representation is over views of one example.",
        (
            Spec(
                "invariance",
                "Variance over views, by redrawn parameter",
                "Variance over views as a share of the total variance. For each view "
                "all parameters are redrawn (all), or only one while the others keep "
                "one draw per example. At 0 the representation is invariant, at 1 it "
                "depends on the view only.",
                "parameter",
                metrics=(("normalized",),),
                where={"table": "parameters"},
                panels=("of",),
                dots=True,
            ),
            Spec(
                "invariance_checkpoints",
                "Variance over views, by training step",
                "All parameters are redrawn for each view, at every kept checkpoint.",
                "step",
                "training step",
                metrics=(("normalized",),),
                where={"table": "checkpoints"},
                panels=("of",),
                share=True,
            ),
        ),
    ),
    "linearization": Section(
        "Linearization",
        "How well the first-order change, which the penalty uses, predicts the true "
        "change of the representation.",
        (
            Spec(
                "linearization",
                "First-order change of n(h) against the true one",
                "The step goes from one draw of the parameters towards another. At 1, "
                "the full step, the squared first-order change is the paper's penalty. "
                "Ratio: squared first-order over squared true change, of their means "
                "over examples and as the median over examples. At the line, 1, ratio "
                "and cosine are exact; the error is that of predicting no change.",
                "step",
                "step, as a share of the way to another draw",
                metrics=(("relative_error",), ("ratio", "median_ratio"), ("cosine",)),
                where={"parameters": "all"},
                log=True,
                line=1.0,
            ),
            Spec(
                "linearization_parameters",
                "First-order change at the full step, by parameter",
                "One parameter moves to another draw; the others stay.",
                "parameters",
                metrics=(("relative_error",), ("ratio",), ("cosine",)),
                where={"step": max},
                dots=True,
                line=1.0,
            ),
        ),
        "Relative error: squared difference over squared true change. Ratio: squared "
        "first-order over squared true change. Share of the top 1 %: the part of the "
        "summed squared first-order change that 1 % of the examples have.",
    ),
    "poincare_ratio": Section(
        "Poincaré ratio",
        "How far a bound from the mean squared derivative of n(h) over-estimates the "
        "total effect of a parameter: the variance that remains when all others are "
        "known.",
        (
            Spec(
                "poincare_ratio",
                "Derivative bound over total effect, by parameter",
                "At the line, 1, the bound is exact. Far above it, a penalty on "
                "derivatives says little about the variance. Rank correlation: between "
                "the squared first-order and true changes at the full step.",
                "parameter",
                metrics=(("ratio",), ("rank_correlation",)),
                dots=True,
                line=1.0,
            ),
        ),
        "Bound and effect are in squared units of n(h).",
    ),
    "nuisance_prediction": Section(
        "Nuisance prediction",
        "How well the parameters of a view can be predicted from its representation.",
        (
            Spec(
                "nuisance_prediction",
                "Parameters of a view, predicted from h",
                "R² of ridge regression from h to the parameters of the view, on views "
                "that it was not fitted on: 0 is the constant predictor, 1 is exact. "
                "Nonlinear: with random ReLU features of h added.",
                "parameter",
                metrics=(("r2",),),
                curves=("probe",),
                plain="linear",
                dots=True,
                line=0.0,
            ),
        ),
        "Errors are in squared units of the parameter.",
    ),
    "shift": Section(
        "Shift",
        "The downstream task on views from another distribution than in training.",
        (
            Spec(
                "shift",
                "Quality under another distribution of the nuisance",
                "The refitted head is fitted on shifted views, the fixed head on views "
                "at the value in training. Here all views of images have colour "
                "jitter, and no crop, flip or grayscale.",
                "shift",
                "{how} of {parameter}",
                panels=("views", "how", "parameter"),
                curves=("head",),
                share=True,
            ),
        ),
    ),
    "label_fraction": Section(
        "Label fraction",
        "The downstream task when the probe is fitted on few labels.",
        (
            Spec(
                "label_fraction",
                "Quality against the share of labels",
                "The probe is fitted on a share of the training examples.",
                "fraction",
                "share of the labels",
                curves=("views",),
                log=True,
            ),
        ),
    ),
}
"""Experiment -> its section, in the order of the page."""


def section_of(experiment: str, rows: pd.DataFrame) -> Section:
    """Returns the section of an experiment; a user's own follows from its rows."""
    if experiment in SECTIONS:
        return SECTIONS[experiment]
    names, is_own = coordinates(rows), ":" in experiment
    title = experiment if is_own else experiment.replace("_", " ").capitalize()
    numbers = {name: pd.to_numeric(rows[name], errors="coerce") for name in names}
    numeric = [name for name in names if numbers[name].nunique() > 1]
    if len(numeric) != 1:
        return Section(title, "")
    (x,) = numeric
    label = x.replace("_", " ").replace("{", "{{").replace("}", "}}")
    metrics = tuple((name,) for name in dict.fromkeys(rows["metric"]))
    others = tuple(name for name in names if name != x)
    spec = Spec(experiment, "", "", x, label, metrics, {}, curves=others, plain="none")
    return Section(title, "", (spec,))
