"""Probes on frozen representations: ridge, logistic and kNN, and their metrics.

The protocol of Foster, Pukdee, Rainforth (ICLR 2021): linear models on unnormalized
features, without a penalty on the bias. Deviation: the authors run 500 steps of L-BFGS,
which may stop before the minimum; the probes here are fitted to the minimum and may
reach lower losses on the same features. Functions compute in the dtype of their input,
at least float32, with matrix products in full precision on every device.
"""

from invariance_jax.evaluation.probes.knn import knn_accuracy
from invariance_jax.evaluation.probes.linear import LinearProbe, predict
from invariance_jax.evaluation.probes.logistic import (
    LogisticObjective,
    fit_logistic,
    fit_logistic_in_blocks,
    logistic_objective,
)
from invariance_jax.evaluation.probes.metrics import (
    accuracy,
    cross_entropy,
    mean_squared_error,
    r_squared,
)
from invariance_jax.evaluation.probes.ridge import fit_ridge
from invariance_jax.evaluation.probes.selection import (
    fit_logistic_selected,
    fit_ridge_selected,
)

__all__ = [
    "LinearProbe",
    "LogisticObjective",
    "accuracy",
    "cross_entropy",
    "fit_logistic",
    "fit_logistic_in_blocks",
    "fit_logistic_selected",
    "fit_ridge",
    "fit_ridge_selected",
    "knn_accuracy",
    "logistic_objective",
    "mean_squared_error",
    "predict",
    "r_squared",
]
