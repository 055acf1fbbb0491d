"""A training step against that of PyTorch, plain and with the invariance penalty.

Ours is the step of a real run, as in `benchmarks.penalty`; the peer that of
`benchmarks.peers`, with the same settings. Both draw their own views, which is a part
of a step. Before anything is timed, the encoders are compared: the same weights and
images, in training mode.
"""

import importlib
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from invariance_jax.benchmarks.peers import RECIPES, make_torch_step
from invariance_jax.benchmarks.penalty import check_finite, make_steps
from invariance_jax.benchmarks.render import draw_parameters
from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.benchmarks.torch_networks import make_encoder
from invariance_jax.models import create_encoder, weights
from invariance_jax.training.components import make_networks
from invariance_jax.training.settings import resolve
from invariance_jax.transforms import spirograph

BATCH_SIZES = {"resnet18": 64, "mlp": 256}
"""Encoder -> examples per step."""

TOLERANCE = 1e-3
"""Largest difference of two representations, as a share of the largest feature."""


def run(config: ConfigDict, *, repeats: int, min_seconds: float) -> list[Comparison]:
    """Returns the times of our training steps against the peer's.

    Args:
      config: a configuration of Spirograph with the keys of `configs/base.py`; what a
        recipe of the peer says is replaced.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Returns:
      A comparison for each encoder, without and with the penalty, in seconds per step;
      none where PyTorch is not installed.

    Raises:
      ValueError: if an encoder of the peer computes another representation, or the
        configuration is invalid.
      FloatingPointError: if a loss stops being finite.
    """
    if importlib.util.find_spec("torch") is None:
        return []
    results = []
    for encoder, batch_size in BATCH_SIZES.items():
        check_equal(encoder)
        for penalized in (False, True):
            own = make_config(
                config, encoder, batch_size=batch_size, penalized=penalized
            )
            steps = make_steps(own, 1)
            peer = make_torch_step(encoder, batch_size=batch_size, penalized=penalized)
            times = alternate(steps, peer, repeats=repeats, min_seconds=min_seconds)
            check_finite(steps())
            results.append(
                Comparison(
                    f"step, {encoder}",
                    "penalized" if penalized else "plain",
                    "torch, cpu",
                    *times,
                    True,
                    "at least 1" if encoder != "mlp" else "",
                    flops=step_flops(own),
                )
            )
    return results


def make_config(
    config: ConfigDict, encoder: str, *, batch_size: int, penalized: bool
) -> ConfigDict:
    """Returns a configuration of the step that the peer takes.

    Args:
      config: a configuration of Spirograph with the keys of `configs/base.py`.
      encoder: "resnet18", "resnet50" or "mlp".
      batch_size: B.
      penalized: whether the loss has the penalty.
    """
    own = ConfigDict(config.to_dict())
    is_mlp = encoder == "mlp"
    recipe = RECIPES["mlp" if is_mlp else "resnet"]
    own.batch_size, own.temperature = batch_size, recipe.temperature
    own.encoder.name, own.encoder.stem = encoder, "cifar"
    own.encoder.width, own.encoder.depth, own.encoder.final = 512, 3, "norm_relu"
    own.penalty.weight = recipe.weight if penalized else 0.0
    with own.ignore_type():
        for name in ("example_limit", "batch_limit"):
            limit = getattr(recipe, name)
            own.penalty[name] = limit if np.isfinite(limit) else None
    own.optimizer.name = "adamw" if is_mlp else "lars"
    own.optimizer.schedule = "warmup_cosine" if is_mlp else "paper"
    own.optimizer.learning_rate = 2e-3 if is_mlp else 1.5
    return own


def check_equal(encoder: str, *, batch_size: int = 8) -> None:
    """Checks that the peer's encoder, with our weights, computes our representation.

    Args:
      encoder: "resnet18", "resnet50" or "mlp".
      batch_size: images that are compared, in training mode.

    Raises:
      ValueError: if a feature differs by more than `TOLERANCE`.
    """
    torch = importlib.import_module("torch")
    images = spirograph.render(jnp.asarray(draw_parameters(batch_size)))
    module = _our_encoder(encoder)
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), images)
    ours = jax.jit(partial(module.apply, train=True))(variables, images)
    peer = make_encoder(encoder)
    if encoder == "mlp":
        state = _mlp_state_dict(variables["params"])
    else:
        state = weights.to_torch_state_dict(variables)
    tensors = {name: torch.from_numpy(np.array(a)) for name, a in state.items()}
    peer.load_state_dict(tensors, strict=encoder != "mlp")
    with torch.no_grad():
        theirs = peer(torch.from_numpy(np.array(images))).numpy()
    difference = np.max(np.abs(ours - theirs)) / np.max(np.abs(ours))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the {encoder} of torch differs from ours by {difference:.2g} of the "
            f"largest feature; expected at most {TOLERANCE}."
        )


def _our_encoder(name: str) -> Any:
    return create_encoder(name, width=512, depth=3, final="norm_relu")


def _mlp_state_dict(params: Any) -> dict[str, np.ndarray]:
    state = {}
    for layer, leaves in params.items():
        for name, leaf in leaves.items():
            state[f"{layer}.{'bias' if name == 'bias' else 'weight'}"] = leaf.T
    return state


def step_flops(config: ConfigDict) -> float:
    """Returns the operations of the products that a step needs in encoder and head.

    With f for a forward pass and g for its first layer, a view needs f, f for the
    gradient of the kernels and f - g for that of the layers' inputs; a penalized one
    twice as much. A multiply-add is two; convolutions count as they are defined.

    Args:
      config: a configuration with the keys of `configs/base.py`.
    """
    settings = resolve(config)
    networks, size = make_networks(settings), settings.data.image_size
    images = jax.ShapeDtypeStruct((settings.batch_size, size, size, 3), jnp.float32)
    h, first, forward = _forward_flops(networks.encoder, images)
    _, _, head = _forward_flops(networks.head, h)
    passes = 3 if settings.penalty.weight > 0 else 2
    return float(passes * (3 * forward - first) + 2 * 3 * head)


def _forward_flops(module: Any, inputs: Any) -> tuple[Any, int, int]:
    """Returns the output's shape, and the operations of the first and all layers."""

    def represent(key: Any, inputs: Any) -> Any:
        return module.init_with_output(key, inputs, train=False)[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    counts = list(_products(jax.make_jaxpr(represent)(key, inputs).jaxpr))
    return jax.eval_shape(represent, key, inputs), counts[0], sum(counts)


def _products(jaxpr: Any) -> Iterator[int]:
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "convolution_of_images"):
            kernel = equation.invars[1].aval  # the last axis is that of the output
            per_output = kernel.size // kernel.shape[-1]
            yield 2 * per_output * equation.outvars[0].aval.size
        for parameter in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from _products(inner)
