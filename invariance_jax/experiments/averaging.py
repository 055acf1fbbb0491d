"""Feature averaging: the probe on the mean over M views, against averaged predictions.

Foster, Pukdee, Rainforth (ICLR 2021), section 4. Names in the summary: `mse@M`,
`accuracy@M`, ... for every M of `evaluation.num_views`; `accuracy.crop@M` where views
of a part of the transformation are averaged; `accuracy.ensemble@M`, `mse.ensemble@M`
where the probe is fitted on one view and its predictions are averaged.
"""

import logging

import jax.numpy as jnp
import numpy as np

from invariance_jax.experiments.subject import TEST, Measured, Subject, named
from invariance_jax.training.components import is_regression
from invariance_jax.training.protocols import quality, score

_log = logging.getLogger(__name__)


def run(subject: Subject) -> Measured:
    """Returns the quality of the probe for every number of averaged views.

    Args:
      subject: the encoder and its examples.

    Returns:
      Values for the summary; no rows.
    """
    chosen = subject.settings.evaluation
    values: dict[str, float] = {}
    for family in chosen.families:
        for number, views in enumerate(chosen.num_views):
            values |= named(subject.scored(number, family).values, family, views)
    if "all" in chosen.families:
        # A logistic fit takes long.
        numbers = range(len(chosen.num_views))
        for number in numbers if is_regression(subject.settings) else numbers[-1:]:
            values |= subject.selected(number)
    if "all" in chosen.families and chosen.num_views[0] == 1:
        return Measured(values | _ensembles(subject), [])
    _log.info("no averaged predictions: they need the family 'all' and M = 1")
    return Measured(values, [])


def _ensembles(subject: Subject) -> dict[str, float]:
    """Returns the quality of the mean prediction of a probe on one view."""
    settings, probe, y = subject.settings, subject.scored(0).probe, subject.test.y
    views = settings.evaluation.num_views
    if is_regression(settings):
        # A linear probe of the mean is the mean of its predictions.
        scored = [score(settings, probe, h, y) for h in subject.features("test")]
        each = [{"mse": one.values["mse"]} for one in scored]
    else:
        means = subject.encoder.probabilities(
            subject.variables, probe, subject.test.x, num_views=views, stream=TEST
        )
        tiny = np.finfo(means.dtype).tiny
        logits = [jnp.log(jnp.maximum(mean, tiny)) for mean in means]
        each = [quality(settings, one, jnp.asarray(y)) for one in logits]
    values: dict[str, float] = {}
    for count, found in zip(views, each, strict=True):
        values |= named(found, "ensemble", count)
    return values
