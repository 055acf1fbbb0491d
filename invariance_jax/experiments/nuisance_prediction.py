"""Nuisance prediction: what a representation still knows of the view's parameters.

Foster, Pukdee, Rainforth (ICLR 2021), section 5: the nuisance should not be predictable
from an invariant representation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.subject import TEST, TRAIN, Measured, Row, Subject
from invariance_jax.training.components import make_transformation
from invariance_jax.types import Array

_HELD_OUT = 5  # one in


def run(subject: Subject) -> Measured:
    """Returns how well a linear probe predicts each parameter of one view.

    Ridge regression in float64 on the CPU, on features with mean 0 and variance 1; l2
    is chosen for each parameter on the last fifth of the probe's training examples. The
    prediction is compared with a constant one, the mean over the training views.

    Of images it predicts the alpha that was drawn, also where a gate switched the
    jitter off: a view without jitter tells nothing of it, so that r2 stays below about
    the share of views that are jittered. The columns of a crop box are predicted in
    pixels.

    Args:
      subject: the encoder and its examples.

    Returns:
      A row for each parameter: mse and constant, in its squared units, r2 and the
      chosen l2. None if the transformation has no alpha.
    """
    names = make_transformation(subject.settings).names
    if not names:
        return Measured({}, [])
    arrays = [
        array
        for split in ("train", "test")
        for array in (_features(subject, split), _alpha(subject, split))
    ]
    found = predict_nuisance(*arrays, l2=subject.settings.evaluation.nuisance_l2)
    return Measured(
        {},
        [
            Row({"parameter": name}, {k: float(v[column]) for k, v in found.items()})
            for column, name in enumerate(names)
        ],
    )


def predict_nuisance(
    h: np.ndarray,
    alpha: np.ndarray,
    h_test: np.ndarray,
    alpha_test: np.ndarray,
    *,
    l2: tuple[float, ...],
) -> dict[str, np.ndarray]:
    """Returns how well alpha is predicted from features of views that were not seen.

    Args:
      h: features `[N, D]` of the training views.
      alpha: their parameters `[N, P]`.
      h_test: features `[N', D]` of the test views.
      alpha_test: their parameters.
      l2: the weights to choose from.

    Returns:
      mse, constant (the mse of the mean of alpha), r2 and l2, each `[P]`.
    """
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.enable_x64(True), jax.default_device(cpu):
        h, alpha, h_test, alpha_test = (
            jnp.asarray(array, jnp.float64) for array in (h, alpha, h_test, alpha_test)
        )
        probe, chosen = evaluation.fit_ridge_selected(
            h, alpha, l2=l2, num_held_out=max(len(h) // _HELD_OUT, 1)
        )
        predictions = evaluation.predict(probe, h_test)
        mean = jnp.broadcast_to(alpha.mean(axis=0, keepdims=True), alpha_test.shape)
        found = {
            "mse": evaluation.mean_squared_error(predictions, alpha_test),
            "constant": evaluation.mean_squared_error(mean, alpha_test),
            "r2": evaluation.r_squared(predictions, alpha_test),
            "l2": chosen,
        }
        return {name: np.asarray(values) for name, values in found.items()}


def _features(subject: Subject, split: str) -> np.ndarray:
    """Returns the features of the first view, `[N, D]`."""
    if subject.num_views[0] == 1:
        return subject.features(split)[0]
    return subject.encoder.features(
        subject.variables,
        subject.examples(split).x,
        num_views=(1,),
        stream=_stream(split),
    )[0]


def _alpha(subject: Subject, split: str) -> np.ndarray:
    """Returns the parameters of the first view, `[N, P]`."""
    encoder, transformation = subject.encoder, make_transformation(subject.settings)

    def alpha(_: Any, x: Array, indices: Array, stream: Array) -> Array:
        key = encoder.key(stream)
        return evaluation.sample_view(key, transformation, indices, view=0).alpha

    mapped = encoder.map(alpha, axis=0)
    return mapped({}, subject.examples(split).x, _stream(split))


def _stream(split: str) -> int:
    return {"train": TRAIN, "test": TEST}[split]
