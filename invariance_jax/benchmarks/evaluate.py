"""Probes and feature averaging against the authors' way of evaluating, in PyTorch.

Their probe is 500 steps of full-batch L-BFGS with PyTorch's defaults, as in their
released code: up to 20 iterations a step, fewer near the minimum, and no line search;
here from zero. Ours are the exact ridge regression in float64 and Newton's method
for the logistic one. Their sweep over the number of averaged views encodes the views of
each M anew, with the broadcasting renderer; ours is one pass of running means.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invariance_jax.benchmarks.render import broadcast
from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.evaluation import average_features, fit_logistic, fit_ridge
from invariance_jax.evaluation.probes import LinearProbe
from invariance_jax.models import create_encoder
from invariance_jax.transforms import spirograph
from invariance_jax.types import Array

L2 = {"ridge": 1e-8, "logistic": 1e-5}
"""Weight of the penalty on the kernel, the paper's."""

NUM_VIEWS = (1, 2, 3, 4, 5, 10, 20, 30)
"""The numbers of averaged views of the paper's Spirograph sweep."""

_EPSILON = 1e-5  # of BatchNorm


def run(
    *,
    examples: int,
    features: int,
    steps: int,
    averaged_examples: int,
    repeats: int,
    min_seconds: float,
) -> list[Comparison]:
    """Returns the times of both probes and of a sweep of averages against the peer's.

    Args:
      examples: N, rows of the features that probes are fitted on.
      features: D.
      steps: of the peer's L-BFGS.
      averaged_examples: examples whose features are averaged.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Returns:
      A comparison for each; those of the probes tell both objectives reached.

    Raises:
      ValueError: if our objective is larger than the peer's, or the peer computes
        other features.
      ModuleNotFoundError: if PyTorch is not installed.
    """
    settings = {"repeats": repeats, "min_seconds": min_seconds}
    h, targets, labels = make_features(examples, features)
    results = [
        _probe("ridge", h, targets, steps, settings),
        _probe("logistic", h, labels, steps, settings),
    ]
    ours, peer = averaging(averaged_examples)
    times = alternate(ours, peer, **settings)
    name = f"average {averaged_examples}"
    results.append(Comparison(name, "one pass", "torch, cpu", *times, True))
    return [replace(result, expected="at least 20") for result in results]


def make_features(
    examples: int, features: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features like those of an encoder that ends in a ReLU, and what to fit.

    Args:
      examples: N.
      features: D.

    Returns:
      h float32 `[N, D]`, of latent variables whose variance falls as 1 / k and noise;
      4 regression targets float32 `[N, 4]`; labels of 10 classes int32 `[N]`.
    """
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(examples, 64)) / np.sqrt(np.arange(1, 65))
    mixed = latent @ generator.normal(size=(64, features))
    h = np.maximum(mixed + 0.3 * generator.normal(size=mixed.shape), 0)
    targets = np.tanh(latent[:, :4])
    scores = latent @ generator.normal(size=(64, 10))
    labels = np.argmax(scores + generator.gumbel(size=scores.shape), axis=1)
    return h.astype(np.float32), targets.astype(np.float32), labels.astype(np.int32)


def _probe(
    kind: str, h: np.ndarray, y: np.ndarray, steps: int, settings: dict[str, Any]
) -> Comparison:
    """Returns the comparison of one kind of probe, of equal or lower objective."""
    ours = _fit_ridge(h, y) if kind == "ridge" else _fit_logistic(h, y)
    peer = torch_probe(kind, h, y, steps=steps)
    reached = [
        objective(kind, np.asarray(p[0]), np.asarray(p[1]), h, y)
        for p in (ours(), peer())
    ]
    if not reached[0] <= reached[1] * (1 + 1e-6):
        raise ValueError(
            f"the objective of our {kind} probe is {reached[0]}; expected at most that "
            f"of the peer, {reached[1]}."
        )
    texts = [f"objective {value:.7g}" for value in reached]
    peer_text = f"torch, cpu, {steps} steps, {texts[1]}"
    times = alternate(ours, peer, **settings)
    return Comparison(kind, texts[0], peer_text, *times, True)


def _fit_ridge(h: np.ndarray, y: np.ndarray) -> Callable[[], LinearProbe]:
    def fit() -> LinearProbe:
        with jax.enable_x64(True):
            wide = (jnp.asarray(array).astype(jnp.float64) for array in (h, y))
            return fit_ridge(*wide, l2=L2["ridge"])

    return fit


def _fit_logistic(h: np.ndarray, labels: np.ndarray) -> Callable[[], LinearProbe]:
    classes = int(labels.max()) + 1
    arrays = jnp.asarray(h), jnp.asarray(labels)
    return lambda: fit_logistic(*arrays, num_classes=classes, l2=L2["logistic"])


def objective(
    kind: str, kernel: np.ndarray, bias: np.ndarray, h: np.ndarray, y: np.ndarray
) -> float:
    """Returns the objective of a probe, in float64.

    Args:
      kind: "ridge" or "logistic".
      kernel: `[D, T or C]`.
      bias: `[T or C]`.
      h: features `[N, D]`.
      y: targets `[N, T]`, or labels `[N]`.

    Returns:
      The mean squared error or cross-entropy (nats), plus the penalty.
    """
    kernel = kernel.astype(np.float64)
    outputs = h.astype(np.float64) @ kernel + bias
    if kind == "ridge":
        error = np.mean(np.square(outputs - y))
    else:
        partition = np.logaddexp.reduce(outputs, axis=1)
        error = np.mean(partition - outputs[np.arange(len(y)), y])
    return float(error + L2[kind] * np.sum(np.square(kernel)))


def torch_probe(
    kind: str, h: np.ndarray, y: np.ndarray, *, steps: int
) -> Callable[[], tuple[Any, Any]]:
    """Returns a function that fits a probe with PyTorch's L-BFGS, on the CPU.

    Args:
      kind: "ridge" or "logistic".
      h: features float32 `[N, D]`.
      y: targets float32 `[N, T]`, or labels `[N]`.
      steps: of L-BFGS.

    Returns:
      `() -> (kernel [D, T or C], bias [T or C])`.
    """
    torch = importlib.import_module("torch")
    features = torch.from_numpy(h.copy())
    wanted = torch.from_numpy(y.copy()).to(torch.float32 if y.ndim > 1 else torch.int64)
    outputs = y.shape[1] if y.ndim > 1 else int(y.max()) + 1

    def fit() -> tuple[Any, Any]:
        kernel = torch.zeros(h.shape[1], outputs, requires_grad=True)
        bias = torch.zeros(outputs, requires_grad=True)
        optimizer = torch.optim.LBFGS([kernel, bias])

        def closure() -> Any:
            optimizer.zero_grad()
            found = torch.addmm(bias, features, kernel)
            if kind == "ridge":
                error = torch.mean(torch.square(found - wanted))
            else:
                error = torch.nn.functional.cross_entropy(found, wanted)
            loss = error + L2[kind] * torch.sum(torch.square(kernel))
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)
        return kernel.detach(), bias.detach()

    return fit


def averaging(examples: int) -> tuple[Callable[[], Array], Callable[[], Any]]:
    """Returns our sweep over the number of averaged views, and the peer's.

    Both encode Spirograph views with the untrained MLP of `quick`, the same weights.

    Args:
      examples: B.

    Returns:
      Two functions of nothing, each `() -> [len(NUM_VIEWS), B, 512]`.

    Raises:
      ValueError: if the peer's features of the same view are others.
    """
    transformation = spirograph.make_transformation()
    low, high = spirograph.BOUNDS[[0, 1, 3, 4]].T
    generator = np.random.default_rng(0)
    x = generator.uniform(low, high, (examples, 4)).astype(np.float32)
    encoder = create_encoder("mlp", final="norm_relu")
    view = transformation.sample(jax.random.key(1), examples)
    images = transformation.apply(x, view)
    variables = encoder.init(jax.random.key(0), images[:2], train=False)

    @jax.jit
    def sweep(variables: Any, x: Array) -> Array:
        def encode(images: Array) -> Array:
            return encoder.apply(variables, images, train=False)

        key = jax.random.key(2)
        return average_features(key, encode, transformation, x, num_views=NUM_VIEWS)

    encode, peer = torch_averaging(variables, x)
    expected = encoder.apply(variables, images, train=False)
    difference = np.abs(np.asarray(encode(np.array(view.alpha))) - expected).max()
    if not difference <= 1e-3 * np.abs(expected).max():
        raise ValueError(f"the features of the peer differ from ours by {difference}.")
    on_device = jax.device_put((variables, x))
    return lambda: sweep(*on_device), peer


def torch_averaging(
    variables: Any, x: np.ndarray
) -> tuple[Callable[[np.ndarray], Any], Callable[[], Any]]:
    """Returns the peer's encoder of one view, and its sweep over numbers of views.

    Args:
      variables: of the MLP.
      x: float32 `[B, 4]`, m, b, sigma and rfore.

    Returns:
      `alpha [B, 6] -> [B, D]`, and `() -> [len(NUM_VIEWS), B, D]`, which draws.
    """
    torch = importlib.import_module("torch")
    weights = jax.tree.map(lambda leaf: torch.from_numpy(np.array(leaf)), variables)
    params, stats = weights["params"], weights["batch_stats"]
    examples = torch.from_numpy(x.copy())
    names = (
        "m",
        "b",
        "sigma",
        "rfore",
        "h",
        "rback",
        "gfore",
        "gback",
        "bfore",
        "bback",
    )
    order = [names.index(name) for name in spirograph.PARAMETERS]
    low, high = torch.tensor(
        spirograph.BOUNDS[[2, 5, 6, 7, 8, 9]].T, dtype=torch.float32
    )

    def encode(alpha: Any) -> Any:
        with torch.inference_mode():
            alpha = torch.as_tensor(alpha)
            parameters = torch.cat([examples, alpha], dim=1)[:, order]
            h = broadcast(torch, parameters, 32, 40).reshape(len(x), -1)
            for layer in (1, 2, 3):
                norm, moments = params[f"bn{layer}"], stats[f"bn{layer}"]
                h = h @ params[f"dense{layer}"]["kernel"]
                h = (h - moments["mean"]) * torch.rsqrt(moments["var"] + _EPSILON)
                h = torch.relu(h * norm["scale"] + norm["bias"])
            return h

    def sweep() -> Any:
        means = []
        for count in NUM_VIEWS:
            draws = (torch.rand(len(x), 6) * (high - low) + low for _ in range(count))
            means.append(sum(encode(alpha) for alpha in draws) / count)
        return torch.stack(means)

    return encode, sweep
