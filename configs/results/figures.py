"""Draws the figures of configs/README.md that are made of the numbers beside it.

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
    """Returns the error against the seconds of training, of each way to spend them."""
    rows = pd.read_csv(FOLDER / "spirograph_budget.csv").query("metric == 'MSE'")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, place in zip(figure.subplots(1, 2), ("M = 1", "M = 8"), strict=True):
        ways = rows[rows["at"] == place].groupby("run", sort=False)
        for (run, points), color, marker in zip(ways, _COLORS, _MARKERS, strict=True):
            curve = (points[name] for name in ("seconds", "mean", "standard_error"))
            axes.errorbar(*curve, label=run, color=color, marker=marker)
        axes.set(xscale="log", yscale="log", title=place)
        axes.set(xlabel="seconds of training", ylabel="MSE of the probe")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


if __name__ == "__main__":
    budget().savefig(PICTURES / "budget.png", dpi=130)
