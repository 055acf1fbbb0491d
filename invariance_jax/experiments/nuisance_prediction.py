"""Nuisance prediction: predicts the parameters of a view from its representation.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: the nuisance should not be predictable
from an invariant representation.
"""

import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.runs.results import ExperimentResult, Row
from invariance_jax.tasks import in_float64
from invariance_jax.training.objective import Variables
from invariance_jax.types import Array

_HELD_OUT = 5  # one in five training examples selects l2
_HIDDEN, _MOST = 1024, 20_000  # random features; most training examples for them


def run(context: Context) -> ExperimentResult:
    """Returns how well a linear and a nonlinear probe predict each parameter of a view.

    A parameter that only the nonlinear probe predicts is in h, but not linearly. For
    images the drawn alpha is predicted even where a gate switched the jitter off, so r2
    stays below about the share of views that are jittered.
    """
    names = context.parts.transformation.names
    if not names:
        return ExperimentResult([])
    h, h_test = (features(context, split) for split in STREAMS)
    alpha, alpha_test = (draw_alpha(context, split) for split in STREAMS)
    l2, rows = context.settings.evaluation.nuisance_l2, []
    inputs = {"": (h, h_test), "nonlinear": expand(h, h_test)}
    for probe, (train, test) in inputs.items():
        alpha_train = alpha[: len(train)]
        metrics = predict_nuisance(train, alpha_train, test, alpha_test, l2=l2)
        at = {"probe": probe} if probe else {}
        rows += [
            Row(metric, float(values[column]), {"parameter": name, **at})
            for column, name in enumerate(names)
            for metric, values in metrics.items()
        ]
    return ExperimentResult(rows)


def expand(h: np.ndarray, h_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both features, with random ReLU features of them appended.

    Ridge regression on these is a network with one hidden layer whose first weights are
    not trained (Rahimi and Recht, 2008). Only the first 20 000 rows of h are returned.
    """
    generator, count = np.random.default_rng(0), h.shape[1]
    scale = h.std(axis=0)
    weights = generator.normal(size=(count, _HIDDEN)) / np.sqrt(count)
    bias = generator.normal(size=_HIDDEN)
    parts = []
    for rows in (h[:_MOST], h_test):
        standardized = (rows - h.mean(axis=0)) / np.where(scale > 0, scale, 1)
        hidden = np.maximum(standardized @ weights + bias, 0).astype(h.dtype)
        parts.append(np.concatenate([rows, hidden], axis=1))
    return parts[0], parts[1]


def predict_nuisance(
    h: np.ndarray,
    alpha: np.ndarray,
    h_test: np.ndarray,
    alpha_test: np.ndarray,
    *,
    l2: tuple[float, ...],
) -> dict[str, np.ndarray]:
    """Returns how well alpha `[N, P]` is predicted from features of unseen views.

    Ridge regression runs in float64 on the CPU, on features with mean 0 and variance 1;
    l2 is selected for each parameter on the last fifth of the training examples. The
    values, each `[P]`, are mse in squared units of the parameter, constant (the mse of
    predicting the mean training alpha), r2 and the selected l2.
    """
    with in_float64():
        train, alpha_train, test, true = (
            jnp.asarray(array, jnp.float64) for array in (h, alpha, h_test, alpha_test)
        )
        probe, selected = evaluation.fit_ridge_selected(
            train, alpha_train, l2=l2, num_held_out=max(len(h) // _HELD_OUT, 1)
        )
        predictions = evaluation.predict(probe, test)
        mean = jnp.broadcast_to(alpha_train.mean(axis=0, keepdims=True), true.shape)
        metrics = {
            "mse": evaluation.mean_squared_error(predictions, true),
            "constant": evaluation.mean_squared_error(mean, true),
            "r2": evaluation.r_squared(predictions, true),
            "l2": selected,
        }
        return {name: np.asarray(values) for name, values in metrics.items()}


def features(context: Context, split: str) -> np.ndarray:
    """Returns the features of the first view, `[N, D]`."""
    if context.num_views[0] == 1:
        return context.features(split)[0]
    x, stream = context.examples(split).x, STREAMS[split]
    encode = context.encoder.features
    return encode(context.variables, x, num_views=(1,), stream=stream)[0]


def draw_alpha(context: Context, split: str) -> np.ndarray:
    """Returns the parameters of the first view, `[N, P]`."""
    encoder, transformation = context.encoder, context.parts.transformation

    def alpha(_: Variables, x: Array, indices: Array, stream: Array) -> Array:
        key = encoder.key(stream)
        view = evaluation.sample_view(key, transformation, indices, view=0, x=x)
        return view.alpha

    return encoder.map(alpha, axis=0)({}, context.examples(split).x, STREAMS[split])
