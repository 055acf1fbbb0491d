"""Draws the figures of configs/README.md from the CSV files in this folder.

python -m configs.results.figures
"""

import pandas as pd
from matplotlib.figure import Figure

from configs.results.page import FOLDER
from invariance_jax.report.style import COLORS, looks

PICTURES = FOLDER.parents[1] / ".readme"
_COLORS, _MARKERS = (*COLORS, "#1b1f24"), "osD^vPX"


@looks()
def budget() -> Figure:
    """Returns a figure of the error against the training time of each alternative."""
    rows = pd.read_csv(FOLDER / "spirograph_budget.csv").query("metric == 'MSE'")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, views in zip(figure.subplots(1, 2), ("M = 1", "M = 8"), strict=True):
        runs = rows[rows["at"] == views].groupby("run", sort=False)
        for (run, points), color, marker in zip(runs, _COLORS, _MARKERS, strict=True):
            curve = (points[name] for name in ("seconds", "mean", "standard_error"))
            axes.errorbar(*curve, label=run, color=color, marker=marker)
        axes.set(xscale="log", yscale="log", title=views)
        axes.set(xlabel="seconds of training", ylabel="MSE of the probe")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


if __name__ == "__main__":
    budget().savefig(PICTURES / "budget.png", dpi=130)
