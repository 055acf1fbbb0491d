"""check_transformation: each promise of the protocol, kept and broken."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.transforms import (
    Transformation,
    View,
    check_transformation,
    spirograph,
)

SIZE = 4


def sample(key: jax.Array, batch_size: int) -> View:
    """A brightness in [0.5, 1.5], and whether to mirror."""
    alpha_key, mirror_key = jax.random.split(key)
    alpha = jax.random.uniform(alpha_key, (batch_size, 1), minval=0.5, maxval=1.5)
    return View(alpha, {"mirror": jax.random.bernoulli(mirror_key, 0.5, (batch_size,))})


def apply(x: Any, view: View) -> jax.Array:
    """The brightened, perhaps mirrored images."""
    mirrored = jnp.where(
        view.held["mirror"][:, None, None, None], x["images"][:, :, ::-1], x["images"]
    )
    return view.alpha[:, :, None, None] ** 2 * mirrored


GOOD = Transformation(
    ("brightness",), np.array([[0.5, 1.5]]), sample, apply, lambda x: x["images"]
)


def make_x(batch_size: int = 4) -> dict[str, Any]:
    """A pytree whose leaves share the leading axis, one of them of whole numbers."""
    images = np.random.default_rng(0).uniform(size=(batch_size, SIZE, SIZE, 3))
    return {
        "images": jnp.asarray(images, jnp.float32),
        "labels": np.arange(batch_size),
    }


def test_one_of_ones_own_passes() -> None:
    check_transformation(GOOD, make_x())


def test_a_gate_that_is_mostly_off_passes() -> None:
    def gated(x: Any, view: View) -> jax.Array:
        bright = view.alpha[:, :, None, None] * x["images"]
        return jnp.where(view.held[:, None, None, None], bright, x["images"])

    def sample(key: jax.Array, batch_size: int) -> View:
        alpha = jax.random.uniform(key, (batch_size, 1))
        return View(alpha, jax.random.bernoulli(key, 0.1, (batch_size,)))

    unit = np.array([[0.0, 1.0]])
    check_transformation(Transformation(("b",), unit, sample, gated), make_x(3))


def test_a_column_fixed_by_its_bounds_passes() -> None:
    two = with_two_columns(lambda alpha: alpha.at[:, 1].set(0.5))
    fixed = replace(two, bounds=np.array([[0.0, 1.0], [0.5, 0.5]]))

    def sample(key: jax.Array, batch_size: int) -> View:
        return View(two.sample(key, batch_size).alpha.at[:, 1].set(0.5))

    check_transformation(replace(fixed, sample=sample), make_x())


def test_passes_without_a_plain_image_or_held_choices() -> None:
    bright = replace(
        GOOD,
        sample=lambda key, batch_size: View(sample(key, batch_size).alpha),
        apply=lambda x, view: view.alpha[:, :, None, None] * x["images"],
        plain=None,
    )
    check_transformation(bright, make_x())


def test_spirograph_passes() -> None:
    x = jnp.array([[2.5, 0.3, 0.5, 0.6], [4.0, 1.0, 0.9, 0.8]])
    check_transformation(spirograph.make_transformation(image_size=8), x)


def test_other_seeds_draw_other_views() -> None:
    alphas = set()

    def record(x: Any, view: View) -> jax.Array:
        jax.debug.callback(lambda alpha: alphas.add(float(alpha)), view.alpha[0, 0])
        return apply(x, view)

    check_transformation(replace(GOOD, apply=record), make_x(), seed=0)
    first = set(alphas)
    check_transformation(replace(GOOD, apply=record), make_x(), seed=1)
    assert len(alphas) > len(first)


def with_view(change: Callable[[View], Any]) -> Transformation:
    """GOOD with a changed view."""
    return replace(GOOD, sample=lambda *args: change(sample(*args)))


def with_images(change: Callable[[jax.Array, View], jax.Array]) -> Transformation:
    """GOOD with changed images."""
    return replace(GOOD, apply=lambda x, view: change(apply(x, view), view))


def with_plain(change: Callable[[jax.Array], jax.Array]) -> Transformation:
    """GOOD with changed plain images."""
    return replace(GOOD, plain=lambda x: change(x["images"]))


def with_rounded(change: Callable[[jax.Array], jax.Array]) -> Transformation:
    """GOOD with a changed alpha."""
    return replace(
        GOOD, apply=lambda x, view: apply(x, view._replace(alpha=change(view.alpha)))
    )


def with_two_columns(change: Callable[[jax.Array], jax.Array]) -> Transformation:
    """A brightness and a contrast, and a change of them."""

    def sample(key: jax.Array, batch_size: int) -> View:
        return View(jax.random.uniform(key, (batch_size, 2)))

    def apply(x: Any, view: View) -> jax.Array:
        first, second = jnp.split(change(view.alpha)[:, :, None, None], 2, axis=1)
        return first * x["images"] + second * x["images"] ** 2

    names, bounds = ("brightness", "contrast"), np.array([[0.0, 1.0]] * 2)
    return Transformation(names, bounds, sample, apply)


@jax.custom_jvp
def half_derivative(alpha: jax.Array) -> jax.Array:
    """The identity, with half its derivative."""
    return alpha


half_derivative.defjvp(lambda primals, tangents: (primals[0], tangents[0] / 2))


@jax.custom_vjp
def reverse_only(images: jax.Array) -> jax.Array:
    """The identity, with a rule for reverse mode only."""
    return images


reverse_only.defvjp(lambda images: (images, None), lambda _, g: (g,))


def forward_only(images: jax.Array) -> jax.Array:
    """The identity through a loop that has no reverse mode."""

    def halve(carry: tuple) -> tuple:
        return carry[0] * 0.5, carry[1] * 2.0, carry[2] + 1

    return (lambda a, b, n: a * b)(
        *jax.lax.while_loop(
            lambda carry: carry[2] < 3, halve, (images, jnp.ones_like(images), 0)
        )
    )


BROKEN = {
    "no name": (replace(GOOD, names=()), "names must hold the name of a parameter"),
    "a row of bounds too many": (
        replace(GOOD, bounds=np.zeros((2, 2))),
        r"bounds must be \[1, 2\], a row per name; found \(2, 2\)",
    ),
    "bounds without a lower end": (
        replace(GOOD, bounds=np.zeros(1)),
        r"bounds must be \[1, 2\], a row per name; found \(1,\)",
    ),
    "reversed bounds": (
        replace(GOOD, bounds=np.array([[1.5, 0.5]])),
        "bounds must be finite and ordered",
    ),
    "narrower bounds": (
        replace(GOOD, bounds=np.array([[0.9, 1.1]])),
        "sample must draw alpha within bounds",
    ),
    "nan in alpha": (
        with_view(lambda view: view._replace(alpha=view.alpha * np.nan)),
        "sample must draw alpha within bounds",
    ),
    "alpha alone": (with_view(lambda view: view.alpha), "sample must return a View"),
    "alpha without columns": (
        with_view(lambda view: view._replace(alpha=view.alpha[:, 0])),
        r"sample must give alpha \[4, 1\]; found \(4,\)",
    ),
    "alpha for one": (
        with_view(lambda view: view._replace(alpha=view.alpha[:1])),
        r"sample must give alpha \[4, 1\]; found \(1, 1\)",
    ),
    "whole alpha": (
        with_view(lambda view: view._replace(alpha=jnp.ones((4, 1), int))),
        "alpha must be floating; found int32",
    ),
    "same draws": (
        with_view(lambda view: view._replace(alpha=jnp.ones((4, 1)))),
        "sample must draw different alpha for different keys",
    ),
    "draws outside the key": (
        with_view(
            lambda view: view._replace(
                alpha=jnp.asarray(np.random.uniform(0.5, 1.5, (4, 1)), jnp.float32)
            )
        ),
        "sample must draw different alpha for different keys",
    ),
    "held for the batch": (
        with_view(lambda view: view._replace(held=jnp.array(True))),
        r"every leaf of held must have leading axis B; found \(\)",
    ),
    "held for one": (
        with_view(lambda view: view._replace(held={"mirror": jnp.ones(1, bool)})),
        r"every leaf of held must have leading axis B; found \(1,\)",
    ),
    "sample that looks at values": (
        with_view(lambda view: view if view.alpha.sum() > 0 else view),
        "sample must compile: Attempted boolean conversion",
    ),
    "apply that looks at values": (
        with_images(lambda images, view: images if view.alpha.sum() > 0 else images),
        "apply must compile: Attempted boolean conversion",
    ),
    "apply in numpy": (
        with_images(lambda images, view: np.asarray(images)),
        "apply must compile: The numpy.ndarray conversion",
    ),
    "channels first": (
        with_images(lambda images, view: jnp.moveaxis(images, -1, 1)),
        r"apply must return \[4, H, W, 3\]; found \(4, 3, 4, 4\)",
    ),
    "one channel": (
        with_images(lambda images, view: images[..., :1]),
        r"apply must return \[4, H, W, 3\]; found \(4, 4, 4, 1\)",
    ),
    "flat images": (
        with_images(lambda images, view: images.reshape(4, -1)),
        r"apply must return \[4, H, W, 3\]; found \(4, 48\)",
    ),
    "one image": (
        with_images(lambda images, view: images[:1]),
        r"apply must return \[4, H, W, 3\]; found \(1, 4, 4, 3\)",
    ),
    "bytes": (
        with_images(lambda images, view: (255 * images).astype(jnp.uint8)),
        "apply must return floating images; found uint8",
    ),
    "images that divide by 0": (
        with_images(lambda images, view: images / 0),
        "the images of apply must be finite",
    ),
    "square root of 0": (
        with_images(
            lambda images, view: (
                images + jnp.sqrt(images - jax.lax.stop_gradient(images))
            )
        ),
        "forward mode along alpha.* must be finite",
    ),
    "power 1.5 of 0": (
        with_images(
            lambda images, view: (
                images + (images - jax.lax.stop_gradient(images)) ** 1.5
            )
        ),
        "reverse over forward mode.* must be finite",
    ),
    "custom_vjp": (
        with_images(lambda images, view: reverse_only(images)),
        "apply must allow forward mode along alpha: .*custom_vjp",
    ),
    "while_loop": (
        with_images(lambda images, view: forward_only(images)),
        "apply must allow reverse over forward mode: .*while_loop",
    ),
    "mean over the batch": (
        with_images(lambda images, view: images - images.mean(axis=0, keepdims=True)),
        "apply must treat examples independently",
    ),
    "mirrored batch": (
        with_images(lambda images, view: images[::-1]),
        "apply must treat examples independently",
    ),
    "the last two exchanged": (
        with_images(lambda images, view: images[jnp.array([0, 1, 3, 2])]),
        "apply must treat examples independently: number 2 alone differs",
    ),
    "alpha without an effect": (
        replace(GOOD, apply=lambda x, view: x["images"]),
        "apply must depend on alpha; its derivative is 0 in all examples of 16 views",
    ),
    "alpha in steps": (
        with_rounded(lambda alpha: jnp.round(4 * alpha) / 4),
        "apply must depend on alpha; its derivative is 0",
    ),
    "one column in steps": (
        with_two_columns(lambda alpha: alpha.at[:, 1].set(jnp.round(4 * alpha[:, 1]))),
        "the derivative along 'contrast' is 0 everywhere, though the images change",
    ),
    "a derivative of its own": (
        with_rounded(half_derivative),
        "along 'brightness' must be that of the images; found 5. % off",
    ),
    "a column too many": (
        with_images(lambda images, view: images * view.alpha[:, 1, None, None, None]),
        "apply must take columns of alpha that names has: .* index 1 is out of bounds",
    ),
    "a column too many, mapped": (
        with_images(
            lambda images, view: jax.vmap(lambda i, a: i * a[2])(images, view.alpha)
        ),
        "apply must take columns of alpha that names has: .* index 2 is out of bounds",
    ),
    "one name twice": (
        replace(GOOD, names=("brightness",) * 2, bounds=np.ones((2, 2))),
        "names must differ",
    ),
    "bounds without an end": (
        replace(GOOD, bounds=np.array([[0.5, np.inf]])),
        "bounds must be finite and ordered",
    ),
    "plain of another size": (
        with_plain(lambda images: images[:, 1:]),
        r"plain must return images of the size of apply's.* found \(4, 3, 4, 3\)",
    ),
    "plain of the batch": (
        with_plain(lambda images: images - images.mean(axis=0, keepdims=True)),
        "plain must treat examples independently",
    ),
    "plain bytes": (
        with_plain(lambda images: (255 * images).astype(jnp.uint8)),
        "plain must return floating images; found uint8",
    ),
    "plain without channels": (
        with_plain(lambda images: images[..., 0]),
        r"plain must return \[4, H, W, 3\]; found \(4, 4, 4\)",
    ),
    "plain nan": (
        with_plain(lambda images: images * np.nan),
        "the images of plain must be finite",
    ),
}


@pytest.mark.parametrize("transformation, message", BROKEN.values(), ids=BROKEN)
def test_broken_promise_is_named(transformation: Transformation, message: str) -> None:
    with pytest.raises(ValueError, match="transformation check: .*" + message):
        check_transformation(transformation, make_x())


@pytest.mark.parametrize(
    "x",
    [
        {},
        {"images": jnp.ones((1, SIZE, SIZE, 3))},
        {"images": jnp.ones((4, SIZE, SIZE, 3)), "scale": 2.0},
        {"images": jnp.ones((4, SIZE, SIZE, 3)), "labels": np.arange(3)},
    ],
    ids=["empty", "one example", "a number", "another length"],
)
def test_examples_need_one_leading_axis_of_at_least_2(x: Any) -> None:
    with pytest.raises(ValueError, match="leaves of x must share a leading axis"):
        check_transformation(GOOD, x)
