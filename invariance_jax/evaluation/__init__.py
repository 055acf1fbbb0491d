"""Frozen representations to results: feature averaging, probes, variance."""

from invariance_jax.evaluation.averaging import (
    SamplesAndApplies,
    average_features,
    encode_views,
    sample_view,
)
from invariance_jax.evaluation.probes import (
    LinearProbe,
    fit_ridge,
    mean_squared_error,
    predict,
    r_squared,
)
from invariance_jax.evaluation.variance import Variance, invariance

__all__ = [
    "LinearProbe",
    "SamplesAndApplies",
    "Variance",
    "average_features",
    "encode_views",
    "fit_ridge",
    "invariance",
    "mean_squared_error",
    "predict",
    "r_squared",
    "sample_view",
]
