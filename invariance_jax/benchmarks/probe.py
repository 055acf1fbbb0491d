"""Probes and feature averaging against the authors' evaluation, in PyTorch.

Their probe is 500 steps of full-batch L-BFGS with PyTorch's defaults, as in their
released code; here it starts from zero. Our ridge regression is exact, in float64.
Their sweep over the number M of averaged views encodes new views for each M.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.benchmarks import peers
from invariance_jax.benchmarks.timing import Options, Row
from invariance_jax.evaluation import average_features, fit_logistic, fit_ridge
from invariance_jax.evaluation.probes import LinearProbe
from invariance_jax.models import create_encoder
from invariance_jax.transforms import spirograph
from invariance_jax.types import Array, PyTree

L2 = {"ridge": 1e-8, "logistic": 1e-5}  # the paper's
NUM_VIEWS = (1, 2, 3, 4, 5, 10, 20, 30)  # M in the paper's Spirograph sweep


def time_probe(
    options: Options,
    *,
    examples: int = 20_000,
    features: int = 512,
    steps: int = 500,
    averaged: int = 256,
) -> Iterator[Row]:
    """Yields the peer over ours, for both probes and a sweep of feature averages."""
    options = options.at_most(3)
    h, targets, labels = make_features(examples, features)
    for kind, y in (("ridge", targets), ("logistic", labels)):
        fit_peer = peers.make_probe(h, y, l2=L2[kind], steps=steps)
        fit_ours = functools.partial(fit, kind, *jax.device_put((h, y)))
        peer, ours = (objective(kind, call(), h, y) for call in (fit_peer, fit_ours))
        if not ours <= peer * (1 + 1e-6):
            raise ValueError(
                f"the objective of our {kind} probe is {ours}; expected at most that "
                f"of the peer, {peer}."
            )
        first = f"PyTorch, objective {peer:.7g}", fit_peer
        second = f"ours, objective {ours:.7g}", fit_ours
        case = f"{kind} regression on {examples} x {features}"
        yield options.versus(case, first, second, "target 20")
    x = peers.draw_parameters(averaged)[:, peers.TARGETS]
    case = f"features of {averaged} examples over up to {NUM_VIEWS[-1]} views"
    first = "PyTorch, each M anew", peers.make_averages(x, NUM_VIEWS)
    yield options.versus(case, first, ("ours, one pass", make_averages(x)), "target 20")


def make_features(
    examples: int, features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns h like that of an encoder that ends in a ReLU, targets, and labels.

    h is float32 `[N, D]`, made from noise and latent variables whose variance falls as
    1 / k. The targets are float32 `[N, 4]`, the labels int32 `[N]` of 10 classes.
    """
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(examples, 64)) / np.sqrt(np.arange(1, 65))
    mixed = latent @ generator.normal(size=(64, features))
    h = np.maximum(mixed + 0.3 * generator.normal(size=mixed.shape), 0)
    targets = np.tanh(latent[:, :4])
    scores = latent @ generator.normal(size=(64, 10))
    labels = np.argmax(scores + generator.gumbel(size=scores.shape), axis=1)
    return h.astype(np.float32), targets.astype(np.float32), labels.astype(np.int32)


def fit(kind: str, h: Array, y: Array) -> LinearProbe:
    """Returns our fitted probe; `kind` is "ridge" or "logistic"."""
    if kind == "logistic":
        return fit_logistic(h, y, num_classes=int(y.max()) + 1, l2=L2[kind])
    with jax.enable_x64(True):
        return fit_ridge(*(a.astype(jnp.float64) for a in (h, y)), l2=L2[kind])


def objective(
    kind: str, probe: tuple[Any, Any] | LinearProbe, h: np.ndarray, y: np.ndarray
) -> float:
    """Returns the mean squared error or cross-entropy plus the L2 term, in float64."""
    kernel, bias = (np.asarray(part, np.float64) for part in probe)
    outputs = h.astype(np.float64) @ kernel + bias
    if kind == "ridge":
        error = np.mean(np.square(outputs - y))
    else:
        partition = np.logaddexp.reduce(outputs, axis=1)
        error = np.mean(partition - outputs[np.arange(len(y)), y])
    return float(error + L2[kind] * np.sum(np.square(kernel)))


def make_averages(x: np.ndarray) -> Callable[[], Array]:
    """Returns `() -> [len(NUM_VIEWS), B, 512]`, mean features of an untrained MLP."""
    transformation = spirograph.make_transformation()
    encoder = create_encoder("mlp", final="norm_relu")
    image = jnp.zeros((1, 32, 32, 3))
    variables = encoder.init(jax.random.key(0), image, train=False)

    @jax.jit
    def sweep(variables: PyTree, x: Array) -> Array:
        def encode(images: Array) -> Array:
            return jnp.asarray(encoder.apply(variables, images, train=False))

        key = jax.random.key(1)
        return average_features(key, encode, transformation, x, num_views=NUM_VIEWS)

    inputs = jax.device_put((variables, x))
    return lambda: sweep(*inputs)
