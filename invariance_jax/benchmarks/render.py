"""The Spirograph renderer against one that broadcasts over `[points, B, S, S]`.

Ours multiplies two matrices for each image, because a Gaussian is separable. Both
compute in float32.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from invariance_jax.benchmarks import peers, timing
from invariance_jax.benchmarks.peers import NUISANCE, TARGETS
from invariance_jax.benchmarks.timing import Options, Row
from invariance_jax.transforms import View, spirograph
from invariance_jax.types import Array

TOLERANCE = 1e-3  # at b = .1 one ulp of a float32 b changes images by 1e-4


def time_render(
    options: Options,
    *,
    batch_size: int = 512,
    image_size: int = 32,
    num_points: int = peers.NUM_POINTS,
) -> Iterator[Row]:
    """Yields peers over ours for images and derivatives, and ours with over without."""
    size = image_size, num_points
    parameters, ends = (peers.draw_parameters(batch_size, seed) for seed in (0, 1))
    direction = ends - parameters
    direction[:, TARGETS] = 0
    render, derivative = _make_ours(parameters, direction, *size)
    case, num_bytes = f"{batch_size} images", 4 * batch_size * image_size**2 * 3
    renderers: dict[str, Callable[[], Any]] = {
        "NumPy": lambda: peers.broadcast(np, parameters, *size)
    }
    if timing.has_torch():
        renderers["PyTorch"] = peers.make_render(parameters, None, *size)
    for name, peer in renderers.items():
        timing.check_same("images", peer(), render(), TOLERANCE)
        theirs, ours = options.timer(peer, render)
        share = num_bytes / np.median(ours) / timing.copy_rate()
        note = f"target 100; ours at {share:.0%} of the rate of a copy"
        yield timing.compare(case, (name, theirs), ("ours", ours), note)
    case, both = f"{case} and derivatives", ("ours", derivative)
    if timing.has_torch():
        peer = peers.make_render(parameters, direction, *size)
        timing.check_same("derivatives", peer()[1], derivative()[1], TOLERANCE)
        yield options.versus(case, ("PyTorch", peer), both, "target 100")
    yield options.versus(case, both, ("images only", render))


def _make_ours(
    parameters: np.ndarray, direction: np.ndarray, image_size: int, num_points: int
) -> tuple[Callable[[], Array], Callable[[], tuple[Array, Array]]]:
    """Returns `() -> images`, and `() -> (images, derivatives)` along the nuisance."""
    transformation = spirograph.make_transformation(
        image_size=image_size, num_points=num_points
    )
    x, alpha, along = jax.device_put(
        (parameters[:, TARGETS], parameters[:, NUISANCE], direction[:, NUISANCE])
    )

    @jax.jit
    def render(alpha: Array) -> Array:
        return transformation.apply(x, View(alpha))

    @jax.jit
    def derivative(alpha: Array, along: Array) -> tuple[Array, Array]:
        return jax.jvp(render, (alpha,), (along,))

    return lambda: render(alpha), lambda: derivative(alpha, along)
