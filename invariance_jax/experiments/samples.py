"""Samples for the report: views, predictions, a 2-D projection and neighbours."""

import io

import jax
import numpy as np

from invariance_jax import evaluation
from invariance_jax.data import take
from invariance_jax.experiments.context import STREAMS, Context
from invariance_jax.runtime.files import write_bytes
from invariance_jax.runtime.processes import is_main_process
from invariance_jax.types import Array, Key, PyTree

_ROWS, _VIEWS = 4, 10  # examples whose views are shown, and views of each
_QUERIES, _NEIGHBORS = 10, 7  # examples whose neighbours are shown, and their number
_EXAMPLES = 2000  # at most, for predictions, projection and neighbours


def write(context: Context, *, predictions: bool) -> None:
    """Writes `samples.npz` into the work directory; every process calls it."""
    arrays: dict[str, PyTree] = _views(context) | _neighbors(context)
    arrays |= _projection(context) | (_predictions(context) if predictions else {})
    if is_main_process():
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_bytes(context.workdir / "samples.npz", content.getvalue())


def _views(context: Context) -> dict[str, np.ndarray]:
    """Returns views of the first examples, and their plain images if there are any."""
    transformation, x = context.parts.transformation, context.test.x[:_ROWS]
    rows = take(x, np.repeat(np.arange(len(x)), _VIEWS))

    @jax.jit
    def draw(key: Key, rows: PyTree) -> Array:
        return transformation.apply(rows, transformation.draw(key, rows))

    key = jax.random.key(context.settings.evaluation.seed)
    images = context.task.displayed(draw(key, rows))
    arrays = {"views": images.reshape(-1, _VIEWS, *images.shape[1:])}
    if context.is_plain:
        arrays["plain"] = _pictures(context, np.arange(len(x)))
    return arrays


def _predictions(context: Context) -> dict[str, np.ndarray]:
    """Returns true and predicted targets, or the counts of a confusion matrix."""
    families, y = context.settings.evaluation.families, context.y("test")
    family = "all" if "all" in families else families[0]
    single, averaged = (context.scored(n, family).predictions for n in (0, -1))
    if context.task.targets:
        arrays = {"true": y, "predicted": averaged, "predicted_single": single}
        return {name: values[:_EXAMPLES] for name, values in arrays.items()}
    classes = averaged.shape[1]
    pairs = y * classes + averaged.argmax(axis=1)
    counts = np.bincount(pairs, minlength=classes**2)
    return {"confusion": counts.reshape(classes, classes)}


def _shown_features(context: Context) -> np.ndarray:
    """Returns h of plain images, or averaged over the smallest M, `[N, D]`."""
    h = context.plain("test") if context.is_plain else context.features("test")[0]
    return h[:_EXAMPLES]


def _projection(context: Context) -> dict[str, np.ndarray]:
    """Returns the first two principal components of the features."""
    h = _shown_features(context).astype(np.float64)
    points, shares = (a.astype(np.float32) for a in principal_components(h))
    arrays = {"projection": points, "projection_explained": shares}
    if context.test.y is not None:
        name = "targets" if context.task.targets else "labels"
        arrays[f"projection_{name}"] = context.test.y[: len(h)]
    return arrays


def principal_components(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two principal components, `[N, 2]`, and their shares of the variance."""
    # A zero row and column: then one feature or example has two components too.
    centred = np.pad(h - h.mean(axis=0), ((0, 1), (0, 1)))
    left, scale, right = np.linalg.svd(centred, full_matrices=False)
    # The sign of a component is free: its largest loading is positive.
    largest = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)
    points = left * scale * np.where(largest[:, 0] < 0, -1, 1)
    total = np.square(scale).sum()
    shares = np.square(scale) / total if total > 0 else np.zeros_like(scale)
    return points[: len(h), :2], shares[:2]


def _neighbors(context: Context) -> dict[str, np.ndarray]:
    """Returns images of the first examples and of their nearest neighbours."""
    h = _shown_features(context)
    rows = nearest(h, queries=_QUERIES, count=_NEIGHBORS)
    images = _pictures(context, rows.reshape(-1))
    arrays = {"neighbors": images.reshape(*rows.shape, *images.shape[1:])}
    if context.test.y is not None and context.task.classes:
        arrays["neighbor_labels"] = context.test.y[rows]
    return arrays


def nearest(h: np.ndarray, *, queries: int, count: int) -> np.ndarray:
    """Returns the indices of the rows of h with the largest cosine similarity.

    They are int `[queries, 1 + count]`, for the first rows of h: the row itself, then
    its nearest rows, the nearest first.
    """
    norm = np.linalg.norm(h, axis=1, keepdims=True)
    unit = h / np.where(norm > 0, norm, 1)
    similarity = unit[:queries] @ unit.T
    own = np.arange(len(similarity))
    similarity[own, own] = np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, : 1 + count]


def _pictures(context: Context, rows: np.ndarray) -> np.ndarray:
    """Returns plain images; without these, the first view that is evaluated."""
    transformation = context.parts.transformation
    key = context.encoder.key(STREAMS["test"])

    @jax.jit
    def draw(x: PyTree, indices: Array) -> Array:
        if transformation.plain is not None:
            return transformation.plain(x)
        view = evaluation.sample_view(key, transformation, indices, view=0, x=x)
        return transformation.apply(x, view)

    x = take(context.test.x, rows)
    return context.task.displayed(draw(x, rows.astype(np.int32)))
