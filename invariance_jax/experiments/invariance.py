"""Invariance: how much of the variance of a representation views of an example make.

Foster, Pukdee, Rainforth (ICLR 2021), section 3, penalize an estimate of it. Names in
the summary: `variance.within`, `variance.total`, `variance.normalized`, of n(h) over
views of the same example, with `.FAMILY` where a part of the transformation is drawn.
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

_OF: dict[str, Callable[[Array], Array]] = {"n(h)": l2_normalize, "h": lambda h: h}


def run(context: Context) -> ExperimentResult:
    """Returns the variance over views, by family, by parameter and by checkpoint.

    In the table "parameters" each is drawn anew for every view while the others, and
    what is held, keep one draw per example. The total is that of the whole
    transformation, "all": that of one parameter has the same expectation, as its views
    have the same distribution, but more noise. "paired" is the variance within from the
    change between two views, of which the penalty takes the first-order term.
    """
    x = context.test.x[: context.settings.evaluation.variance_examples]
    views = functools.partial(context.encoder.views, stream=STREAMS["test"])
    rows, whole = [], views(context.variables, x)
    for family in dict.fromkeys(("all", *context.settings.evaluation.families)):
        h = whole if family == "all" else views(context.variables, x, family=family)
        at = {} if family == "all" else {"family": family}
        named = _rows(evaluation.invariance(l2_normalize(h)), **at)
        rows += [row._replace(metric=f"variance.{row.metric}") for row in named]
    rows += _by_parameter(context, x, whole)
    for step, variables in checkpoints(context):
        h = views(variables, x)
        for of, normalize in _OF.items():
            found = evaluation.invariance(normalize(h))
            rows += _rows(found, table="checkpoints", step=step, of=of)
    return ExperimentResult(rows)


def _by_parameter(
    context: Context, x: np.ndarray | Pictures, whole: Array
) -> list[Row]:
    totals, rows = {}, []
    for of, normalize in _OF.items():
        h, at = normalize(whole), {"table": "parameters", "parameter": "all", "of": of}
        found = evaluation.invariance(h)
        totals[of] = found.total
        rows += _rows(found, **at)
        rows.append(Row("paired", float(evaluation.paired_change(h)), at))
    names, redrawn = context.parts.transformation.names, _redraw(context)
    for name, chosen in zip(names, np.eye(len(names), dtype=bool), strict=True):
        part = jnp.asarray(redrawn((context.variables, chosen), x, STREAMS["test"]))
        for of, normalize in _OF.items():
            within, total = evaluation.invariance(normalize(part)).within, totals[of]
            found = evaluation.Variance(within, total, safe_divide(within, total))
            rows += _rows(found, table="parameters", parameter=name, of=of)
    return rows


def checkpoints(context: Context) -> Iterator[tuple[int, Variables]]:
    """Yields the step and the encoder of each checkpoint; given weights have step 0."""
    network, like = context.settings.evaluation.network, state_shapes(context.parts)
    with contextlib.closing(Checkpoints(context.workdir)) as kept:
        for step in kept.steps():
            state = kept.restore(like, step=step).state
            yield step, encoder_variables(state, network)
        if not kept.steps():
            yield 0, context.variables


def _redraw(context: Context) -> Mapped:
    """Returns the function from variables and chosen columns of alpha to h."""
    encoder, transformation = context.encoder, context.parts.transformation
    count = context.settings.evaluation.variance_views

    def views(
        parts: tuple[Variables, Array], x: Array, indices: Array, stream: Array
    ) -> Array:
        variables, chosen = parts
        key = encoder.key(stream)
        # Not one of the views, so that these are alike.
        kept = evaluation.sample_view(key, transformation, indices, view=count, x=x)
        return evaluation.encode_views(
            key,
            functools.partial(encoder.encode, variables),
            shifts.redraw(transformation, chosen),
            (x, kept),
            num_views=count,
            indices=indices,
        )

    return encoder.map(views, axis=1, batch_size=VIEWS_BATCH)


def _rows(variance: evaluation.Variance, **at: str | int) -> list[Row]:
    return [Row(name, float(value), at) for name, value in variance._asdict().items()]
