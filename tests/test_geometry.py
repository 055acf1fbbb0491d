"""Crop and resize, flip, affine maps: values, agreement with Pillow, derivatives."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import along_and_gradient
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from sklearn.datasets import load_sample_images

from invariance_jax.transforms.geometry import (
    AFFINE_IDENTITY,
    AFFINE_NAMES,
    METHODS,
    affine,
    central_square,
    crop_and_resize,
    erase,
)

PILLOW = {"lanczos3": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR}

compiled_crop = jax.jit(crop_and_resize, static_argnames=["size", "method"])
compiled_affine = jax.jit(affine)


@cache
def photographs():
    """Pieces of two real photographs, uint8 [2, 48, 64, 3]."""
    pieces = [image[180:228, 250:314] for image in load_sample_images().images]
    return np.stack(pieces)


def make_images(batch_size, rows, columns, channels=3):
    generator = np.random.default_rng(rows)
    return generator.uniform(0.2, 0.8, (batch_size, rows, columns, channels))


def kernel(method, x):
    if method == "bilinear":
        return max(1 - abs(x), 0.0)
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0


def oracle_weights(start, length, pixels, out, method):
    """The weights of one pass, entry by entry."""
    scale = length / out
    weights = np.zeros((out, pixels))
    for i in range(out):
        center = start + (i + 0.5) * scale
        for p in range(pixels):
            share = min(start + length, p + 1) - max(start, p)
            distance = (p + 0.5 - center) / max(scale, 1)
            weights[i, p] = kernel(method, distance) * min(max(share, 0), 1)
        weights[i] /= weights[i].sum()
    return weights


def oracle_crop(images, boxes, size, method):
    found = []
    for image, (top, left, height, width) in zip(images, boxes, strict=True):
        across = oracle_weights(left, width, image.shape[1], size[1], method)
        down = oracle_weights(top, height, image.shape[0], size[0], method)
        image = np.clip(np.einsum("qw,hwc->hqc", across, image), 0, 1)
        found.append(np.clip(np.einsum("ph,hqc->pqc", down, image), 0, 1))
    return np.stack(found)


def pillow_crop(image, box, size, method, *, calls):
    """Crop and resize in one call, or in one for the columns and one for the rows."""
    top, left, height, width = box
    piece = Image.fromarray(image).crop((left, top, left + width, top + height))
    if calls == 2:
        piece = piece.resize((size[1], height), PILLOW[method])
    return np.asarray(piece.resize(size[::-1], PILLOW[method])) / 255


BOXES = {
    "whole image": (0, 0, 48, 64),
    "downscaled": (3, 5, 40, 57),
    "upscaled": (20, 30, 11, 7),
    "up and down": (1, 40, 45, 9),
    "one pixel": (17, 33, 1, 1),
    "one row": (47, 2, 1, 50),
    "at the corner": (38, 55, 10, 9),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_whole_pixel_boxes_agree_with_pillow(box, method):
    images = jnp.asarray(photographs(), jnp.float32) / 255
    boxes = jnp.tile(jnp.asarray(box, jnp.float32)[None], (2, 1))
    for size in [(32, 32), (9, 20)]:
        found = compiled_crop(images, boxes, size=size, method=method)
        # Pillow 13 resizes a box that shrinks mainly in height along the rows first.
        calls = 1 if box[2] <= size[0] else 2
        for image, other in zip(found, photographs(), strict=True):
            expected = pillow_crop(other, box, size, method, calls=calls)
            assert np.abs(image - expected).max() <= 2 / 255


@pytest.mark.parametrize("method", METHODS)
def test_real_boxes_equal_the_oracle(method, x64):
    images = np.random.default_rng(0).uniform(size=(4, 13, 10, 2))
    boxes = [[0.3, 0.7, 12.1, 8.9], [4.25, 1.5, 3.3, 2.2]]
    boxes = np.array([*boxes, [6.6, 7.1, 0.9, 0.4], [0, 2.5, 13, 7.5]])
    for size in [(5, 8), (16, 3)]:
        found = compiled_crop(
            *map(jnp.asarray, (images, boxes)), size=size, method=method
        )
        assert found.dtype == jnp.float64
        expected = oracle_crop(images, boxes, size, method)
        assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_images_that_are_whole_or_constant_stay(method):
    images = jnp.asarray(make_images(2, 6, 7), jnp.float32)
    whole = jnp.tile(jnp.array([[0.0, 0.0, 6.0, 7.0]]), (2, 1))
    found = compiled_crop(images, whole, size=(6, 7), method=method)
    assert_allclose(found, images, rtol=0, atol=1e-5)
    ends = np.sort(np.random.default_rng(3).uniform(0, 9, (40, 2, 2)), axis=1)
    boxes = jnp.asarray(np.concatenate([ends[:, 0], ends[:, 1] - ends[:, 0]], axis=1))
    found = compiled_crop(jnp.full((40, 9, 9, 1), 0.7), boxes, size=6, method=method)
    assert_allclose(found, 0.7, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_derivative_at_whole_pixels_is_the_mean_of_both_sides(method, x64):
    # the whole image, at its corner, inside, one pixel
    at = [(0, 0, 6, 6), (0, 0, 5, 3), (1, 2, 3, 2), (2, 3, 1, 1)]
    at = jnp.asarray(at, jnp.float64)
    images = jnp.asarray(0.4 + make_images(1, 6, 6, channels=1) / 5)
    crop = partial(compiled_crop, jnp.tile(images, (4, 1, 1, 1)), size=4, method=method)
    for column in range(4):
        direction = jnp.tile(jnp.eye(4)[column], (4, 1))
        whole, found = jax.jvp(crop, (at,), (direction,))
        ahead, behind = (crop(at + step * direction) for step in (1e-6, -1e-6))
        assert_allclose(ahead, whole, rtol=0, atol=1e-4)  # continuous
        assert_allclose(found, (ahead - behind) / 2e-6, rtol=0, atol=1e-5)


def test_what_lies_outside_is_cut_off_and_nothing_is_black():
    images = jnp.asarray(photographs(), jnp.float32) / 255
    beyond = jnp.array([[-5.0, 10.0, 25.0, 20.0], [40.0, 60.0, 20.0, 9.0]])
    inside = jnp.array([[0.0, 10.0, 20.0, 20.0], [40.0, 60.0, 8.0, 4.0]])
    found = compiled_crop(images, beyond, size=np.int64(8))
    assert_allclose(found, compiled_crop(images, inside, size=8), atol=1e-6)
    empty = jnp.array([[-9.0, 5.0, 8.0, 5.0], [5.0, 5.0, 0.0, 5.0]])
    crop = partial(compiled_crop, images, size=8)
    assert_array_equal(crop(empty), 0)
    along = jax.jvp(crop, (empty,), (jnp.ones_like(empty),))[1]
    assert_array_equal(along, 0)


@pytest.mark.parametrize("method", METHODS)
def test_derivatives_of_the_crop(method, x64):
    images = jnp.asarray(make_images(1, 5, 5, channels=1))
    boxes = jnp.array([[0.3, 0.2, 4.1, 1.4]])
    crop = jax.jit(partial(crop_and_resize, size=(2, 3), method=method))
    found = crop(images, boxes)
    assert found.min() > 0 and found.max() < 1  # nothing has a kink
    if method == "lanczos3":
        check_grads(partial(crop, images), (boxes,), order=2)
    else:
        check_grads(crop, (images, boxes), order=1)


@pytest.mark.parametrize("method", METHODS)
def test_extreme_images_and_boxes_have_finite_derivatives(method):
    boxes = [[0, 0, 6, 6], [0, 0, 3, 6], [2, 1, 3, 3], [1, 1, 1, 1], [5.5, 0, 0.5, 6]]
    boxes = jnp.asarray([*boxes, [1, 1, 1e-3, 1e-3], [-1, -1, 9, 9]], jnp.float32)

    @jax.jit
    def derivatives(level, direction):
        images = jnp.full((len(boxes), 6, 6, 1), level).at[:, 2, 2].set(1 - level)
        crop = partial(crop_and_resize, images, size=6, method=method)
        return along_and_gradient(crop, boxes, direction)

    for level in (0.0, 0.5, 1.0):  # black, grey, white
        assert all(
            jnp.isfinite(values).all()
            for values in derivatives(level, jnp.ones_like(boxes))
        )
        for values in derivatives(level, jnp.zeros_like(boxes)):
            assert_array_equal(values, 0)


def test_second_derivatives_are_exact_next_to_the_centre_of_a_pixel(x64):
    # sin(y) / y of float32 would give noise of 1e-7 / offset^2 there
    images = np.asarray(make_images(1, 6, 6, channels=1), np.float32)

    @jax.jit
    @jax.grad
    def gradient(boxes):
        crop = partial(crop_and_resize, jnp.asarray(images, boxes.dtype), size=1)
        change = jax.jvp(crop, (boxes,), (jnp.ones_like(boxes),))[1]
        return jnp.sum(jnp.square(change))

    for offset in (1e-2, 1e-4, 1e-6):
        boxes = np.array([[0.2 + offset, 0.2, 4.6, 4.6]])  # the centre is 2.5
        exact = gradient(jnp.asarray(boxes))
        found = gradient(jnp.asarray(boxes, jnp.float32))
        assert_allclose(found, exact, rtol=1e-3, atol=1e-4)


def test_central_square_agrees_with_pillow_and_is_resampled_only_for_another_size():
    images = jnp.asarray(photographs(), jnp.float32) / 255
    for image, other in zip(
        central_square(images, size=20), photographs(), strict=True
    ):
        expected = pillow_crop(other, (0, 8, 48, 48), (20, 20), "lanczos3", calls=2)
        assert np.abs(image - expected).max() <= 2 / 255
    own = central_square(images, size=48)
    assert_array_equal(own, images[:, :, 8:56])
    jaxpr = jax.make_jaxpr(partial(central_square, size=4))(images)
    shapes = [v.aval.shape for e in jaxpr.eqns for v in e.outvars]
    assert (1, 4, 48) in shapes and (2, 4, 48) not in shapes  # weights for all images


IMAGES, BOX = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4))
CROP, SQUARE = partial(crop_and_resize, size=4), partial(central_square, size=4)
RANK, FLOATING = r"images must be \[B, H, W, C\]", "images must be floating.*found int"
SIZE, METHOD = "size must be an integer from 1 to 65536; found", "method must be one of"


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (CROP, (IMAGES[0], jnp.ones((8, 4))), RANK),
        (CROP, (IMAGES.astype(int), BOX), FLOATING),
        (CROP, (IMAGES, BOX[:, :3]), r"boxes must be \[2, 4\].*top, left, height"),
        (CROP, (IMAGES, BOX[:1]), r"boxes must be \[2, 4\]"),
        (partial(CROP, size=(3, -1)), (IMAGES, BOX), SIZE + " -1"),
        (partial(CROP, size=2.5), (IMAGES, BOX), SIZE + " 2.5"),
        (partial(CROP, size=10**12), (IMAGES, BOX), SIZE + " 10{12}"),
        (partial(CROP, size=(3, 3, 3)), (IMAGES, BOX), "one number or two"),
        (partial(CROP, method="cubic"), (IMAGES, BOX), METHOD + ".* found 'cubic'"),
        (partial(erase, value=(0.5, 0.1)), (IMAGES, BOX), "value must be one .* 3;"),
        (SQUARE, (IMAGES[0],), RANK),
        (partial(SQUARE, size=0), (IMAGES,), SIZE + " 0"),
        (partial(SQUARE, method="cubic"), (IMAGES,), METHOD + ".*lanczos3"),
        (affine, (IMAGES[0], jnp.ones((2, 5))), RANK),
        (affine, (IMAGES.astype(int), jnp.ones((2, 5))), FLOATING),
        (affine, (IMAGES, BOX), r"alpha must be \[2, 5\].*rotation, scaling"),
    ],
)
def test_bad_input_is_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def affine_alpha(dtype=np.float32, **values):
    """One row of alpha, the identity but for the given values."""
    named = dict(zip(AFFINE_NAMES, AFFINE_IDENTITY, strict=True)) | values
    return jnp.asarray([[named[name] for name in AFFINE_NAMES]], dtype)


def oracle_affine(image, alpha):
    """The forward map as a matrix, inverted; the four neighbours one by one."""
    rotation, scaling, shear, rows, columns = np.asarray(alpha, np.float64)
    cos, sin = math.cos(rotation), math.sin(rotation)
    turn = np.array([[cos, -sin], [sin, cos]])  # counterclockwise in (row, column)
    inverse = np.linalg.inv(scaling * turn @ np.array([[1, 0], [shear, 1]]))
    shape = np.array(image.shape[:2])
    center = (shape - 1) / 2
    out = np.zeros_like(image)
    for target in np.ndindex(*shape):
        offset = np.array(target) - center - shape * [rows, columns]
        source = inverse @ offset + center
        low = np.floor(source).astype(int)
        for corner in np.ndindex(2, 2):
            at = low + corner
            weight = np.prod(1 - np.abs(source - at))
            if np.all(at >= 0) and np.all(at < shape):
                out[target] += weight * image[tuple(at)]
    return out


def test_affine_equals_the_oracle(x64):
    images = make_images(4, 6, 9, channels=2)
    low = np.array([-2, 0.4, -0.6, -0.4, -0.4])
    alpha = np.random.default_rng(1).uniform(low, [2, 1.8, 0.6, 0.4, 0.4], (4, 5))
    found = jax.jit(affine)(jnp.asarray(images), jnp.asarray(alpha))
    expected = np.stack(list(map(oracle_affine, images, alpha)))
    assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_identity_is_exact_and_a_quarter_turn_is_counterclockwise():
    for shape in [(5, 5), (6, 9), (1, 2)]:
        images = jnp.asarray(make_images(1, *shape), jnp.float32)
        assert_array_equal(compiled_affine(images, affine_alpha()), images)
    images = jnp.asarray(make_images(1, 6, 6), jnp.float32)
    found = compiled_affine(images, affine_alpha(rotation=math.pi / 2))
    assert_allclose(found, jnp.rot90(images, axes=(1, 2)), rtol=0, atol=1e-5)


def test_derivatives_of_affine(x64):
    images = jnp.asarray(make_images(2, 4, 5, channels=1))
    alpha = jnp.array([[0.3, 1.1, 0.1, 0.03, -0.05], [-0.7, 0.8, -0.2, 0.11, 0.07]])
    along = jax.jit(partial(affine, images))
    check_grads(along, (alpha,), order=2)
    check_grads(jax.jit(affine), (images, alpha), order=1)


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_derivative_at_whole_numbers_is_that_to_the_increasing_side(shift, x64):
    images = jnp.asarray(make_images(1, 4, 4, channels=1))
    at = affine_alpha(np.float64, columns=shift / 4)
    alpha = jnp.array([[0.0, 0.0, 0.0, 0.0, -0.25]])
    change = jax.jvp(partial(affine, images), (at,), (alpha,))[1]
    # moving to the left, each pixel takes from its right neighbour, at last from black
    padded = jnp.pad(images, [(0, 0), (0, 0), (1, 2), (0, 0)])
    here, right = (padded[:, :, 1 - shift + i :][:, :, :4] for i in (0, 1))
    assert_allclose(change, right - here, rtol=0, atol=1e-12)


def test_affine_has_finite_derivatives_everywhere():
    special = [AFFINE_IDENTITY, (math.pi / 2, 1, 0, 0, 0), (0, 1, 0, 0.25, -0.25)]
    special += [(0, 1, 0, 5, 5), (0, 1e-3, 0, 0, 0), (0, 0, 0, 0, 0)]
    alpha = jnp.asarray(special, jnp.float32)
    images = jnp.asarray(make_images(len(special), 4, 4), jnp.float32)
    move = partial(affine, images)
    for values in (compiled_affine(images, alpha), *along_and_gradient(move, alpha)):
        assert jnp.isfinite(values).all()
