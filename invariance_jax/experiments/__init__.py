"""The experiments of the paper, and better ones, on a trained encoder.

Each is a module with `run(subject) -> Measured`, named in `evaluation.experiments`; it
computes with the pure functions of `evaluation` and `transforms`. `records` keeps what
is finished.
"""

from collections.abc import Callable

from invariance_jax.experiments import (
    averaging,
    downstream,
    invariance,
    label_fraction,
    linearization,
    nuisance_prediction,
    shift,
)
from invariance_jax.experiments.subject import Measured, Row, Subject

EXPERIMENTS: dict[str, Callable[[Subject], Measured]] = {
    "downstream": downstream.run,
    "averaging": averaging.run,
    "invariance": invariance.run,
    "linearization": linearization.run,
    "nuisance_prediction": nuisance_prediction.run,
    "shift": shift.run,
    "label_fraction": label_fraction.run,
}

__all__ = ["EXPERIMENTS", "Measured", "Row", "Subject"]
