"""The downstream tasks: a probe on one view, on plain images, and on what stands beside
the encoder.

Foster, Pukdee, Rainforth (ICLR 2021), section 5. Names in the summary: `mse@1`,
`mse.TARGET@1`, `r2.TARGET@1` and `mse.constant`, the error of the mean of the test
targets; of images `accuracy@plain`, `cross_entropy@plain`, `knn20@plain`. A baseline,
"pixels" or "untrained", comes before the `@`.
"""

import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.runs.results import ExperimentResult, Row, rows_of


def run(context: Context) -> ExperimentResult:
    """Returns the quality of probes on single views and on plain images.

    Where no view is plain, the baselines are measured on averaged views.
    """
    rows = rows_of(context.scored(0).values, views=context.num_views[0])
    if context.task.targets:
        constant = float(context.y("test").var(axis=0).mean())
        rows += [Row("mse.constant", constant), *context.selected(0)]
    if context.parts.transformation.plain is None:
        return ExperimentResult([*rows, *_averaged(context)])
    h, h_test = (context.plain(split) for split in ("train", "test"))
    rows += _probe(context, h, h_test, None)
    rows += context.select(h, h_test, "plain")
    for name in context.settings.evaluation.baselines:
        h, h_test = (_baseline(context, name, s) for s in ("train", "test"))
        rows += _probe(context, h, h_test, name)
    return ExperimentResult(rows)


def _averaged(context: Context) -> list[Row]:
    """Returns the overall quality of the baselines on averaged views."""
    chosen, encoder, rows = context.settings.evaluation, context.encoder, []
    views = tuple(sorted({chosen.num_views[0], chosen.num_views[-1]}))
    for name in chosen.baselines:
        each = []
        for split, stream in STREAMS.items():
            x = context.examples(split).x
            if name == "pixels":
                each.append(encoder.pixels(x, num_views=views, stream=stream))
            else:
                variables = context.untrained
                each.append(
                    encoder.features(variables, x, num_views=views, stream=stream)
                )
        for count, h, h_test in zip(views, *each, strict=True):
            found = context.fit_and_score(h, h_test).values
            values = {key: value for key, value in found.items() if "." not in key}
            rows += rows_of(values, views=count, encoder=name)
    return rows


def _baseline(context: Context, name: str, split: str) -> np.ndarray:
    """Returns what stands for the features of plain images."""
    x = context.examples(split).x
    if name == "pixels":
        return x.reshape(len(x), -1).astype(np.float32) / 255
    return context.encoder.plain(context.untrained, x)


def _probe(
    context: Context, h: np.ndarray, h_test: np.ndarray, encoder: str | None
) -> list[Row]:
    """Returns linear and kNN results on the features of plain images."""
    values, chosen = context.fit_and_score(h, h_test).values, context.settings
    rows = rows_of(values, views="plain", encoder=encoder)
    if not context.task.classes:
        return rows
    each = h, context.y("train"), h_test, context.y("test")
    arrays = [jnp.asarray(array) for array in each]
    found = {}
    for k in chosen.evaluation.neighbors:
        for name, temperature in (
            (f"knn{k}", chosen.evaluation.neighbor_temperature),
            (f"knn{k}_majority", None),
        ):
            accuracy = evaluation.knn_accuracy(*arrays, k=k, temperature=temperature)
            found[name] = float(accuracy)
    return rows + rows_of(found, views="plain", encoder=encoder)
