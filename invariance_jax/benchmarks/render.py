"""The Spirograph renderer against one that broadcasts over `[points, B, S, S]`.

The peer is the released code's algorithm: the squared distance of every pixel to every
point of the curve, its exponential, and the mean over the points. Ours multiplies two
matrices for each image, because the Gaussian separates. Both compute in float32; before
anything is timed, the images are compared.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from invariance_jax.benchmarks.timing import Comparison, alternate
from invariance_jax.transforms import View, spirograph
from invariance_jax.types import Array

_EXPECTED = "at least 100"

TOLERANCE = 1e-3
"""Largest difference of two renderers in float32; b = .1 turns an ulp of it into
1e-4."""


def run(
    *,
    batch_size: int,
    image_size: int,
    num_points: int,
    repeats: int,
    min_seconds: float,
) -> list[Comparison]:
    """Returns the times of our renderer against its peers, and of its derivative.

    The peers are NumPy's and, where it is installed, PyTorch's. The derivative is the
    `jax.jvp` along a direction of the nuisance, the image included.

    Args:
      batch_size: B, images per call.
      image_size: S, pixels per side.
      num_points: points on the curve.
      repeats: see `timing.alternate`.
      min_seconds: see `timing.alternate`.

    Returns:
      A comparison with each peer, then that of the derivative with PyTorch's, where it
      is installed, and with the renderer.

    Raises:
      ValueError: if a peer draws another image.
    """
    size = {"image_size": image_size, "num_points": num_points}
    settings = {"repeats": repeats, "min_seconds": min_seconds}
    parameters = draw_parameters(batch_size)
    on_device = jax.device_put(parameters)
    render = jax.jit(lambda p: spirograph.render(p, **size))

    def ours() -> Array:
        return render(on_device)

    results = []
    for name, make in peers().items():
        peer = make(parameters, **size)
        check_equal(name, np.asarray(peer()), np.asarray(ours()))
        times = alternate(ours, peer, **settings)
        results.append(Comparison("render", "jitted", name, *times, True, _EXPECTED))
    plain, derivative, inputs = _with_derivative(batch_size, size)
    if importlib.util.find_spec("torch"):
        peer = torch_derivative(*inputs, **size)
        for found, expected in zip(peer(), derivative(), strict=True):
            check_equal("torch, cpu", np.asarray(found), np.asarray(expected))
        times = alternate(derivative, peer, **settings)
        results.append(
            Comparison("derivative", "jvp", "torch, cpu", *times, True, _EXPECTED)
        )
    times = alternate(derivative, plain, **settings)
    results.append(Comparison("derivative", "jvp", "render", *times, False))
    written = 4.0 * batch_size * image_size**2 * 3  # of the images
    return [
        replace(r, bytes_moved=written * (1 if r.name == "render" else 2))
        for r in results
    ]


def draw_parameters(batch_size: int, seed: int = 0) -> np.ndarray:
    """Returns parameter vectors, uniform within the paper's bounds.

    Args:
      batch_size: B.
      seed: of the draw.

    Returns:
      float32 `[B, 10]`, columns in the order of `spirograph.PARAMETERS`.
    """
    generator = np.random.default_rng(seed)
    low, high = spirograph.BOUNDS.T
    return generator.uniform(low, high, (batch_size, len(low))).astype(np.float32)


def check_equal(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Checks that a peer draws our images.

    Args:
      name: of the peer.
      found: `[B, S, S, 3]`, its images.
      expected: `[B, S, S, 3]`, ours.

    Raises:
      ValueError: if shape or dtype differ, or a value by more than `TOLERANCE`, as a
        share of the largest of ours if that is above 1.
    """
    for what in ("shape", "dtype"):
        values = getattr(found, what), getattr(expected, what)
        if values[0] != values[1]:
            raise ValueError(
                f"{name} draws images of {what} {values[0]}; expected {values[1]}."
            )
    size = max(1.0, float(np.max(np.abs(expected), initial=0)))  # of derivatives
    difference = np.max(np.abs(found - expected)) / size
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the images of {name} differ from ours by {difference:.2g}; expected at "
            f"most {TOLERANCE}."
        )


def peers() -> dict[str, Callable[..., Callable[[], Any]]]:
    """Returns the renderers that are there to compare with.

    Returns:
      Name -> `make(parameters [B, 10], *, image_size, num_points)`, which returns a
      function of nothing that draws the images `[B, S, S, 3]`.
    """
    found: dict[str, Callable[..., Callable[[], Any]]] = {"numpy": numpy_peer}
    if importlib.util.find_spec("torch"):
        found["torch, cpu"] = torch_peer
    return found


def numpy_peer(
    parameters: np.ndarray, *, image_size: int, num_points: int
) -> Callable[[], np.ndarray]:
    """Returns a function that draws the images with NumPy.

    Args:
      parameters: float32 `[B, 10]`.
      image_size: S.
      num_points: points on the curve.

    Returns:
      `() -> [B, S, S, 3]`, float32.
    """
    return lambda: broadcast(np, parameters, image_size, num_points)


def torch_peer(
    parameters: np.ndarray, *, image_size: int, num_points: int
) -> Callable[[], Any]:
    """Returns a function that draws the images with PyTorch, on the CPU.

    Args:
      parameters: float32 `[B, 10]`.
      image_size: S.
      num_points: points on the curve.

    Returns:
      `() -> [B, S, S, 3]`, a float32 tensor without a graph of derivatives.
    """
    torch = importlib.import_module("torch")
    tensor = torch.from_numpy(parameters.copy())

    def draw() -> Any:
        with torch.inference_mode():
            return broadcast(torch, tensor, image_size, num_points)

    return draw


def torch_derivative(
    parameters: np.ndarray, direction: np.ndarray, *, image_size: int, num_points: int
) -> Callable[[], tuple[Any, Any]]:
    """Returns a function that draws images and their derivative, with PyTorch on a CPU.

    Args:
      parameters: float32 `[B, 10]`.
      direction: float32 `[B, 10]`, along which the derivative is taken.
      image_size: S.
      num_points: points on the curve.

    Returns:
      `() -> (images, derivatives)`, both `[B, S, S, 3]`, by forward mode.
    """
    torch = importlib.import_module("torch")
    point, along = (torch.from_numpy(a.copy()) for a in (parameters, direction))

    def draw(parameters: Any) -> Any:
        return broadcast(torch, parameters, image_size, num_points)

    def derivative() -> tuple[Any, Any]:
        with torch.no_grad():
            found: tuple[Any, Any] = torch.func.jvp(draw, (point,), (along,))
        return found

    return derivative


def broadcast(xp: Any, parameters: Any, image_size: int, num_points: int) -> Any:
    """Returns the images by way of an array `[points, B, S, S]`.

    Args:
      xp: numpy or torch, which call these functions by the same names.
      parameters: float32 `[B, 10]`.
      image_size: S.
      num_points: points on the curve.

    Returns:
      float32 `[B, S, S, 3]`.
    """
    m, b, h, sigma = parameters.T[:4]
    angle = xp.linspace(0, 2 * np.pi, num_points, dtype=xp.float32)[:, None]
    inner = angle * ((m - h) / b)
    x = (m - h) * xp.cos(angle) + h * xp.cos(inner)
    y = (m - h) * xp.sin(angle) - h * xp.sin(inner)
    grid = xp.linspace(-6, 6, image_size, dtype=xp.float32)
    squared_distance = (grid[:, None] - x[..., None, None]) ** 2 + (
        grid - y[..., None, None]
    ) ** 2
    intensity = xp.exp(-squared_distance / sigma[:, None, None]).mean(0)
    peak = xp.amax(intensity, -1, keepdims=True)
    intensity = (intensity / (peak + 1e-8))[..., None]
    fore = parameters[:, 4::2][:, None, None]
    back = parameters[:, 5::2][:, None, None]
    return intensity * fore + (1 - intensity) * back


def _with_derivative(
    batch_size: int, size: dict[str, int]
) -> tuple[Callable[[], Any], Callable[[], Any], tuple[np.ndarray, np.ndarray]]:
    """Returns the renderer and its derivative along the nuisance, of the same views.

    With them the parameters and the direction `[B, 10]` of both.
    """
    targets = [0, 1, 3, 4]
    transformation = spirograph.make_transformation(**size)
    parameters, others = (draw_parameters(batch_size, seed) for seed in (0, 1))
    direction = others - parameters
    direction[:, targets] = 0
    nuisance = [n for n in range(parameters.shape[1]) if n not in targets]
    x, alpha, along = jax.device_put(
        (parameters[:, targets], parameters[:, nuisance], direction[:, nuisance])
    )

    @jax.jit
    def plain(alpha: Array) -> Array:
        return transformation.apply(x, View(alpha))

    @jax.jit
    def derivative(alpha: Array, along: Array) -> tuple[Array, Array]:
        return jax.jvp(plain, (alpha,), (along,))

    inputs = parameters, direction
    return lambda: plain(alpha), lambda: derivative(alpha, along), inputs
