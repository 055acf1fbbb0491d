"""Linearization: how well the penalty's first-order term predicts the change of n(h).

Foster, Pukdee, Rainforth (ICLR 2021), section 3: the penalty is the squared first-order
term at the full step from alpha to another draw alpha', whatever the size of the step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from invariance_jax import evaluation
from invariance_jax.experiments.subject import TEST, Measured, Row, Subject
from invariance_jax.numerics import l2_normalize
from invariance_jax.training.components import make_networks, make_transformation
from invariance_jax.training.frozen import VIEWS_BATCH
from invariance_jax.transforms import View
from invariance_jax.types import Array


def run(subject: Subject) -> Measured:
    """Returns how far the first-order change is from the true one.

    Over pairs alpha, alpha' of `evaluation.variance_views` independent views of each of
    `evaluation.variance_examples` examples; in a pair the other random choices are
    those of the first view. The encoder is on running statistics and in full float32,
    whatever `precision` says: the change of a small step would drown in rounding.

    Args:
      subject: the encoder and its examples.

    Returns:
      Rows of all parameters for each step, and of each parameter alone for the largest
      step: the fields of `evaluation.LinearizationError`. None if the transformation
      has no alpha.
    """
    steps = subject.settings.evaluation.linearization_steps
    names = make_transformation(subject.settings).names
    if not names:
        return Measured({}, [])
    changes = _Changes(subject)
    rows = _rows(changes(np.ones(len(names), bool)), steps, "all")
    for name, chosen in zip(names, np.eye(len(names), dtype=bool), strict=True):
        rows.append(_rows(changes(chosen), steps, name)[int(np.argmax(steps))])
    return Measured({}, rows)


def _rows(
    changes: evaluation.Changes, steps: tuple[float, ...], parameters: str
) -> list[Row]:
    error = evaluation.linearization_error(changes)._asdict()
    return [
        Row(
            {"step": float(step), "parameters": parameters},
            {name: float(values[number]) for name, values in error.items()},
        )
        for number, step in enumerate(steps)
    ]


class _Changes:
    """Changes along some columns of alpha, over all pairs of views of all examples."""

    def __init__(self, subject: Subject):
        self._subject, self._chosen = subject, subject.settings.evaluation
        settings = {**subject.settings.to_dict(), "precision": "float32"}
        self._network = make_networks(FrozenConfigDict(settings)).encoder
        self._transformation = make_transformation(subject.settings)
        self._mapped = subject.encoder.map(
            self._compute, axis=2, batch_size=VIEWS_BATCH
        )

    def __call__(self, columns: np.ndarray) -> evaluation.Changes:
        """Returns the changes along the chosen columns, bool `[P]`."""
        x = self._subject.test.x[: self._chosen.variance_examples]
        steps = np.array(self._chosen.linearization_steps, np.float32)
        parts = self._subject.variables, columns, steps
        pairs = range(self._chosen.variance_views // 2)
        each = [self._mapped((*parts, np.int32(pair)), x, TEST) for pair in pairs]
        return evaluation.Changes(*jnp.asarray(np.concatenate(each, axis=2)))

    def _compute(self, parts: Any, x: Array, indices: Array, stream: Array) -> Array:
        """Returns the three squared norms, `[3, len(steps), B]`."""
        variables, columns, steps, pair = parts
        key, transformation = self._subject.encoder.key(stream), self._transformation
        first, second = (
            evaluation.sample_view(key, transformation, indices, view=2 * pair + n)
            for n in (0, 1)
        )

        def represent(alpha: Array) -> Array:
            images = transformation.apply(x, View(alpha, first.held))
            return l2_normalize(self._network.apply(variables, images, train=False))

        other = jnp.where(columns[None], second.alpha, first.alpha)
        # Accelerators otherwise round float32 factors to 8 or 11 bits.
        with jax.default_matmul_precision("highest"):
            return jnp.stack(
                evaluation.linearize_changes(represent, first.alpha, other, steps)
            )
