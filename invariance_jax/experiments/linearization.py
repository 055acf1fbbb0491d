"""Linearization: how well the penalty's first-order term predicts the change of n(h).

Foster, Pukdee, Rainforth (ICLR 2021), section 3: the penalty is the squared first-order
term at the full step from alpha to another draw alpha', however large the step is.
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

Represent = Callable[[Array], Array]


def run(context: Context) -> ExperimentResult:
    """Returns the fields of `evaluation.LinearizationError`, over pairs of views.

    They are measured for each step length along all parameters, and for the largest
    along each parameter alone. Both views of a pair have the held choices of the first.
    """
    steps = context.settings.evaluation.linearization_steps
    names, rows = context.parts.transformation.names, []
    if names:
        mapped = map_pairs(context, _changes, axis=2)

        def changes(columns: np.ndarray) -> evaluation.Changes:
            fields = mapped(columns, np.array(steps, np.float32))
            return evaluation.Changes(*jnp.asarray(fields))

        rows += _rows(changes(np.ones(len(names), bool)), steps, "all")
        for name, columns in zip(names, np.eye(len(names), dtype=bool), strict=True):
            by_step = _rows(changes(columns), steps, name)
            rows += [row for row in by_step if row.at["step"] == max(steps)]
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


def map_pairs(
    context: Context, function: Callable[..., Array], *, axis: int
) -> Callable[..., np.ndarray]:
    """Returns `(*arguments) -> results of a function over all pairs`, concatenated.

    The function is `(represent, alpha, alpha', *arguments) -> [..., B, ...]` with the
    examples on `axis`. `represent` maps alpha to n(h) of a view with the held choices
    of the pair's first view. The encoder uses running statistics and full float32,
    whatever the key `precision` says: rounding would hide small changes.
    """
    options, transformation = context.settings.evaluation, context.parts.transformation
    network, settings = context.parts.encoder, context.parts.settings
    if settings.precision != "float32":
        settings = copy.deepcopy(settings)
        settings.precision = "float32"
        network = build(settings).encoder

    def compute(
        parts: tuple[Variables, Array, tuple[Array, ...]],
        x: Array,
        indices: Array,
        stream: Array,
    ) -> Array:
        variables, pair, arguments = parts
        key = context.encoder.key(stream)
        first, second = (
            evaluation.sample_view(key, transformation, indices, view=2 * pair + n, x=x)
            for n in (0, 1)
        )

        def represent(alpha: Array) -> Array:
            images = transformation.apply(x, View(alpha, first.held))
            return l2_normalize(apply(network, variables, images))

        # By default accelerators round float32 factors to 8 or 11 bits.
        with jax.default_matmul_precision("highest"):
            return function(represent, first.alpha, second.alpha, *arguments)

    mapped = context.encoder.map(compute, axis=axis, batch_size=VIEWS_BATCH)

    def over_pairs(*arguments: np.ndarray) -> np.ndarray:
        x = context.test.x[: options.variance_examples]
        pairs = map(np.int32, range(options.variance_views // 2))
        inputs = [(context.variables, pair, arguments) for pair in pairs]
        results = [mapped(parts, x, STREAMS["test"]) for parts in inputs]
        return np.concatenate(results, axis=axis)

    return over_pairs


def _changes(
    represent: Represent, alpha: Array, other: Array, columns: Array, steps: Array
) -> Array:
    """Returns the fields of `Changes` along some columns, `[3, len(steps), B]`."""
    other = jnp.where(columns[None], other, alpha)
    return jnp.stack(evaluation.linearize_changes(represent, alpha, other, steps))
