"""What the report shows of each experiment: small declarations, which `draw` draws.

An experiment of a user's own has a section too: its table, and curves over its numeric
coordinate if there is one.
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
    label: str = ""  # the text at x; may name coordinates of the panel in braces
    metrics: tuple[tuple[str, ...], ...] = (("mse",), ("accuracy",))  # of each panel
    where: Where = {"target": None}  # which rows are shown
    panels: tuple[str, ...] = ()  # coordinates whose values have panels of their own
    curves: tuple[str, ...] = ()  # coordinates whose values have curves of their own
    dots: bool = False  # whether the values of x stand below each other
    log: bool = False  # whether x is logarithmic
    line: float | None = None  # a level of the metrics that is marked
    share: bool = False  # whether the panels have the same limits
    columns: int = 3  # most panels beside each other


class Section(NamedTuple):
    """What is shown of an experiment, above the tables of its numbers."""

    title: str
    text: str
    figures: tuple[Spec, ...] = ()
    note: str = ""


KINDS = ("encoder", "family", "probe")
"""Coordinates of the features that a probe sees, beside M."""

_AVERAGED = "M, averaged views"

AVERAGING = Spec(
    "averaging",
    "Quality against the number of averaged views",
    "A linear probe on features averaged over M views.",
    "views",
    _AVERAGED,
    curves=KINDS,
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
                "In squared units of the targets.",
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
        "How much of the variance of the representation the views of one example make.",
        (
            Spec(
                "invariance",
                "Variance over views, by what is drawn anew",
                "Share of the total variance, with every parameter drawn anew (all) or "
                "one alone while the others keep one draw; at 0 a representation is "
                "invariant, at 1 it knows nothing but the view.",
                "parameter",
                metrics=(("normalized",),),
                where={"table": "parameters"},
                panels=("of",),
                dots=True,
            ),
            Spec(
                "invariance_checkpoints",
                "Variance over views, by training step",
                "Every parameter drawn anew, for each checkpoint that is kept.",
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
        "How well the first-order change that the penalty takes predicts the change of "
        "the representation.",
        (
            Spec(
                "linearization",
                "First-order change of n(h) against the true one",
                "The step goes from one draw of the parameters towards another; at 1, "
                "the full step, the squared first-order change is the penalty. Ratio: "
                "of the means over examples, and the median of the examples' own. The "
                "line at 1: exact (ratio, cosine), no better than no change (error).",
                "step",
                "step, share of the way to another draw",
                metrics=(("relative_error",), ("ratio", "median_ratio"), ("cosine",)),
                where={"parameters": "all"},
                log=True,
                line=1.0,
            ),
            Spec(
                "linearization_parameters",
                "First-order change at the full step, by parameter",
                "One parameter moves to another draw and the others stay.",
                "parameters",
                metrics=(("relative_error",), ("ratio",), ("cosine",)),
                where={"step": max},
                dots=True,
                line=1.0,
            ),
        ),
        "Relative error: squared difference over squared true change. Ratio: squared "
        "first-order over squared true change. Top 1 %: of the examples.",
    ),
    "poincare_ratio": Section(
        "Poincaré ratio",
        "How far the mean squared derivative of n(h) over-estimates the total effect "
        "of a parameter, the variance that remains where all others are known.",
        (
            Spec(
                "poincare_ratio",
                "Derivative bound over total effect, by parameter",
                "At the line the bound is exact; far above it, a penalty on "
                "derivatives says little of the variance. Rank correlation: of "
                "squared first-order and true changes at the full step.",
                "parameter",
                metrics=(("ratio",), ("rank_correlation",)),
                dots=True,
                line=1.0,
            ),
        ),
        "Bound and effect in squared units of n(h).",
    ),
    "nuisance_prediction": Section(
        "Nuisance prediction",
        "How much a representation still tells of the transformation.",
        (
            Spec(
                "nuisance_prediction",
                "Parameters of a view that h tells",
                "R² of a ridge regression of a view's parameters on its h, on views "
                "that it was not fitted on: 0 is the constant predictor, 1 is exact. "
                "Nonlinear: on random ReLU features of h as well.",
                "parameter",
                metrics=(("r2",),),
                curves=("probe",),
                dots=True,
                line=0.0,
            ),
        ),
        "Errors in squared units of the parameter.",
    ),
    "shift": Section(
        "Shift",
        "The downstream task on views of another distribution than in training.",
        (
            Spec(
                "shift",
                "Quality under another distribution of the nuisance",
                "A refitted head has seen views of the shifted distribution, a fixed "
                "head only those of the training distribution.",
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
        "The downstream task when the probe sees few labels.",
        (
            Spec(
                "label_fraction",
                "Quality against the share of labels",
                "The probe is fitted on a share of its examples.",
                "fraction",
                "share of the labels",
                curves=("views",),
                log=True,
            ),
        ),
    ),
}
"""Experiment -> what is shown of it, in the order of the page."""


def section_of(experiment: str, rows: pd.DataFrame) -> Section:
    """Returns the section of an experiment, a user's own from its aggregated rows."""
    if experiment in SECTIONS:
        return SECTIONS[experiment]
    names, is_own = coordinates(rows), ":" in experiment
    title = experiment if is_own else experiment.replace("_", " ").capitalize()
    numbers = {name: pd.to_numeric(rows[name], errors="coerce") for name in names}
    numeric = [name for name in names if numbers[name].nunique() > 1]
    if len(numeric) != 1:
        return Section(title, "")
    (x,) = numeric
    text = x.replace("_", " ").replace("{", "{{").replace("}", "}}")
    metrics = tuple((name,) for name in dict.fromkeys(rows["metric"]))
    others = tuple(name for name in names if name != x)
    spec = Spec(experiment, "", "", x, text, metrics, {}, curves=others)
    return Section(title, "", (spec,))
