"""The peers of the benchmarks: the algorithms of the authors' code, in PyTorch.

Written from the paper, Foster, Pukdee, Rainforth (ICLR 2021): a renderer that
broadcasts over `[points, B, S, S]`, the penalty by a second backward pass, and L-BFGS
for the probes. Steps have the constant learning rate of `configs/spirograph.py`, that
of `paper` for ResNets and of `quick` for the MLP. PyTorch is optional (the extra
`benchmarks`); this module can be imported without it.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from invariance_jax.benchmarks.timing import check_same
from invariance_jax.models import create_encoder
from invariance_jax.models.weights import to_torch_state_dict
from invariance_jax.settings import Config
from invariance_jax.transforms import spirograph

with contextlib.suppress(ModuleNotFoundError):
    import torch
    from torch import Tensor, nn

TARGETS, NUISANCE = (0, 1, 3, 4), (2, 5, 6, 7, 8, 9)
"""Columns of `spirograph.PARAMETERS`: the targets, and those of alpha."""

NUM_POINTS = 40
DIRECTIONS = 100  # alpha' per example, as the authors draw; they share one gradient


def broadcast(xp: ModuleType, parameters: Any, image_size: int, num_points: int) -> Any:
    """Returns the images of parameters `[B, 10]`; `xp` is numpy or torch."""
    m, b, h, sigma = parameters.T[:4]
    angle = xp.linspace(0, 2 * np.pi, num_points, dtype=xp.float32)[:, None]
    inner = angle * ((m - h) / b)
    x = (m - h) * xp.cos(angle) + h * xp.cos(inner)
    y = (m - h) * xp.sin(angle) - h * xp.sin(inner)
    grid = xp.linspace(-6, 6, image_size, dtype=xp.float32)
    across = (grid[:, None] - x[..., None, None]) ** 2
    distance = across + (grid - y[..., None, None]) ** 2
    intensity = xp.exp(-distance / sigma[:, None, None]).mean(0)
    peak = xp.amax(intensity, -1, keepdims=True)
    intensity = (intensity / (peak + 1e-8))[..., None]
    fore = parameters[:, 4::2][:, None, None]
    back = parameters[:, 5::2][:, None, None]
    return intensity * fore + (1 - intensity) * back


def draw_parameters(examples: int, seed: int = 0) -> np.ndarray:
    """Returns parameters float32 `[B, 10]`, uniform within the paper's bounds."""
    generator = np.random.default_rng(seed)
    low, high = spirograph.BOUNDS.T
    return generator.uniform(low, high, (examples, len(low))).astype(np.float32)


def make_render(
    parameters: np.ndarray, direction: np.ndarray | None, *size: int
) -> Callable[[], Any]:
    """Returns `() -> images`, or with a direction `() -> (images, derivatives)`."""

    def render(parameters: Tensor) -> Tensor:
        return broadcast(torch, parameters, *size)

    primal = torch.tensor(parameters)
    if direction is None:
        return torch.no_grad()(lambda: render(primal))
    tangent = torch.tensor(direction)
    return torch.no_grad()(lambda: torch.func.jvp(render, (primal,), (tangent,)))


def make_encoder(name: str, image_size: int) -> nn.Module:
    """Returns the layers of an encoder with 512 features, which `encode` applies."""
    if name == "resnet18":
        return _resnet18()
    layers = [nn.Flatten()]
    for width in (3 * image_size**2, 512, 512):
        dense = nn.Linear(width, 512, bias=False)
        nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
        layers += [dense, nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers)


def _resnet18() -> nn.Module:
    stem = {"conv1": _conv(3, 64, 3), "bn1": nn.BatchNorm2d(64)}
    parts, inputs = {"stem": nn.ModuleDict(stem)}, 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        blocks = []
        for stride in (1 if stage == 1 else 2, 1):
            layers = {
                "conv1": _conv(inputs, width, 3, stride),
                "bn1": nn.BatchNorm2d(width),
                "conv2": _conv(width, width, 3),
                "bn2": nn.BatchNorm2d(width),
            }
            if stride > 1:
                shortcut = _conv(inputs, width, 1, stride), nn.BatchNorm2d(width)
                layers["downsample"] = nn.Sequential(*shortcut)
            blocks.append(nn.ModuleDict(layers))
            inputs = width
        parts[f"layer{stage}"] = nn.ModuleList(blocks)
    return nn.ModuleDict(parts)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def encode(encoder: nn.Module, images: Tensor, *, tuned: bool = False) -> Tensor:
    """Returns h `[B, D]` of images `[B, S, S, 3]`; tuned: channels-last, bfloat16."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=tuned):
        if isinstance(encoder, nn.Sequential):
            return encoder(images).float()
        x = images.permute(0, 3, 1, 2)  # a view, still channels-last in memory
        x = x if tuned else x.contiguous()
        stem, *stages = encoder.values()
        x = stem["bn1"](stem["conv1"](x)).relu()
        for block in (block for stage in stages for block in stage):
            y = block["bn1"](block["conv1"](x)).relu()
            y = block["bn2"](block["conv2"](y))
            x = (y + (block["downsample"](x) if "downsample" in block else x)).relu()
        return x.mean((2, 3)).float()


def check_encoder(name: str, image_size: int) -> None:
    """Raises AssertionError if PyTorch's h differs from ours with the same weights."""
    generator = np.random.default_rng(0)
    images = generator.random((4, image_size, image_size, 3), np.float32)
    ours = functools.partial(create_encoder(name).init_with_output, train=False)
    with jax.default_matmul_precision("highest"):  # for GPUs and TPUs
        expected, variables = jax.jit(ours)(jax.random.key(0), images)
    encoder, weights = make_encoder(name, image_size), to_torch_state_dict(variables)
    encoder.load_state_dict({n: torch.tensor(w) for n, w in weights.items()})
    with torch.inference_mode():
        found = encode(encoder.eval(), torch.tensor(images))
    check_same("representations", found, expected, 1e-3)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Returns the contrastive loss, averaged over all anchors."""
    z = nn.functional.normalize(torch.cat([z1, z2]).float(), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    positive = torch.arange(len(z), device=z.device).roll(len(z1))
    return nn.functional.cross_entropy(logits, positive)


def make_nt_xent_gradient(
    z1: np.ndarray, z2: np.ndarray, temperature: float
) -> Callable[[], Tensor]:
    """Returns `() -> gradient [2, B, D]` of the loss."""
    inputs = [torch.tensor(z, requires_grad=True) for z in (z1, z2)]

    def gradient() -> Tensor:
        loss = nt_xent(inputs[0], inputs[1], temperature)
        return torch.stack(torch.autograd.grad(loss, inputs))

    return gradient


def penalty(h: Tensor, alpha: Tensor, others: Tensor) -> Tensor:
    """Returns the squared first-order changes `[K, B]` of a random sign projection.

    One gradient serves all K draws `others` `[K, B, P]`. alpha is a leaf of the graph.
    """
    normalized = nn.functional.normalize(h.float(), dim=1)
    signs = 2 * torch.randint_like(normalized, 2) - 1
    projection = (signs * normalized).sum()
    (gradient,) = torch.autograd.grad(projection, alpha, create_graph=True)
    return (gradient * (others - alpha.detach())).sum(-1) ** 2


def make_step(
    config: Config, image_size: int, device: str = "cpu"
) -> Callable[[], float]:
    """Returns a function that trains an encoder for one step and returns the loss.

    In bfloat16 it has optimizations for a GPU that the authors did not use:
    channels-last, and compiled programs where these allow the derivative.
    """
    name, batch_size = config.encoder.name, config.batch_size
    weight, tuned = config.penalty.weight, config.precision == "bfloat16"
    per_example = config.penalty.example_limit or torch.inf
    per_batch = config.penalty.batch_limit or torch.inf
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cudnn.benchmark = True  # as the authors
    torch.set_float32_matmul_precision("high" if tuned else "highest")
    encoder = make_encoder(name, image_size).to(device)
    head = _make_head(512).to(device)
    if tuned:
        _tune(encoder)
    parameters = [*encoder.parameters(), *head.parameters()]
    update = _lars(parameters, batch_size)
    if name == "mlp":
        rate = 2e-3 * batch_size / 256
        update = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-6).step

    def view(x: Tensor, alpha: Tensor) -> Tensor:
        columns = x[:, :2], alpha[:, :1], x[:, 2:], alpha[:, 1:]
        images = broadcast(torch, torch.cat(columns, dim=1), image_size, NUM_POINTS)
        return encode(encoder, images, tuned=tuned)

    compiled = view
    if tuned:
        torch._dynamo.config.suppress_errors = True  # run uncompiled if it fails
        compiled = torch.compile(view)
    # A compiled function has no second derivative: the penalized view is not compiled.
    first_view = view if weight else compiled

    def loss() -> Tensor:
        x = _uniform(TARGETS, batch_size)
        first, second = (_uniform(NUISANCE, batch_size) for _ in range(2))
        first.requires_grad_(weight > 0)
        h1, h2 = first_view(x, first), compiled(x, second)
        loss = nt_xent(head(h1), head(h2), config.temperature)
        if not weight:
            return loss
        terms = penalty(h1, first, _uniform(NUISANCE, DIRECTIONS, batch_size))
        return loss + weight * terms.clamp(max=per_example).mean().clamp(max=per_batch)

    def step() -> float:
        with torch.device(device):
            for parameter in parameters:
                parameter.grad = None
            value = loss()
            value.backward()
            update()
            return float(value.detach())

    return step


def _tune(encoder: nn.Module) -> None:
    """Makes an encoder channels-last, without running statistics."""
    encoder.to(memory_format=torch.channels_last)
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            # A compiled pass would change them in place, and the graph of an
            # uncompiled pass still needs their old values.
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def _make_head(features: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, features, bias=False),
        nn.BatchNorm1d(features),
        nn.ReLU(),
        nn.Linear(features, 128, bias=False),
        nn.BatchNorm1d(128, affine=False),
    )


def _uniform(columns: Sequence[int], *shape: int) -> Tensor:
    """Returns draws `[*shape, len(columns)]` of parameters within their bounds."""
    low, high = torch.tensor(spirograph.BOUNDS[[*columns]].T, dtype=torch.float32)
    return low + (high - low) * torch.rand(*shape, len(columns))


def _lars(parameters: list[Tensor], batch_size: int) -> Callable[[], None]:
    """Returns the update of the authors' variant of LARS, for all parameters."""
    trust, decay, momentum = 1e-3, 1e-6, 0.9
    rate = 1.5 * batch_size / 256 / 10  # the rate of the first epoch
    moments = [torch.zeros_like(parameter) for parameter in parameters]

    def update() -> None:
        gradients = [parameter.grad for parameter in parameters]
        p, g = (torch.stack(torch._foreach_norm(x)) for x in (parameters, gradients))
        ratios = trust * p / (g + decay * p + 1e-8)
        ratios = torch.where((p > 0) & (g > 0), ratios, 1)
        scaled = torch._foreach_add(gradients, parameters, alpha=decay)
        torch._foreach_mul_(scaled, ratios.unbind())
        torch._foreach_mul_(moments, momentum)
        torch._foreach_add_(moments, scaled)
        torch._foreach_add_(parameters, moments, alpha=-rate)

    return torch.no_grad()(update)


def make_probe(
    h: np.ndarray, y: np.ndarray, *, l2: float, steps: int
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Returns a function that fits a probe with L-BFGS and returns (kernel, bias).

    L-BFGS has PyTorch's defaults and starts from zero. Targets `[N, T]` give ridge
    regression, labels `[N]` logistic regression.
    """
    features, is_regression = torch.tensor(h), y.ndim > 1
    targets = torch.tensor(y, dtype=torch.float32 if is_regression else torch.int64)
    outputs = y.shape[1] if is_regression else int(y.max()) + 1
    error = nn.functional.mse_loss if is_regression else nn.functional.cross_entropy

    def fit() -> tuple[Tensor, Tensor]:
        kernel = torch.zeros(h.shape[1], outputs, requires_grad=True)
        bias = torch.zeros(outputs, requires_grad=True)
        optimizer = torch.optim.LBFGS([kernel, bias])

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = error(torch.addmm(bias, features, kernel), targets)
            loss = loss + l2 * torch.sum(torch.square(kernel))
            loss.backward()
            return loss

        for _ in range(steps):
            optimizer.step(closure)
        return kernel.detach(), bias.detach()

    return fit


def make_averages(x: np.ndarray, num_views: Sequence[int]) -> Callable[[], Tensor]:
    """Returns `() -> [len(num_views), B, 512]`, MLP features; each M has new views."""
    encoder, parameters = make_encoder("mlp", 32).eval(), torch.empty(len(x), 10)
    parameters[:, TARGETS] = torch.tensor(x)

    def encode_view() -> Tensor:
        parameters[:, NUISANCE] = _uniform(NUISANCE, len(x))
        return encode(encoder, broadcast(torch, parameters, 32, NUM_POINTS))

    def averages() -> Tensor:
        with torch.inference_mode():
            sums = (sum(encode_view() for _ in range(count)) for count in num_views)
            return torch.stack([h / m for h, m in zip(sums, num_views, strict=True)])

    return averages
