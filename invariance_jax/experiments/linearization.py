"""Linearization: how well the penalty's first-order term predicts the change of n(h).

Foster, Pukdee, Rainforth (ICLR 2021), section 3: the penalty is the squared first-order
term at the full step from alpha to another draw alpha', whatever the size of the step.
"""

import copy
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.numerics import l2_normalize
from invariance_jax.runs.results import ExperimentResult, Row
from invariance_jax.training.build import build
from invariance_jax.training.frozen import VIEWS_BATCH, apply
from invariance_jax.training.objective import Variables
from invariance_jax.transforms import View
from invariance_jax.types import Array


def run(context: Context) -> ExperimentResult:
    """Returns how far the first-order change is from the true one.

    For each step along all parameters, and along each alone for the largest step: the
    fields of `evaluation.LinearizationError`, over pairs alpha, alpha' of
    `evaluation.variance_views` independent views of each of
    `evaluation.variance_examples` examples; in a pair the other random choices are
    those of the first view.
    """
    steps = context.settings.evaluation.linearization_steps
    names, rows = context.parts.transformation.names, []
    if names:
        changes = _make_changes(context)
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


def _make_changes(context: Context) -> Callable[[np.ndarray], evaluation.Changes]:
    """Returns columns of alpha, bool `[P]` -> changes along these, of all pairs.

    The encoder is on running statistics and in full float32, whatever `precision` says:
    the change of a small step would drown in rounding.
    """
    chosen, transformation = context.settings.evaluation, context.parts.transformation
    network, settings = context.parts.encoder, context.parts.settings
    if settings.precision != "float32":
        settings = copy.deepcopy(settings)
        settings.precision = "float32"
        network = build(settings).encoder

    def compute(
        parts: tuple[Variables, Array, Array, Array],
        x: Array,
        indices: Array,
        stream: Array,
    ) -> Array:
        """Returns the three squared norms, `[3, len(steps), B]`."""
        variables, columns, steps, pair = parts
        key = context.encoder.key(stream)
        first, second = (
            evaluation.sample_view(key, transformation, indices, view=2 * pair + n, x=x)
            for n in (0, 1)
        )

        def represent(alpha: Array) -> Array:
            images = transformation.apply(x, View(alpha, first.held))
            return l2_normalize(apply(network, variables, images))

        other = jnp.where(columns[None], second.alpha, first.alpha)
        # Accelerators otherwise round float32 factors to 8 or 11 bits.
        with jax.default_matmul_precision("highest"):
            return jnp.stack(
                evaluation.linearize_changes(represent, first.alpha, other, steps)
            )

    mapped = context.encoder.map(compute, axis=2, batch_size=VIEWS_BATCH)

    def changes(columns: np.ndarray) -> evaluation.Changes:
        x = context.test.x[: chosen.variance_examples]
        steps = np.array(chosen.linearization_steps, np.float32)
        parts = context.variables, columns, steps
        pairs = map(np.int32, range(chosen.variance_views // 2))
        each = [mapped((*parts, pair), x, STREAMS["test"]) for pair in pairs]
        return evaluation.Changes(*jnp.asarray(np.concatenate(each, axis=2)))

    return changes
