"""Draws the figures of configs/README.md that are made of the numbers beside it.

python -m configs.results.figures
"""

import csv
from collections import defaultdict

from matplotlib.figure import Figure

from configs.results.page import FOLDER
from invariance_jax.report.style import COLORS, looks

PICTURES = FOLDER.parents[1] / ".readme"
_MARKERS = "osD^vPX"


@looks()
def budget() -> Figure:
    """Returns the error against the seconds of training, of each way to spend them."""
    with (FOLDER / "spirograph_budget.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "MSE"]
    places = ("M = 1", "M = 8")
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, place in zip(figure.subplots(1, 2), places, strict=True):
        curves = defaultdict(list)
        for row in rows:
            if row["at"] == place:
                numbers = (row[key] for key in ("seconds", "mean", "standard_error"))
                curves[row["run"]].append([float(number) for number in numbers])
        for number, (run, points) in enumerate(curves.items()):
            seconds, means, errors = zip(*sorted(points), strict=True)
            look = {"color": (*COLORS, "#1b1f24")[number], "marker": _MARKERS[number]}
            axes.errorbar(seconds, means, errors, label=run, **look)
        axes.set(xscale="log", yscale="log", title=place)
        axes.set(xlabel="seconds of training", ylabel="MSE of the probe")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


if __name__ == "__main__":
    budget().savefig(PICTURES / "budget.png", dpi=130)
