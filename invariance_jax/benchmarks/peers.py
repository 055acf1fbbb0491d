"""Training steps in PyTorch, as the released code of Foster et al. (2021) runs them.

What our steps are timed against: views by the renderer that broadcasts over `[points,
B, S, S]`, encoder and projection head, NT-Xent, the penalty by a second backward pass
through the gradient of a random sign projection of n(h), and the optimizer. Settings
are those of `configs/spirograph.py`: `paper` for ResNets and `quick` for the MLP; the
learning rate is constant. PyTorch is imported when a step is made, and uses as many
threads as there are cores.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from invariance_jax.benchmarks.render import broadcast
from invariance_jax.benchmarks.torch_networks import make_encoder, make_head
from invariance_jax.transforms import spirograph

NUM_POINTS = 40
DIRECTIONS = 100
"""Ends alpha' per example, as of the authors; a product with the one gradient each."""

NUISANCE = (2, 5, 6, 7, 8, 9)
"""Columns of `spirograph.PARAMETERS` that alpha holds; the others are the targets."""


class Recipe(NamedTuple):
    """What a configuration says of a step.

    Attributes:
      temperature: of NT-Xent.
      weight: of the penalty.
      example_limit: of the penalty of an example and direction.
      batch_limit: of the mean of the penalty.
      optimizer: makes the update from torch, parameters and batch size.
    """

    temperature: float
    weight: float
    example_limit: float
    batch_limit: float
    optimizer: Callable[[Any, list[Any], int], Callable[[], None]]


def make_torch_step(
    encoder: str,
    *,
    batch_size: int,
    image_size: int = 32,
    penalized: bool,
    device: str = "cpu",
    tuned: bool = False,
    views: Sequence[np.ndarray] | None = None,
) -> Callable[[], float]:
    """Returns a function that trains a network of its own for one step.

    Args:
      encoder: "resnet18", "resnet50" or "mlp".
      batch_size: B.
      image_size: S, pixels per side.
      penalized: whether the loss has the penalty.
      device: of PyTorch, "cpu" or "cuda".
      tuned: whether it may do what the authors did not: channels-last, the encoder in
        bfloat16, and compiled programs where these allow the derivative. For a GPU.
      views: two float32 `[B, S, S, 3]` that stand in for views drawn anew; only where
        the loss has no penalty, which needs their derivative.

    Returns:
      `() -> loss` of the step, from before the update.

    Raises:
      ValueError: if the encoder is unknown, or views are given with the penalty or not
        as two batches of this size.
    """
    if views is not None:
        _check_views(views, (batch_size, image_size, image_size, 3), penalized)
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    if device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    else:
        torch.backends.cudnn.benchmark = True  # as the authors
        torch.set_float32_matmul_precision("high" if tuned else "highest")
    recipe = RECIPES["mlp" if encoder == "mlp" else "resnet"]
    represent = make_encoder(encoder, image_size=image_size, tuned=tuned).to(device)
    head = make_head(represent.features).to(device)
    if tuned:
        represent = represent.to(memory_format=torch.channels_last)
    parameters = [*represent.parameters(), *head.parameters()]
    update = recipe.optimizer(torch, parameters, batch_size)
    given = [torch.from_numpy(np.array(view)).to(device) for view in views or ()]
    loss_of = _make_loss(torch, represent, head, recipe, tuned, penalized)

    def step() -> float:
        with torch.device(device):
            for parameter in parameters:
                parameter.grad = None
            inputs = given or _draw(torch, batch_size, penalized)
            loss = loss_of(inputs, image_size)
            loss.backward()
            update()
            return float(loss.detach())

    return step


def nt_xent(torch: Any, z1: Any, z2: Any, temperature: float) -> Any:
    """Returns the contrastive loss, the mean over all anchors.

    Args:
      torch: the module.
      z1: `[B, D]`, projections of the first views.
      z2: `[B, D]`, those of the second views.
      temperature: positive.
    """
    z = torch.nn.functional.normalize(torch.cat([z1, z2]).float(), dim=1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    positive = torch.arange(len(z), device=z.device).roll(len(z1))
    return torch.nn.functional.cross_entropy(logits, positive)


def penalty(torch: Any, h: Any, alpha: Any, others: Any) -> Any:
    """Returns the squared change of a sign projection of n(h), by its gradient.

    Args:
      torch: the module.
      h: `[B, D]`, computed from alpha.
      alpha: `[B, P]`, a leaf that requires its gradient.
      others: `[K, B, P]`, the other ends.

    Returns:
      `[K, B]`, with a graph for the second backward pass.
    """
    normalized = torch.nn.functional.normalize(h.float(), dim=1)
    signs = 2 * torch.randint_like(normalized, 2) - 1
    projection = (signs * normalized).sum()
    (gradient,) = torch.autograd.grad(projection, alpha, create_graph=True)
    return (gradient * (others - alpha.detach())).sum(-1) ** 2


def _make_loss(
    torch: Any, encoder: Any, head: Any, recipe: Recipe, tuned: bool, penalized: bool
) -> Callable[[list[Any], int], Any]:
    """Returns `(two views or draws, image size) -> loss`."""
    # A compiled function has no second derivative: the penalized view is not compiled.
    compiled = _compile(torch, encoder) if tuned else encoder
    encoders = encoder if penalized else compiled, compiled
    render = _compile(torch, _render) if tuned else _render
    renderers = _render if penalized else render, render

    def loss_of(inputs: list[Any], image_size: int) -> Any:
        if not isinstance(inputs[0], Draw):
            one, two = (apply(x) for apply, x in zip(encoders, inputs, strict=True))
            return nt_xent(torch, head(one), head(two), recipe.temperature)
        inputs[0].alpha.requires_grad_(penalized)
        one, two = (
            encoder(render(torch, draw.x, draw.alpha, image_size))
            for encoder, render, draw in zip(encoders, renderers, inputs, strict=True)
        )
        loss = nt_xent(torch, head(one), head(two), recipe.temperature)
        if not penalized:
            return loss
        terms = penalty(torch, one, inputs[0].alpha, inputs[0].others)
        limited = terms.clamp(max=recipe.example_limit).mean()
        return loss + recipe.weight * limited.clamp(max=recipe.batch_limit)

    return loss_of


class Draw(NamedTuple):
    """The random numbers of a view.

    Attributes:
      x: `[B, 4]`, the targets, the same for both views.
      alpha: `[B, 6]`, the nuisance.
      others: `[K, B, 6]`, the other ends of the directions; None where none is taken.
    """

    x: Any
    alpha: Any
    others: Any


def _draw(torch: Any, batch_size: int, penalized: bool) -> list[Draw]:
    low, high = torch.tensor(spirograph.BOUNDS.T, dtype=torch.float32)
    targets = [i for i in range(len(low)) if i not in NUISANCE]

    def uniform(columns: Sequence[int], *shape: int) -> Any:
        lower, upper = low[list(columns)], high[list(columns)]
        return lower + (upper - lower) * torch.rand(*shape, len(lower))

    x = uniform(targets, batch_size)
    others = uniform(NUISANCE, DIRECTIONS, batch_size) if penalized else None
    one, two = (uniform(NUISANCE, batch_size) for _ in range(2))
    return [Draw(x, one, others), Draw(x, two, None)]


def _render(torch: Any, x: Any, alpha: Any, image_size: int) -> Any:
    parameters = torch.cat([x[:, :2], alpha[:, :1], x[:, 2:], alpha[:, 1:]], dim=1)
    return broadcast(torch, parameters, image_size, NUM_POINTS)


def _compile(torch: Any, function: Any) -> Any:
    """Returns a function compiled; what cannot be compiled runs as it is."""
    importlib.import_module("torch._dynamo").config.suppress_errors = True
    return torch.compile(function)


def _lars(torch: Any, parameters: list[Any], batch_size: int) -> Callable[[], None]:
    """Returns the update of LARS in the authors' variant, over every parameter."""
    trust, decay, momentum = 1e-3, 1e-6, 0.9
    rate = 1.5 * batch_size / 256 / 10  # of the first epoch
    moments = [torch.zeros_like(parameter) for parameter in parameters]

    def update() -> None:
        gradients = [parameter.grad for parameter in parameters]
        norms = map(torch._foreach_norm, (parameters, gradients))
        p, g = map(torch.stack, norms)
        ratios = torch.where((p > 0) & (g > 0), trust * p / (g + decay * p + 1e-8), 1)
        scaled = torch._foreach_add(gradients, parameters, alpha=decay)
        torch._foreach_mul_(scaled, ratios.unbind())
        torch._foreach_mul_(moments, momentum)
        torch._foreach_add_(moments, scaled)
        torch._foreach_add_(parameters, moments, alpha=-rate)

    return torch.no_grad()(update)


def _adamw(torch: Any, parameters: list[Any], batch_size: int) -> Callable[[], None]:
    rate = 2e-3 * batch_size / 256
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-6).step


RECIPES = {
    "resnet": Recipe(0.5, 0.01, float("inf"), 1000.0, _lars),
    "mlp": Recipe(0.2, 0.3, 0.5, float("inf"), _adamw),
}
"""Kind of encoder -> its configuration."""


def _check_views(
    views: Sequence[np.ndarray], shape: tuple[int, ...], penalized: bool
) -> None:
    if penalized:
        raise ValueError("views are given; expected none, since penalized is True.")
    shapes = [np.shape(view) for view in views]
    if shapes != [shape, shape]:
        raise ValueError(f"views have shapes {shapes}; expected two of {shape}.")
