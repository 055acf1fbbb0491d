"""Colour operations: values, derivatives, clip points."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import along_and_gradient
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.transforms.color import (
    COLORIZE_NAMES,
    JITTER_NAMES,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    colorize,
    jitter,
    solarize,
    to_grayscale,
)

SINGLE = {  # in the order of the columns of alpha
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


def make_images(batch_size, size=5, dtype=np.float64):
    generator = np.random.default_rng(batch_size)
    return jnp.asarray(generator.uniform(size=(batch_size, size, size + 1, 3)), dtype)


def make_alpha(batch_size, dtype=np.float64):
    uniform = np.random.default_rng(7).uniform(-1, 1, size=(batch_size, 4))
    low_high = np.array([0.6, 0.6, 0.6, 0.3])
    return jnp.asarray(np.array([1, 1, 1, 0]) + low_high * uniform, dtype)


def oracle_luma(pixel):
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-5)])
def test_reference_values(dtype, tolerance, reference, x64):
    image, alpha, tangent = (
        jnp.asarray(reference[f"color_{name}"], dtype)
        for name in ("image", "alpha", "tangent")
    )

    def check(found, name):
        assert found.dtype == dtype
        expected = reference[f"color_{name}"]
        atol = tolerance * np.abs(expected).max()
        assert_allclose(found, expected, rtol=0, atol=atol, err_msg=name)

    for column, (name, function) in enumerate(SINGLE.items()):
        check(jax.jit(function)(image, alpha[:, column]), name)
    gray = to_grayscale(image)
    for channel in range(3):
        check(gray[..., channel : channel + 1], "grayscale")
    along = jax.jit(lambda alpha: jitter(image, alpha))
    jittered, change = jax.jvp(along, (alpha,), (tangent,))
    check(jittered, "jitter")
    check(change, "jitter_jvp")


def test_solarization_inverts_what_reaches_the_threshold():
    images = jnp.asarray([1.2, 0.25, 0.5, 0.0]).repeat(6).reshape(2, 4, 1, 3)
    inverted = 1 - jnp.minimum(images[0], 1)  # a turned hue may lie above 1
    found = solarize(images, jnp.asarray([0.25, 1.5]))
    assert_array_equal(found[0], jnp.where(images[0] >= 0.25, inverted, images[0]))
    assert_array_equal(found[1], images[1])


def test_brightness_contrast_and_saturation_clip_and_hue_does_not(x64):
    for name, function in SINGLE.items():
        found = function(make_images(3), jnp.full(3, 0.25 if name == "hue" else 3.0))
        assert jnp.any((found < 0) | (found > 1)) == (name == "hue"), name
        assert name == "hue" or found.max() == 1, name


def test_colorize_mixes_foreground_and_background_by_the_luma(x64):
    images = make_images(2)
    alpha = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 6)))
    found, level = colorize(images, alpha), to_grayscale(images)
    for b, row, column, channel in np.ndindex(*found.shape):
        luma = oracle_luma(np.asarray(images[b, row, column]))
        assert_allclose(level[b, row, column, channel], luma)
        fore, back = alpha[b, 2 * channel], alpha[b, 2 * channel + 1]
        expected = luma * fore + (1 - luma) * back
        assert_allclose(found[b, row, column, channel], expected)


def test_hue_has_a_period_of_one_turn_and_nearly_keeps_the_luma():
    images, turns = make_images(3, dtype=np.float32), jnp.array([0.1, -0.4, 0.7])
    found = adjust_hue(images, turns)
    assert_allclose(found, adjust_hue(images, turns + 1), atol=1e-5)
    # nearly: the colour matrices of the paper are no exact inverses
    assert_allclose(to_grayscale(found), to_grayscale(images), atol=2e-3)
    assert jnp.abs(found - images).max() > 0.1
    white = jnp.ones((1, 2, 2, 3))
    moved = jnp.abs(adjust_hue(white, jnp.zeros(1)) - white).max()
    assert 2.5e-3 < moved < 2.85e-3


@pytest.mark.parametrize("function", [jitter, colorize], ids=["jitter", "colorize"])
def test_derivatives_of_first_and_second_order(function, x64):
    images = 0.35 + 0.3 * make_images(2, size=2)  # no pixel reaches a clip point
    columns = len(JITTER_NAMES if function is jitter else COLORIZE_NAMES)
    alpha = jnp.asarray(np.random.default_rng(2).uniform(0.8, 1.2, (2, columns)))
    if function is jitter:
        alpha = alpha - jnp.array([[0, 0, 0, 1.0]])
        still = jitter(images, alpha.at[:, 3].set(0))
        assert still.min() > 0.01 and still.max() < 0.99
    check_grads(jax.jit(function), (images, alpha), order=2)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_derivative_is_zero_at_and_beyond_the_clip_points(name):
    # a black and a white pixel: a factor of 1 keeps them at the clip points
    images = jnp.array([[[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]]])
    function = partial(SINGLE[name], images)
    for factor in (1.0, 2.0, 0.5):
        found, along = jax.jvp(function, (jnp.array([factor]),), (jnp.ones(1),))
        if factor < 1:  # which alone moves what is white or black
            assert jnp.abs(along).max() > 0.2
        else:
            assert_array_equal(jnp.where((found > 0) & (found < 1), 0, along), 0)


def test_extreme_images_have_finite_values_and_derivatives():
    @jax.jit
    def values(images, alpha):
        direction = make_alpha(4, np.float32) - alpha
        along_alpha = along_and_gradient(partial(jitter, images), alpha, direction)
        along_images = along_and_gradient(lambda i: jitter(i, alpha), images)
        return jitter(images, alpha), along_alpha, along_images

    for level in (0.0, 0.5, 1.0):  # black, grey, white
        for factor in (0.0, 1.0, 1.4):
            alpha = jnp.full((4, 4), factor).at[:, 3].set(0.0)
            found = values(jnp.full((4, 3, 3, 3), level), alpha)
            assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


IMAGES = jnp.ones((2, 4, 4, 3))


@pytest.mark.parametrize("function", SINGLE.values(), ids=SINGLE)
def test_operations_refuse_other_shapes(function):
    for images, factor, message in [
        (IMAGES[..., :1], jnp.ones(2), r"images must be \[B, H, W, 3\]"),
        (IMAGES[0], jnp.ones(4), r"images must be \[B, H, W, 3\]"),
        (IMAGES, jnp.ones((2, 1)), r"must be \[2\], a row per image"),
        (IMAGES.astype(jnp.uint8), jnp.ones(2), "images must be floating.*found uint8"),
    ]:
        with pytest.raises(ValueError, match=message):
            function(images, factor)


def test_jitter_colorize_and_grayscale_refuse_other_shapes():
    with pytest.raises(ValueError, match=r"\[2, 4\].*brightness, contrast, saturation"):
        jitter(IMAGES, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"\[2, 6\].*rfore, rback, gfore"):
        colorize(IMAGES, jnp.ones((3, 6)))
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, 3\]"):
        to_grayscale(IMAGES[..., 0])
