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
)
from invariance_jax.experiments.subject import Measured, Row, Subject

EXPERIMENTS: dict[str, Callable[[Subject], Measured]] = {
    "downstream": downstream.run,
    "averaging": averaging.run,
    "invariance": invariance.run,
}

__all__ = ["EXPERIMENTS", "Measured", "Row", "Subject"]
