"""Poincare ratio: how far derivatives over-estimate the total effect of a parameter.

Sobol and Kucherenko (2009): the mean squared derivative along a uniform parameter,
times (range / pi)^2, bounds its total effect on n(h). Foster et al. (2021) do not
measure this. Their penalty makes such derivatives small; where the ratio is large, that
says little about the effect.
"""

import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.context import Context
from invariance_jax.experiments.linearization import Represent, map_pairs
from invariance_jax.runs.results import ExperimentResult, Row
from invariance_jax.types import Array


def run(context: Context) -> ExperimentResult:
    """Returns the bound, the total effect and their ratio for each parameter.

    `rank_correlation` is Spearman's, between the squared first-order and the squared
    true change at the full step, over the same pairs as in `linearization`. The bound
    need not hold for a parameter that is not uniform, such as those of a crop box.
    """
    from scipy import stats  # here, as the import takes a second

    transformation, rows = context.parts.transformation, []
    low, high = transformation.bounds.T.astype(np.float32)

    def compute(
        represent: Represent, alpha: Array, other: Array, column: Array
    ) -> Array:
        settings = jnp.full(len(alpha), column), jnp.asarray(high - low)
        return jnp.stack(evaluation.total_effects(represent, alpha, other, *settings))

    effects = map_pairs(context, compute, axis=1)
    for number, name in enumerate(transformation.names):
        bounds, true, linear = effects(np.int32(number)).astype(np.float64)
        bound, effect = bounds.mean(), true.mean()
        varies = linear.std() > 0 and true.std() > 0
        metrics = {
            "bound": bound,
            "effect": effect,
            "ratio": bound / effect if effect else 0.0,
            "rank_correlation": stats.spearmanr(linear, true)[0] if varies else 0.0,
        }
        rows += [Row(key, float(v), {"parameter": name}) for key, v in metrics.items()]
    return ExperimentResult(rows)
