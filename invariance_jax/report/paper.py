"""The numbers of Foster et al. (2021), as further runs of the aggregated table.

`paper.csv` holds them, from the figure data of the authors' public repository. Their
standard errors have ddof 0. Spirograph: ResNet-18, 50 epochs, linear regression on `h`.
CIFAR: ResNet-50, 1000 epochs, logistic regression; of its eight shares of the labels
only the first (about .05) and the last (1) are known, so the shares are in the tables
but not drawn. The runs named by a penalty weight have one seed; that of .1 collapsed.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources

import pandas as pd

from invariance_jax.report.aggregate import of_paper
from invariance_jax.report.read import Run
from invariance_jax.settings import KEYS, plugins

_IMAGES = [
    *("data.image_size", "data.num_points", "data.extent", "data.normalization"),
    *(name for name in KEYS if name.startswith("data.bounds.")),
]
"""Keys that determine Spirograph's images; their defaults are the paper's."""


def data_of(run: Run) -> str:
    """Returns the paper's data set that a run is comparable on; empty if none."""
    config, name = run.config, str(run.config["data.name"])
    is_own = plugins.is_own(config["augmentation.name"])
    if is_own or run.split != "test" or run.settings.get("label_fraction", 1) != 1:
        return ""
    if name in ("cifar10", "cifar100"):
        return name if config["data.image_size"] in (None, 32) else ""
    is_same = all(config[key] == KEYS[key].default for key in _IMAGES)
    is_same &= {*config["data.targets"]} == {*KEYS["data.targets"].default}
    return name if name == "spirograph" and is_same else ""


def rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns the aggregated rows of the paper that are comparable to the runs.

    There are none unless the runs have exactly one data set of the paper. Rows of
    single penalty weights are included only if the runs differ in the weight.
    """
    names = {data_of(run) for run in runs} - {""}
    table = _read().iloc[:0] if len(names) != 1 else _read()
    table = table[table["data"].isin(names)].drop(columns="data")
    weights = {run.config["penalty.weight"] for run in runs}
    is_weight = table["run"].str.startswith("paper, weight")
    return table if len(weights) > 1 else table[~is_weight]


@cache
def _read() -> pd.DataFrame:
    path = resources.files(__package__).joinpath("paper.csv")
    with path.open(encoding="utf-8") as file:
        table = pd.read_csv(file)
    # M is a number, or the word "plain".
    table["views"] = [v if v == "plain" else int(v) for v in table["views"]]
    return table


def note(shown: pd.DataFrame, *, brief: bool = False) -> str:
    """Returns the note of a table or figure; empty without numbers of the paper."""
    shown = shown[of_paper(shown)]
    if shown.empty:
        return ""
    images = shown["metric"].astype(str).str.contains("accuracy|cross").any()
    encoder = "ResNet-50, 1000 epochs" if images else "ResNet-18, 50 epochs"
    source = f"Paper: Foster et al. (2021), {encoder}"
    solved = "has converged" if images else "is solved exactly"
    details = (
        "3 seeds, 1 in the ablation of the weight. Standard errors have ddof 0; times "
        "1.22 they are the usual estimate. Their probe takes 500 steps of L-BFGS and "
        f"may not have converged; here it {solved}, so part of a difference can come "
        "from the probe."
    )
    return f"{source}." if brief else f"{source}, {details}"
