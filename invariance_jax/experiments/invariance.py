"""Invariance: how much of the variance of a representation views of an example make.

Foster, Pukdee, Rainforth (ICLR 2021), section 3, penalize an estimate of it. Names in
the summary: `variance.within`, `variance.total`, `variance.normalized`, of n(h) over
views of the same example, with `.FAMILY` where a part of the transformation is drawn.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from invariance_jax import evaluation
from invariance_jax.experiments.subject import TEST, Measured, Row, Subject, Value
from invariance_jax.numerics import l2_normalize, safe_divide
from invariance_jax.runs.checkpoints import Checkpoints
from invariance_jax.training.components import make_transformation
from invariance_jax.training.frozen import VIEWS_BATCH, encoder_variables
from invariance_jax.training.start import state_shapes
from invariance_jax.transforms import shifts
from invariance_jax.types import Array

_OF = {"n(h)": l2_normalize, "h": lambda h: h}

_Views = Callable[[Any], Array]


def run(subject: Subject) -> Measured:
    """Returns the variance over views, by parameter and by checkpoint.

    Table "parameters": the whole transformation, "all", and each parameter alone drawn
    anew for every view while the others, and what is held, keep one draw per example.
    Both are divided by the total variance of the whole transformation. The total under
    one parameter alone has the same expectation, as its views have the same law, but
    more noise, as it sees one draw of the rest per example; and with one denominator
    the parameters can be compared. "paired" is the same variance from the change
    between two views, of which the penalty takes the first-order term.

    Table "checkpoints": the whole transformation, of each checkpoint that is kept.

    Args:
      subject: the encoder and its examples.

    Returns:
      Values for the summary, and rows of n(h) and of h: within, total and normalized.
    """
    views = _map_views(subject)
    rows = [*_by_parameter(subject, views), *_by_step(subject, views)]
    return Measured(values(subject), rows)


def values(subject: Subject) -> dict[str, float]:
    """Returns within, total and normalized variance of n(h) of each family of views.

    Args:
      subject: the encoder and its examples.

    Returns:
      Name in the summary -> number.
    """
    found: dict[str, float] = {}
    for family in dict.fromkeys(("all", *subject.settings.evaluation.families)):
        variance = subject.encoder.variance(
            subject.variables, _examples(subject), stream=TEST, family=family
        )
        part = "" if family == "all" else f".{family}"
        found |= {f"variance.{n}{part}": v for n, v in _numbers(variance).items()}
    return found


def _by_parameter(subject: Subject, views: _Views) -> Iterator[Row]:
    whole = views(subject.variables)
    totals = {}
    for of, normalize in _OF.items():
        h = normalize(whole)
        variance = evaluation.invariance(h)
        totals[of] = variance.total
        paired = {"paired": float(evaluation.paired_change(h))}
        yield Row(_at("all", of), _numbers(variance) | paired)
    names = make_transformation(subject.settings).names
    redrawn = _map_redrawn(subject)
    for name, chosen in zip(names, np.eye(len(names), dtype=bool), strict=True):
        part = redrawn((subject.variables, chosen))
        for of, normalize in _OF.items():
            within, total = evaluation.invariance(normalize(part)).within, totals[of]
            ratio = safe_divide(within, total)
            yield Row(
                _at(name, of), _numbers(evaluation.Variance(within, total, ratio))
            )


def _by_step(subject: Subject, views: _Views) -> Iterator[Row]:
    for step, variables in _checkpoints(subject):
        h = views(variables)
        for of, normalize in _OF.items():
            at: dict[str, Value] = {"table": "checkpoints", "step": step, "of": of}
            yield Row(at, _numbers(evaluation.invariance(normalize(h))))


def _checkpoints(subject: Subject) -> Iterator[tuple[int, Any]]:
    """Yields the step and the encoder of each checkpoint; given weights have step 0."""
    checkpoints = Checkpoints(subject.workdir)
    try:
        like = state_shapes(subject.settings)
        for step in checkpoints.steps():
            yield step, encoder_variables(checkpoints.restore(like, step=step))
        if not checkpoints.steps():
            yield 0, subject.variables
    finally:
        checkpoints.close()


def _map_views(subject: Subject) -> _Views:
    """Returns the function from variables to h `[M, N, D]`."""
    encoder, transformation = subject.encoder, make_transformation(subject.settings)

    def views(variables: Any, x: Array, indices: Array, stream: Array) -> Array:
        return evaluation.encode_views(
            encoder.key(stream),
            functools.partial(encoder.encode, variables),
            transformation,
            x,
            num_views=subject.settings.evaluation.variance_views,
            indices=indices,
        )

    return _over_examples(subject, views)


def _map_redrawn(subject: Subject) -> _Views:
    """Returns the function from variables and chosen columns of alpha to h."""
    encoder, transformation = subject.encoder, make_transformation(subject.settings)
    count = subject.settings.evaluation.variance_views

    def views(parts: Any, x: Array, indices: Array, stream: Array) -> Array:
        variables, chosen = parts
        key = encoder.key(stream)
        # Not one of the views, so that these are alike.
        kept = evaluation.sample_view(key, transformation, indices, view=count)
        return evaluation.encode_views(
            key,
            functools.partial(encoder.encode, variables),
            shifts.redraw(transformation, chosen),
            (x, kept),
            num_views=count,
            indices=indices,
        )

    return _over_examples(subject, views)


def _over_examples(subject: Subject, views: Callable[..., Array]) -> _Views:
    mapped = subject.encoder.map(views, axis=1, batch_size=VIEWS_BATCH)
    x = _examples(subject)
    return lambda variables: jnp.asarray(mapped(variables, x, TEST))


def _examples(subject: Subject) -> np.ndarray:
    return subject.test.x[: subject.settings.evaluation.variance_examples]


def _numbers(variance: evaluation.Variance) -> dict[str, float]:
    return {name: float(value) for name, value in variance._asdict().items()}


def _at(parameter: str, of: str) -> dict[str, Value]:
    return {"table": "parameters", "parameter": parameter, "of": of}
