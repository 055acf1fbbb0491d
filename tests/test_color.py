"""Colour operations: values, derivatives, clip points."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from invariance_jax.transforms.color import (
    COLORIZE_NAMES,
    JITTER_NAMES,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    colorize,
    jitter,
    to_grayscale,
)
from invariance_jax.transforms.spirograph import PARAMETERS

SINGLE = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}

EXTREMES = {"black": 0.0, "grey": 0.5, "white": 1.0}


def make_images(batch_size: int, size: int = 5, dtype: Any = np.float64) -> jax.Array:
    generator = np.random.default_rng(batch_size)
    return jnp.asarray(generator.uniform(size=(batch_size, size, size + 1, 3)), dtype)


def make_alpha(batch_size: int, dtype: Any = np.float64) -> jax.Array:
    uniform = np.random.default_rng(7).uniform(-1, 1, size=(batch_size, 4))
    low_high = np.array([0.6, 0.6, 0.6, 0.3])
    return jnp.asarray(np.array([1, 1, 1, 0]) + low_high * uniform, dtype)


def oracle_luma(pixel: Any) -> float:
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def oracle_hue(pixel: Any, turns: float) -> list[float]:
    red, green, blue = pixel
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    i = 0.596 * red - 0.274 * green - 0.321 * blue
    q = 0.211 * red - 0.523 * green + 0.311 * blue
    cos, sin = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
    i, q = i * cos - q * sin, i * sin + q * cos
    return [
        y + 0.956 * i + 0.621 * q,
        y - 0.272 * i - 0.647 * q,
        y - 1.107 * i + 1.705 * q,
    ]


def oracle(images: Any, alpha: Any, names: tuple[str, ...]) -> np.ndarray:
    """The named operations one after the other, pixel by pixel."""
    out = np.array(images, np.float64)
    for b, image in enumerate(out):
        for name in names:
            c = alpha[b][JITTER_NAMES.index(name)]
            mean = np.mean([oracle_luma(pixel) for row in image for pixel in row])
            for row in image:
                for pixel in row:
                    if name == "hue":
                        pixel[:] = oracle_hue(pixel, c)
                        continue
                    other = {
                        "brightness": 0.0,
                        "contrast": mean,
                        "saturation": oracle_luma(pixel),
                    }[name]
                    for channel in range(3):
                        value = c * pixel[channel] + (1 - c) * other
                        pixel[channel] = min(max(value, 0.0), 1.0)
    return out


def change_and_size_gradient(
    function: Callable[[jax.Array], jax.Array], at: jax.Array, direction: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The derivative along a direction, and the gradient of its squared norm."""

    def change(at: jax.Array) -> jax.Array:
        return jax.jvp(function, (at,), (direction,))[1]

    gradient = jax.grad(lambda at: jnp.sum(jnp.square(change(at))))(at)
    return change(at), gradient


def check_reference(reference: dict, dtype: Any, tolerance: float) -> None:
    image, alpha, tangent = (
        jnp.asarray(reference[f"color_{name}"], dtype)
        for name in ("image", "alpha", "tangent")
    )

    def check(found: jax.Array, name: str) -> None:
        assert found.dtype == dtype
        expected = reference[f"color_{name}"]
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=name)

    for column, (name, function) in enumerate(SINGLE.items()):
        check(jax.jit(function)(image, alpha[:, column]), name)
    gray = to_grayscale(image)
    for channel in range(3):
        check(gray[..., channel : channel + 1], "grayscale")
    along = jax.jit(lambda alpha: jitter(image, alpha))
    jittered, change = jax.jvp(along, (alpha,), (tangent,))
    check(jittered, "jitter")
    check(change, "jitter_jvp")


def test_reference_values_in_float64(
    reference: dict[str, np.ndarray], x64: None
) -> None:
    check_reference(reference, np.float64, 1e-6)


def test_reference_values_in_float32(reference: dict[str, np.ndarray]) -> None:
    check_reference(reference, np.float32, 1e-5)


@pytest.mark.parametrize("name", SINGLE)
def test_each_operation_equals_the_oracle(name: str, x64: None) -> None:
    images, alpha = make_images(3), make_alpha(3)
    found = SINGLE[name](images, alpha[:, JITTER_NAMES.index(name)])
    expected = oracle(images, alpha, (name,))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_jitter_is_the_operations_in_their_order(x64: None) -> None:
    images, alpha = make_images(4), make_alpha(4)
    assert JITTER_NAMES == ("brightness", "contrast", "saturation", "hue")
    expected = oracle(images, alpha, JITTER_NAMES)
    other = oracle(images, alpha, JITTER_NAMES[::-1])
    assert np.abs(expected - other).max() > 0.05
    np.testing.assert_allclose(jitter(images, alpha), expected, rtol=0, atol=1e-12)


def test_brightness_contrast_and_saturation_clip_and_hue_does_not(x64: None) -> None:
    images = make_images(3)
    for name, function in SINGLE.items():
        strong = jnp.full(3, 0.25 if name == "hue" else 3.0)
        found = function(images, strong)
        outside = jnp.any((found < 0) | (found > 1))
        assert outside == (name == "hue"), name
        if name != "hue":
            assert found.max() == 1, name


def test_grayscale_is_the_luma_in_three_channels(x64: None) -> None:
    images = make_images(2)
    gray = to_grayscale(images)
    for b, row, column in np.ndindex(*images.shape[:3]):
        expected = oracle_luma(np.asarray(images[b, row, column]))
        np.testing.assert_allclose(gray[b, row, column], expected, atol=1e-12)


def test_colorize_mixes_foreground_and_background(x64: None) -> None:
    assert COLORIZE_NAMES == PARAMETERS[4:]  # the order of Spirograph
    intensity = make_images(2)[..., :1]
    alpha = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 6)))
    found = colorize(jnp.repeat(intensity, 3, axis=-1), alpha)
    for b, row, column, channel in np.ndindex(*found.shape):
        level = float(intensity[b, row, column, 0])
        fore, back = alpha[b, 2 * channel], alpha[b, 2 * channel + 1]
        expected = level * fore + (1 - level) * back
        np.testing.assert_allclose(found[b, row, column, channel], expected)


def test_colorize_takes_the_luma_of_an_image_with_colours(x64: None) -> None:
    images = make_images(2)
    alpha = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 6)))
    found, expected = colorize(images, alpha), colorize(to_grayscale(images), alpha)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_factor_1_changes_nothing_and_factor_0_leaves_the_other(name: str) -> None:
    images = make_images(3, dtype=np.float32)
    same = SINGLE[name](images, jnp.ones(3))
    np.testing.assert_allclose(same, images, rtol=0, atol=1e-6)
    gray = to_grayscale(images)
    other = {
        "brightness": jnp.zeros_like(images),
        "contrast": jnp.broadcast_to(gray.mean((1, 2), keepdims=True), images.shape),
        "saturation": gray,
    }[name]
    found = SINGLE[name](images, jnp.zeros(3))
    np.testing.assert_allclose(found, other, rtol=0, atol=1e-6)


def test_hue_has_a_period_of_one_turn_and_nearly_keeps_the_luma() -> None:
    images, turns = make_images(3, dtype=np.float32), jnp.array([0.1, -0.4, 0.7])
    found = adjust_hue(images, turns)
    np.testing.assert_allclose(found, adjust_hue(images, turns + 1), atol=1e-5)
    # nearly: the colour matrices of the paper are no exact inverses
    gray, expected = to_grayscale(found), to_grayscale(images)
    np.testing.assert_allclose(gray, expected, atol=2e-3)
    assert jnp.abs(found - images).max() > 0.1


def test_hue_0_moves_a_grey_image_by_the_known_slip() -> None:
    white = jnp.ones((1, 2, 2, 3))
    moved = jnp.abs(adjust_hue(white, jnp.zeros(1)) - white).max()
    assert 2.5e-3 < moved < 2.85e-3


@pytest.mark.parametrize("function", [jitter, colorize], ids=["jitter", "colorize"])
def test_derivatives_of_first_and_second_order(function: Callable, x64: None) -> None:
    images = 0.35 + 0.3 * make_images(2, size=2)  # no pixel reaches a clip point
    columns = len(JITTER_NAMES if function is jitter else COLORIZE_NAMES)
    alpha = jnp.asarray(np.random.default_rng(2).uniform(0.8, 1.2, (2, columns)))
    if function is jitter:
        alpha = alpha - jnp.array([[0, 0, 0, 1.0]])
        clipped = oracle(images, alpha, JITTER_NAMES[:3])
        assert clipped.min() > 0.01 and clipped.max() < 0.99
    check_grads(jax.jit(function), (images, alpha), order=2, modes=["fwd", "rev"])


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_derivative_is_zero_at_and_beyond_the_clip_points(name: str) -> None:
    # a black and a white pixel: a factor of 1 keeps them at the clip points
    pixels = jnp.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    images = pixels[None, None]
    for factor in (1.0, 2.0):
        at = jnp.array([factor])
        along = jax.jvp(lambda f: SINGLE[name](images, f), (at,), (jnp.ones(1),))[1]
        inside = (SINGLE[name](images, at) > 0) & (SINGLE[name](images, at) < 1)
        np.testing.assert_array_equal(jnp.where(inside, 0, along), 0)
    # only a factor below 1 moves what is white or black
    at = jnp.array([0.5])
    along = jax.jvp(lambda f: SINGLE[name](images, f), (at,), (jnp.ones(1),))[1]
    assert jnp.abs(along).max() > 0.2


@pytest.mark.parametrize("level", EXTREMES.values(), ids=EXTREMES)
def test_extreme_images_have_finite_values_and_derivatives(level: float) -> None:
    images = jnp.full((4, 3, 3, 3), level)
    for factor in (0.0, 1.0, 1.4):
        alpha = jnp.full((4, 4), factor).at[:, 3].set(0.0)
        direction = make_alpha(4, np.float32) - alpha
        values = [jitter(images, alpha)]
        values += change_and_size_gradient(
            lambda alpha: jitter(images, alpha), alpha, direction
        )
        values += change_and_size_gradient(
            lambda images, alpha=alpha: jitter(images, alpha), images, images + 1
        )
        assert all(jnp.isfinite(value).all() for value in values)


def test_eager_jit_and_vmap_agree() -> None:
    images, alpha = make_images(3, dtype=np.float32), make_alpha(3, np.float32)
    six = jnp.concatenate([alpha, alpha[:, :2]], axis=1)
    for function, row in [(jitter, alpha), (colorize, six)]:
        expected = function(images, row)
        each = jax.vmap(lambda image, row, f=function: f(image[None], row[None])[0])
        for found in (jax.jit(function)(images, row), each(images, row)):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    expected = to_grayscale(images)
    np.testing.assert_allclose(jax.jit(to_grayscale)(images), expected, atol=1e-6)


@pytest.mark.parametrize("function", SINGLE.values(), ids=SINGLE)
def test_operations_refuse_other_shapes(function: Callable) -> None:
    images = jnp.ones((2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\]"):
        function(images[..., :1], jnp.ones(2))
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\]"):
        function(images[0], jnp.ones(4))
    with pytest.raises(ValueError, match=r"must be \[2\], a row per image"):
        function(images, jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="images must be floating.*found uint8"):
        function(images.astype(jnp.uint8), jnp.ones(2))


def test_jitter_colorize_and_grayscale_refuse_other_shapes() -> None:
    images = jnp.ones((2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"\[2, 4\].*brightness, contrast, saturation"):
        jitter(images, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"\[2, 6\].*rfore, rback, gfore"):
        colorize(images, jnp.ones((3, 6)))
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\]"):
        to_grayscale(images[..., 0])
