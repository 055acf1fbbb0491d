"""The networks of `benchmarks.peers`: our encoders and projection head in PyTorch.

The names of a ResNet's tensors are those that `models.weights.to_torch_state_dict`
gives for the cifar stem. Images are `[B, H, W, 3]`, as ours. The classes are made when
they are asked for, since PyTorch is optional.
"""

import functools
import importlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

# name -> (blocks per stage, bottleneck)
_RESNETS = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}

_MLP_WIDTH, _MLP_DEPTH = 512, 3


def make_encoder(name: str, *, image_size: int = 32, tuned: bool = False) -> Any:
    """Returns an encoder, a PyTorch module in training mode.

    Args:
      name: "resnet18" or "resnet50", with the cifar stem, or "mlp", of three layers of
        512, each with normalization and ReLU.
      image_size: S, pixels per side; only the MLP asks.
      tuned: whether images are laid out channels-last and computed with in bfloat16. No
        running averages are kept then: a compiled pass would change them under the
        graph of one that is not.

    Returns:
      A module from images `[B, S, S, 3]` to h `[B, D]`, float32, with D as `features`.

    Raises:
      ValueError: if the name is unknown.
    """
    names = (*_RESNETS, "mlp")
    if name not in names:
        raise ValueError(f"the encoder is {name!r}; expected one of {names}.")
    nn = importlib.import_module("torch.nn")
    if name == "mlp":
        parts, features = _mlp(nn, 3 * image_size**2), _MLP_WIDTH
    else:
        parts = _resnet(nn, *_RESNETS[name])
        features = 512 * (4 if _RESNETS[name][1] else 1)
    encoder = _encoder_class()(parts, features, tuned, images=name != "mlp")
    for layer in encoder.modules() if tuned else ():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return encoder


def make_head(features: int) -> Any:
    """Returns the projection head.

    Args:
      features: D of h.

    Returns:
      A module from h `[B, D]` to z `[B, 128]`.
    """
    nn = importlib.import_module("torch.nn")
    return nn.Sequential(
        nn.Linear(features, features, bias=False),
        nn.BatchNorm1d(features),
        nn.ReLU(),
        nn.Linear(features, 128, bias=False),
        nn.BatchNorm1d(128, affine=False),
    )


@functools.cache
def _encoder_class() -> Callable[..., Any]:
    torch = importlib.import_module("torch")

    class Encoder(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(
            self, parts: dict[str, Any], features: int, tuned: bool, *, images: bool
        ) -> None:
            super().__init__()
            for name, part in parts.items():
                self.add_module(name, part)
            self.features, self.tuned, self.images = features, tuned, images

        def forward(self, images: Any) -> Any:
            layout = torch.channels_last if self.tuned else torch.contiguous_format
            x = images.flatten(1)
            if self.images:
                x = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
            kind = images.device.type
            with torch.autocast(kind, torch.bfloat16, enabled=self.tuned):
                for part in self.children():
                    x = part(x)
                x = x.mean((2, 3)) if self.images else x
            return x.float()

    return Encoder


@functools.cache
def _block_class() -> Callable[..., Any]:
    nn = importlib.import_module("torch.nn")

    class Block(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self, parts: dict[str, Any], shortcut: Any) -> None:
            super().__init__()
            self.layers = len(parts) // 2
            for name, part in parts.items():
                self.add_module(name, part)
            self.downsample = shortcut

        def forward(self, x: Any) -> Any:
            y = x
            for i in range(1, self.layers + 1):
                y = y.relu() if i > 1 else y
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            return (y + (x if self.downsample is None else self.downsample(x))).relu()

    return Block


def _resnet(nn: Any, stage_sizes: tuple[int, ...], bottleneck: bool) -> dict[str, Any]:
    stem = {"conv1": _convolution(nn, 3, 64, 3, 1), "bn1": nn.BatchNorm2d(64)}
    parts = {"stem": nn.Sequential(OrderedDict(stem, relu=nn.ReLU()))}
    inputs = 64
    for stage, size in enumerate(stage_sizes):
        blocks = []
        for number in range(size):
            stride = 2 if stage > 0 and number == 0 else 1
            block, inputs = _block(nn, inputs, 64 * 2**stage, stride, bottleneck)
            blocks.append(block)
        parts[f"layer{stage + 1}"] = nn.Sequential(*blocks)
    return parts


def _block(
    nn: Any, inputs: int, features: int, stride: int, bottleneck: bool
) -> tuple[Any, int]:
    """Returns a residual block and its output channels."""
    layers = [(1, 3, stride), (1, 3, 1)]
    if bottleneck:
        layers = [(1, 1, 1), (1, 3, stride), (4, 1, 1)]
    parts, channels = {}, inputs
    for i, (width, kernel, step) in enumerate(layers, start=1):
        outputs = width * features
        parts[f"conv{i}"] = _convolution(nn, channels, outputs, kernel, step)
        parts[f"bn{i}"] = nn.BatchNorm2d(outputs)
        channels = outputs
    shortcut = None
    if stride > 1 or inputs != channels:
        shortcut = nn.Sequential(
            _convolution(nn, inputs, channels, 1, stride), nn.BatchNorm2d(channels)
        )
    return _block_class()(parts, shortcut), channels


def _convolution(nn: Any, inputs: int, outputs: int, size: int, stride: int) -> Any:
    layer = nn.Conv2d(
        inputs, outputs, size, stride=stride, padding=size // 2, bias=False
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _mlp(nn: Any, inputs: int) -> dict[str, Any]:
    parts = {}
    for i in range(1, _MLP_DEPTH + 1):
        dense = nn.Linear(inputs, _MLP_WIDTH, bias=False)
        nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
        parts[f"dense{i}"], parts[f"bn{i}"] = dense, nn.BatchNorm1d(_MLP_WIDTH)
        parts[f"relu{i}"] = nn.ReLU()
        inputs = _MLP_WIDTH
    return parts
