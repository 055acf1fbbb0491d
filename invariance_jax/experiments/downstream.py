"""The downstream tasks: probes on one view, on plain images and on baselines.

Foster, Pukdee, Rainforth (ICLR 2021), section 5. Names in the summary: `mse@1`,
`mse.TARGET@1`, `r2.TARGET@1` and `mse.constant`, the error of predicting the mean of
the test targets; for images `accuracy@plain`, `cross_entropy@plain`, `knn20@plain`. The
name of a baseline, "pixels" or "untrained", precedes the `@`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.data import limits, take
from invariance_jax.experiments.context import STREAMS, Context, overall
from invariance_jax.runs.results import ExperimentResult, Row, rows_of
from invariance_jax.tasks.images import MOST_BYTES

_BLOCK = 65_536
"""Training examples whose features are on the device at a time, if they are large."""


def run(context: Context) -> ExperimentResult:
    """Returns the quality of probes: the smallest M, plain images, and baselines."""
    baselines = context.settings.evaluation.baselines
    if context.is_plain and "pixels" in baselines:
        count = len(context.train.x) + len(context.test.x)
        (pixels, *_) = jax.tree.leaves(context.task.stand_ins(1))
        what = f"evaluation.baselines: the pixels of {count} images"
        advice = "leave them out, or lower evaluation.train_examples"
        limits.memory(what, 4 * count * pixels.size, advice=advice)
    rows = rows_of(context.scored(0).values, views=context.num_views[0])
    if context.task.targets:
        constant = float(context.y("test").var(axis=0).mean())
        rows += [Row("mse.constant", constant), *context.selected(0)]
    if not context.is_plain:
        rows += [row for name in baselines for row in _averaged(context, name)]
        return ExperimentResult(rows)
    h, h_test = map(context.plain, STREAMS)
    rows += _plain(context, h, h_test) + context.select(h, h_test, "plain")
    for name in baselines:
        h, h_test = (_baseline(context, name, split) for split in STREAMS)
        rows += _plain(context, h, h_test, encoder=name)
    return ExperimentResult(rows)


def _averaged(context: Context, name: str) -> list[Row]:
    """Returns the overall quality of a baseline at the smallest and the largest M."""
    every, encoder = context.settings.evaluation.num_views, context.encoder
    num_views, features, rows = tuple(sorted({every[0], every[-1]})), [], []
    for split, stream in STREAMS.items():
        encode = encoder.pixels
        if name == "untrained":
            encode = functools.partial(encoder.features, context.untrained)
        x = context.examples(split).x
        features.append(encode(x, num_views=num_views, stream=stream))
    for views, h, h_test in zip(num_views, *features, strict=True):
        values = context.fit_and_score(h, h_test).values
        rows += rows_of(overall(values), views=views, encoder=name)
    return rows


def _baseline(context: Context, name: str, split: str) -> np.ndarray:
    """Returns the features of plain images for a baseline, `[N, D]`."""
    x = context.examples(split).x
    if name == "pixels":
        pixels = jax.tree.leaves(take(x, np.arange(len(x))))[0]
        values = pixels.reshape(len(x), -1).astype(np.float32)
        return np.divide(values, 255, out=values)
    return context.encoder.plain(context.untrained, x)


def _plain(
    context: Context, h: np.ndarray, h_test: np.ndarray, encoder: str | None = None
) -> list[Row]:
    """Returns linear and kNN results on the features of plain images."""
    values, settings = context.fit_and_score(h, h_test).values, context.settings
    on_host = (h, context.y("train"), h_test, context.y("test"))
    is_large = h.nbytes > MOST_BYTES
    arrays = on_host if is_large else tuple(map(jnp.asarray, on_host))
    block_size = _BLOCK if is_large else None
    for k in settings.evaluation.neighbors:
        weighted = settings.evaluation.neighbor_temperature
        for name, temperature in (("", weighted), ("_majority", None)):
            accuracy = evaluation.knn_accuracy(
                *arrays, k=k, temperature=temperature, block_size=block_size
            )
            values[f"knn{k}{name}"] = float(accuracy)
    return rows_of(values, views="plain", encoder=encoder)
