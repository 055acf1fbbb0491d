"""Linearization: how well the penalty's first-order term predicts the change of n(h).

Foster, Pukdee, Rainforth (ICLR 2021), section 3: the penalty is the squared first-order
term at the full step from alpha to another draw alpha', whatever the size of the step.
"""

import copy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.numerics import l2_normalize
from invariance_jax.runs.results import ExperimentResult, Row
from invariance_jax.training.build import Parts, build
from invariance_jax.training.frozen import VIEWS_BATCH, apply
from invariance_jax.training.objective import Variables
from invariance_jax.transforms import View
from invariance_jax.types import Array


def run(context: Context) -> ExperimentResult:
    """Returns how far the first-order change is from the true one.

    Over pairs alpha, alpha' of `evaluation.variance_views` independent views of each of
    `evaluation.variance_examples` examples; in a pair the other random choices are
    those of the first view. The encoder is on running statistics and in full float32,
    whatever `precision` says: the change of a small step would drown in rounding.
    """
    steps = context.settings.evaluation.linearization_steps
    names, rows = context.parts.transformation.names, []
    if names:
        changes = _Changes(context)
        rows += _rows(changes(np.ones(len(names), bool)), steps, "all")
        for name, chosen in zip(names, np.eye(len(names), dtype=bool), strict=True):
            found = _rows(changes(chosen), steps, name)
            rows += [row for row in found if row.at["step"] == max(steps)]
    return ExperimentResult(rows)


def _rows(
    changes: evaluation.Changes, steps: tuple[float, ...], parameters: str
) -> list[Row]:
    error = evaluation.linearization_error(changes)._asdict()
    return [
        Row(name, float(values[number]), {"step": step, "parameters": parameters})
        for number, step in enumerate(steps)
        for name, values in error.items()
    ]


def _in_float32(parts: Parts) -> nn.Module:
    """Returns the encoder without reduced precision."""
    if parts.settings.precision == "float32":
        return parts.encoder
    settings = copy.deepcopy(parts.settings)
    settings.precision = "float32"
    return build(settings).encoder


class _Changes:
    """Changes along some columns of alpha, over all pairs of views of all examples."""

    def __init__(self, context: Context):
        self._context, self._chosen = context, context.settings.evaluation
        self._network = _in_float32(context.parts)
        self._mapped = context.encoder.map(
            self._compute, axis=2, batch_size=VIEWS_BATCH
        )

    def __call__(self, columns: np.ndarray) -> evaluation.Changes:
        """Returns the changes along the chosen columns, bool `[P]`."""
        x = self._context.test.x[: self._chosen.variance_examples]
        steps = np.array(self._chosen.linearization_steps, np.float32)
        parts, stream = (self._context.variables, columns, steps), STREAMS["test"]
        pairs = range(self._chosen.variance_views // 2)
        each = [self._mapped((*parts, np.int32(pair)), x, stream) for pair in pairs]
        return evaluation.Changes(*jnp.asarray(np.concatenate(each, axis=2)))

    def _compute(
        self,
        parts: tuple[Variables, Array, Array, Array],
        x: Array,
        indices: Array,
        stream: Array,
    ) -> Array:
        """Returns the three squared norms, `[3, len(steps), B]`."""
        variables, columns, steps, pair = parts
        transformation = self._context.parts.transformation
        key = self._context.encoder.key(stream)
        first, second = (
            evaluation.sample_view(key, transformation, indices, view=2 * pair + n)
            for n in (0, 1)
        )

        def represent(alpha: Array) -> Array:
            images = transformation.apply(x, View(alpha, first.held))
            return l2_normalize(apply(self._network, variables, images))

        other = jnp.where(columns[None], second.alpha, first.alpha)
        # Accelerators otherwise round float32 factors to 8 or 11 bits.
        with jax.default_matmul_precision("highest"):
            return jnp.stack(
                evaluation.linearize_changes(represent, first.alpha, other, steps)
            )
