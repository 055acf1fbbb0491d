"""Invariance: the variance of a representation over the views of an example.

Foster, Pukdee, Rainforth (ICLR 2021), section 3, penalize an estimate of it. Names in
the summary: `variance.within`, `variance.total`, `variance.normalized`, all of n(h);
`.FAMILY` is appended if the views are of a part of the transformation.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.data import Pictures
from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.numerics import l2_normalize, safe_divide
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.runs.results import ExperimentResult, Row
from invariance_jax.training.build import state_shapes
from invariance_jax.training.frozen import VIEWS_BATCH, Mapped, encoder_variables
from invariance_jax.training.objective import Variables
from invariance_jax.transforms import shifts
from invariance_jax.types import Array

_NORMALIZATIONS: dict[str, Callable[[Array], Array]] = {
    "n(h)": l2_normalize,
    "h": lambda h: h,
}


def run(context: Context) -> ExperimentResult:
    """Returns the variance over views, by family, by parameter and by checkpoint.

    In the table "parameters" one parameter is redrawn for every view. The others and
    the held choices keep one draw per example. All rows use the total of "all", the
    whole transformation: the total over the views of one parameter has the same
    expectation, but more noise. "paired" estimates the variance within examples from
    the change between two views; the penalty uses the first-order term of this change.
    """
    x = context.test.x[: context.settings.evaluation.variance_examples]
    views = functools.partial(context.encoder.views, stream=STREAMS["test"])
    rows, h_all = [], views(context.variables, x)
    for family in dict.fromkeys(("all", *context.settings.evaluation.families)):
        h = h_all if family == "all" else views(context.variables, x, family=family)
        at = {} if family == "all" else {"family": family}
        variances = _rows(evaluation.invariance(l2_normalize(h)), **at)
        rows += [row._replace(metric=f"variance.{row.metric}") for row in variances]
    rows += _by_parameter(context, x, h_all)
    for step, variables in checkpoints(context):
        h = views(variables, x)
        for of, normalize in _NORMALIZATIONS.items():
            variance = evaluation.invariance(normalize(h))
            rows += _rows(variance, table="checkpoints", step=step, of=of)
    return ExperimentResult(rows)


def _by_parameter(
    context: Context, x: np.ndarray | Pictures, h_all: Array
) -> list[Row]:
    """Returns the rows of "parameters"; h_all has views of the whole transformation."""
    totals, rows = {}, []
    for of, normalize in _NORMALIZATIONS.items():
        h, at = normalize(h_all), {"table": "parameters", "parameter": "all", "of": of}
        variance = evaluation.invariance(h)
        totals[of] = variance.total
        rows += _rows(variance, **at)
        rows.append(Row("paired", float(evaluation.paired_change(h)), at))
    names, redraw = context.parts.transformation.names, _redraw(context)
    for name, columns in zip(names, np.eye(len(names), dtype=bool), strict=True):
        h_one = jnp.asarray(redraw((context.variables, columns), x, STREAMS["test"]))
        for of, normalize in _NORMALIZATIONS.items():
            within, total = evaluation.invariance(normalize(h_one)).within, totals[of]
            variance = evaluation.Variance(within, total, safe_divide(within, total))
            rows += _rows(variance, table="parameters", parameter=name, of=of)
    return rows


def checkpoints(context: Context) -> Iterator[tuple[int, Variables]]:
    """Yields step and encoder variables of each checkpoint; given weights: step 0."""
    network, shapes = context.settings.evaluation.network, state_shapes(context.parts)
    with contextlib.closing(Checkpoints(context.workdir)) as saved:
        for step, state, _ in saved.undamaged(shapes, saved.steps()):
            yield step, encoder_variables(state, network)
        if not saved.steps():
            yield 0, context.variables


def _redraw(context: Context) -> Mapped:
    """Returns a function from variables and the redrawn columns of alpha to h."""
    encoder, transformation = context.encoder, context.parts.transformation
    count = context.settings.evaluation.variance_views

    def views(
        parts: tuple[Variables, Array], x: Array, indices: Array, stream: Array
    ) -> Array:
        variables, columns = parts
        key = encoder.key(stream)
        # The kept view is a further draw, so that the M views are exchangeable.
        kept = evaluation.sample_view(key, transformation, indices, view=count, x=x)
        return evaluation.encode_views(
            key,
            functools.partial(encoder.encode, variables),
            shifts.redraw(transformation, columns),
            (x, kept),
            num_views=count,
            indices=indices,
        )

    return encoder.map(views, axis=1, batch_size=VIEWS_BATCH)


def _rows(variance: evaluation.Variance, **at: str | int) -> list[Row]:
    return [Row(name, float(value), at) for name, value in variance._asdict().items()]
