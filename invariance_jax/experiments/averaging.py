"""Feature averaging: the probe on the mean over M views, against averaged predictions.

Foster, Pukdee, Rainforth (ICLR 2021), section 4. Names in the summary: `mse@M`,
`accuracy@M`, ... for every M of `evaluation.num_views`; `accuracy.crop@M` where views
of a part of the transformation are averaged; `accuracy.ensemble@M`, `mse.ensemble@M`
where the probe is fitted on one view and its predictions are averaged;
`mse.selected@M`, ... where it chooses its own l2; `mse.lbfgs500@M`: after 500 steps.
"""

import logging

import jax.numpy as jnp
import numpy as np

from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.runs.results import ExperimentResult, rows_of

_log = logging.getLogger(__name__)


def run(context: Context) -> ExperimentResult:
    """Returns the quality of the probe for every number of averaged views."""
    chosen, rows = context.settings.evaluation, []
    for family in chosen.families:
        part = None if family == "all" else family
        for number, views in enumerate(chosen.num_views):
            values = context.scored(number, family).values
            rows += rows_of(values, views=views, family=part)
    if "all" in chosen.families:
        numbers = range(len(chosen.num_views))
        # A logistic fit takes long.
        for number in numbers if context.task.targets else numbers[-1:]:
            rows += context.selected(number)
    if "all" in chosen.families and chosen.num_views[0] == 1:
        for views, values in zip(context.num_views, _ensembles(context), strict=True):
            rows += rows_of(values, views=views, probe="ensemble")
    else:
        _log.info("no averaged predictions: they need the family 'all' and M = 1")
    return ExperimentResult(rows)


def _ensembles(context: Context) -> list[dict[str, float]]:
    """Returns the quality of the mean prediction of a probe on one view, for each M."""
    task, probe, y = context.task, context.scored(0).probe, context.y("test")
    if task.targets:
        # A linear probe of the mean is the mean of its predictions.
        scored = [task.score(probe, h, y) for h in context.features("test")]
        return [{"mse": one.values["mse"]} for one in scored]
    means = context.encoder.probabilities(
        context.variables,
        probe,
        context.test.x,
        num_views=context.num_views,
        stream=STREAMS["test"],
    )
    logits = np.log(np.maximum(means, np.finfo(means.dtype).tiny))
    return [task.quality(jnp.asarray(one), jnp.asarray(y)) for one in logits]
