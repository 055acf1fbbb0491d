"""What quantities are called on the page, with their units."""

from collections.abc import Sequence

from invariance_jax.report import paper
from invariance_jax.report.read import Run, flatten

COLUMNS = {
    "accuracy": "accuracy",
    "cross_entropy": "cross-entropy",
    "gradient_norm": "gradient norm",
    "relative_error": "relative error",
    "median_ratio": "median ratio",
    "top_share": "share of the top 1 %",
    "constant": "constant predictor",
    "r2": "R²",
    "l2": "L2 weight",
    "views": "M",
}
"""Name in `results.json` -> head of a column, where the two differ."""


def is_spirograph(runs: Sequence[Run]) -> bool:
    """Returns whether the data of some run are those of Spirograph."""
    return any(paper.is_spirograph(flatten(run.config)) for run in runs)


def with_paper(runs: Sequence[Run]) -> bool:
    """Returns whether the paper's numbers on Spirograph hold for some run."""
    return any(paper.is_comparable(flatten(run.config)) for run in runs)


def image_set(runs: Sequence[Run]) -> str | None:
    """Returns the one image set of the runs that the paper used, None if none."""
    return paper.image_set([flatten(run.config) for run in runs])


def with_unit(name: str, runs: Sequence[Run]) -> str:
    """Returns the name of a parameter with its unit, as an axis shows it."""
    unit = paper.UNITS.get(name) if is_spirograph(runs) else None
    return f"{name} ({unit})" if unit else name


def titles(metric: str, runs: Sequence[Run]) -> tuple[str, str]:
    """Returns the title of a panel and the text at its axis.

    Args:
      metric: such as "mse", "mse.TARGET", "accuracy" or "variance.normalized".
      runs: those that are shown.
    """
    kind, _, target = metric.partition(".")
    if kind == "mse":
        unit = paper.UNITS.get(target) if is_spirograph(runs) else None
        axis = f"MSE, ({unit})²" if unit else "mean squared error"
        return target or "mean over the tasks", axis
    if kind == "variance":
        return "variance of n(h)", "within / total"
    if metric == "cross_entropy":
        return "cross-entropy", "cross-entropy (nats)"
    text = COLUMNS.get(kind, kind)
    return target or text, text
