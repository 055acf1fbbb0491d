"""Feature averaging: the probe on features averaged over M views.

Foster, Pukdee, Rainforth (ICLR 2021), section 4. Names in the summary: `mse@M`,
`accuracy@M`, ...; `accuracy.crop@M` for views of a part of the transformation,
`mse.ensemble@M` for the averaged predictions of a probe that is fitted on one view,
`mse.selected@M` for an l2 that is chosen on held-out examples, `mse.lbfgs500@M` for a
probe with 500 steps of L-BFGS.
"""

import logging

import jax.numpy as jnp
import numpy as np

from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.runs.results import ExperimentResult, rows_of

_log = logging.getLogger(__name__)


def run(context: Context) -> ExperimentResult:
    """Returns the quality of the probe for every number of averaged views."""
    evaluation, rows = context.settings.evaluation, []
    for family in evaluation.families:
        part = None if family == "all" else family
        for number, views in enumerate(evaluation.num_views):
            values = context.scored(number, family).values
            rows += rows_of(values, views=views, family=part)
    if "all" in evaluation.families:
        numbers = range(len(evaluation.num_views))
        # A logistic fit is slow: for images only the largest M.
        for number in numbers if context.task.targets else numbers[-1:]:
            rows += context.selected(number)
    if "all" in evaluation.families and evaluation.num_views[0] == 1:
        for views, values in zip(context.num_views, _ensembles(context), strict=True):
            rows += rows_of(values, views=views, probe="ensemble")
    else:
        _log.info("no averaged predictions: these need the family 'all' and M = 1")
    return ExperimentResult(rows)


def _ensembles(context: Context) -> list[dict[str, float]]:
    """Returns, for each M, the quality of a one-view probe's averaged predictions."""
    task, probe, y = context.task, context.scored(0).probe, context.y("test")
    if task.targets:
        # A linear probe's prediction of mean features is its mean prediction.
        scored = [task.score(probe, h, y) for h in context.features("test")]
        return [{"mse": each.values["mse"]} for each in scored]
    probabilities = context.encoder.probabilities(
        context.variables,
        probe,
        context.test.x,
        num_views=context.num_views,
        stream=STREAMS["test"],
    )
    logits = np.log(np.maximum(probabilities, np.finfo(probabilities.dtype).tiny))
    return [task.quality(jnp.asarray(each), jnp.asarray(y)) for each in logits]
