"""Evaluation of frozen representations: averaging, probes, variance, linearity."""

from invariance_jax.evaluation.averaging import (
    average_features,
    encode_views,
    sample_view,
)
from invariance_jax.evaluation.linearization import (
    Changes,
    LinearizationError,
    TotalEffects,
    linearization_error,
    linearize_changes,
    total_effects,
)
from invariance_jax.evaluation.probes import (
    LinearProbe,
    LogisticObjective,
    accuracy,
    cross_entropy,
    fit_logistic,
    fit_logistic_in_blocks,
    fit_logistic_selected,
    fit_ridge,
    fit_ridge_selected,
    knn_accuracy,
    logistic_objective,
    mean_squared_error,
    predict,
    r_squared,
)
from invariance_jax.evaluation.variance import Variance, invariance, paired_change

__all__ = [
    "Changes",
    "LinearProbe",
    "LinearizationError",
    "LogisticObjective",
    "TotalEffects",
    "Variance",
    "accuracy",
    "average_features",
    "cross_entropy",
    "encode_views",
    "fit_logistic",
    "fit_logistic_in_blocks",
    "fit_logistic_selected",
    "fit_ridge",
    "fit_ridge_selected",
    "invariance",
    "knn_accuracy",
    "linearization_error",
    "linearize_changes",
    "logistic_objective",
    "mean_squared_error",
    "paired_change",
    "predict",
    "r_squared",
    "sample_view",
    "total_effects",
]
