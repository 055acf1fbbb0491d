"""What the report shows of each experiment on a trained encoder, and of each study."""

from collections.abc import Sequence
from functools import partial

from invariance_jax.report import averaging, curves, grids, paper, studies
from invariance_jax.report.names import image_set, with_paper
from invariance_jax.report.read import Run
from invariance_jax.report.results import Row
from invariance_jax.report.section import Section, Shown, bars, nothing
from invariance_jax.report.tables import Table


def sections(runs: Sequence[Run]) -> dict[str, Section]:
    """Returns experiment -> what is shown of it, of all that some run has measured.

    They have a fixed order; those that this version does not know come last.
    """
    measured = {
        name: None
        for run in runs
        for name, found in run.results.experiments.items()
        if found.rows
    }
    summaries = [run.results.summary for run in runs]
    if any("@" in name for summary in summaries for name in summary):
        measured["averaging"] = None
    known = {name: SECTIONS[name] for name in SECTIONS if name in measured}
    others = {name: _unknown(name) for name in measured if name not in SECTIONS}
    return known | others


def _unknown(name: str) -> Section:
    title = name.replace("_", " ").capitalize()
    tables = partial(grids.plain_tables, experiment=name)
    return Section(title, "", _no_figures, tables, nothing)


def _no_figures(runs: Sequence[Run]) -> list[Shown]:
    return []


def _averaging(runs: Sequence[Run]) -> list[Shown]:
    one = " Averaged predictions: of the probe of one view." if len(runs) == 1 else ""
    return [
        Shown(
            "averaging",
            "Error against the number of averaged views",
            "Error of a linear regression on features averaged over M views, in squared"
            f" units of the targets.{one}{bars(runs)}"
            + (paper.note(False) if with_paper(runs) else ""),
            averaging.averaging_figure(runs),
        ),
        Shown(
            "accuracy",
            "Accuracy against the number of averaged views",
            "Logistic regression on the average of M views, or the average of its "
            "predictions." + bars(runs) + (paper.note(True) if image_set(runs) else ""),
            averaging.accuracy_figure(runs),
        ),
    ]


def _invariance(runs: Sequence[Run]) -> list[Shown]:
    return [
        Shown(
            "invariance",
            "Variance over views, by what is drawn anew",
            "Share of the total variance, with every parameter drawn anew (all) or one "
            "alone while the others keep one draw; at 0 a representation is invariant, "
            f"at 1 it knows nothing but the view.{bars(runs)}",
            curves.parameters_figure(runs),
        ),
        Shown(
            "invariance_checkpoints",
            "Variance over views, by training step",
            "Every parameter drawn anew, for each checkpoint that is kept."
            + bars(runs),
            curves.checkpoints_figure(runs),
        ),
    ]


def _invariance_tables(runs: Sequence[Run]) -> list[Table]:
    tables = []
    for table, index, title in (
        ("parameters", "parameter", "Variance over views, by parameter"),
        ("checkpoints", "step", "Variance over views, by training step"),
    ):
        found = grids.pivot(
            runs,
            "invariance",
            {"table": table},
            index=index,
            by=("of",),
            head=lambda row, name: f"{row.at['of']}: {name}",
            values=("within", "total", "normalized", "paired"),
        )
        if found:
            note = f"{found.note}; paired: half the mean squared change of two views"
            named = found._replace(name=f"invariance_{table}", title=title, note=note)
            tables.append(named)
    return tables


def _linearization(runs: Sequence[Run]) -> list[Shown]:
    return [
        Shown(
            "linearization",
            "First-order change of n(h) against the true one",
            "The step goes from one draw of the parameters towards another; at 1, the "
            "full step, the squared first-order change is the penalty. Ratio: of the "
            "means over examples, and the median of the examples' own. The line at 1: "
            f"exact (ratio, cosine), no better than no change (error).{bars(runs)}",
            curves.linearization_figure(runs),
        ),
        Shown(
            "linearization_parameters",
            "First-order change at the full step, by parameter",
            "One parameter moves to another draw and the others stay; the line is at 1."
            + bars(runs),
            curves.linearization_parameters_figure(runs),
        ),
    ]


def _nuisance(runs: Sequence[Run]) -> list[Shown]:
    caption = (
        "R² of a ridge regression of a view's parameters on its h, on test views: 0 is "
        f"the constant predictor, 1 is exact.{bars(runs)}"
    )
    title, figure = "Parameters of a view that h tells", curves.nuisance_figure(runs)
    return [Shown("nuisance_prediction", title, caption, figure)]


def _shift(runs: Sequence[Run]) -> list[Shown]:
    beside = ""
    if with_paper(runs) or image_set(runs):
        beside = paper.note(not with_paper(runs)) + " Their head is refitted, M = 1."
    return [
        Shown(
            "shift",
            "Quality under another law of the nuisance",
            "A refitted head has seen views of the shifted law, a fixed head only those"
            f" of the law of the training (dotted line).{bars(runs)}{beside}",
            curves.shift_figure(runs),
        ),
        Shown(
            "shift_tasks",
            "Error under another law of the nuisance, by task",
            f"At the smallest M, in squared units of the targets.{bars(runs)}",
            curves.shift_figure(runs, by_task=True),
        ),
    ]


def _fractions(runs: Sequence[Run]) -> list[Shown]:
    images = any(not run.results.targets for run in runs)
    each = ", the same of each class" if images else ""
    caption = f"The probe is fitted on a share of its examples{each}.{bars(runs)}"
    title, figure = "Quality against the share of labels", curves.fractions_figure(runs)
    return [Shown("label_fraction", title, caption, figure)]


def _fraction_tables(runs: Sequence[Run]) -> list[Table]:
    def head(row: Row, name: str) -> str:
        views = row.at.get("views")
        return f"{name}, {'plain' if views == 'plain' else f'M = {views}'}"

    found = grids.pivot(
        runs,
        "label_fraction",
        {},
        index="fraction",
        by=("views",),
        head=head,
        values=("mse", "accuracy", "cross_entropy"),
    )
    labels = grids.paper_labels(runs)
    tables = [found._replace(title="Label fractions")] if found else []
    return [*tables, labels] if labels else tables


def _only_table(
    runs: Sequence[Run], experiment: str, title: str, text: str = ""
) -> list[Table]:
    """Returns the table of an experiment whose numbers are few."""
    return [
        table._replace(name=experiment, title=title, note=table.note + text)
        for table in grids.plain_tables(runs, experiment)
    ]


SECTIONS: dict[str, Section] = {
    "averaging": Section(
        "Feature averaging",
        "The probe is fitted and tested on features averaged over M views.",
        _averaging,
        nothing,
        nothing,
    ),
    "invariance": Section(
        "Invariance",
        "How much of the variance of the representation the views of one example make.",
        _invariance,
        _invariance_tables,
        nothing,
    ),
    "linearization": Section(
        "Linearization",
        "How well the first-order change that the penalty takes predicts the change of "
        "the representation.",
        _linearization,
        partial(
            _only_table,
            experiment="linearization",
            title="First-order change against the true one",
            text="; relative error: squared difference over squared true change; ratio:"
            " squared first-order over squared true change; top 1 %: of the examples",
        ),
        nothing,
    ),
    "nuisance_prediction": Section(
        "Nuisance prediction",
        "How much a representation still tells of the transformation.",
        _nuisance,
        partial(
            _only_table,
            experiment="nuisance_prediction",
            title="Prediction of the parameters of a view",
            text="; mse and constant predictor in squared units of the parameter",
        ),
        nothing,
    ),
    "shift": Section(
        "Shift",
        "The downstream tasks on views of another law than in training.",
        _shift,
        grids.shift_tables,
        partial(grids.plain_tables, experiment="shift"),
    ),
    "label_fraction": Section(
        "Label fraction",
        "The downstream tasks when the probe sees few labels.",
        _fractions,
        _fraction_tables,
        partial(grids.plain_tables, experiment="label_fraction"),
    ),
    **studies.SECTIONS,
}
"""Experiment -> what is shown of it, in the order of the page."""
