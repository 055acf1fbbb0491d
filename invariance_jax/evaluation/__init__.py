"""Frozen representations to results: feature averaging, probes, variance."""

from invariance_jax.evaluation.averaging import (
    SamplesAndApplies,
    average_features,
    encode_views,
    sample_view,
)
from invariance_jax.evaluation.probes import (
    LinearProbe,
    LogisticObjective,
    accuracy,
    average_probabilities,
    cross_entropy,
    fit_logistic,
    fit_ridge,
    knn_accuracy,
    logistic_objective,
    mean_squared_error,
    predict,
    r_squared,
)
from invariance_jax.evaluation.variance import Variance, invariance

__all__ = [
    "LinearProbe",
    "LogisticObjective",
    "SamplesAndApplies",
    "Variance",
    "accuracy",
    "average_features",
    "average_probabilities",
    "cross_entropy",
    "encode_views",
    "fit_logistic",
    "fit_ridge",
    "invariance",
    "knn_accuracy",
    "logistic_objective",
    "mean_squared_error",
    "predict",
    "r_squared",
    "sample_view",
]
