"""Crop and resize, flip, affine maps: values, agreement with Pillow, derivatives."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from PIL import Image
from sklearn.datasets import load_sample_images

from invariance_jax.transforms.geometry import (
    AFFINE_IDENTITY,
    AFFINE_NAMES,
    METHODS,
    affine,
    central_square,
    crop_and_resize,
    flip_horizontal,
)

PILLOW = {"lanczos3": Image.Resampling.LANCZOS, "bilinear": Image.Resampling.BILINEAR}

compiled_crop = jax.jit(crop_and_resize, static_argnames=["size", "method"])
compiled_affine = jax.jit(affine)


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    """The time of these tests is that of compiling, and not that of running."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@cache
def photographs() -> np.ndarray:
    """Pieces of two real photographs, uint8 [2, 48, 64, 3]."""
    pieces = [image[180:228, 250:314] for image in load_sample_images().images]
    return np.stack(pieces)


def make_images(batch_size: int, rows: int, columns: int, channels: int = 3) -> Any:
    generator = np.random.default_rng(rows)
    return generator.uniform(0.2, 0.8, (batch_size, rows, columns, channels))


def kernel(method: str, x: float) -> float:
    if method == "bilinear":
        return max(1 - abs(x), 0.0)
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0


def oracle_weights(
    start: float, length: float, pixels: int, out: int, method: str
) -> np.ndarray:
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


def oracle_crop(images: Any, boxes: Any, size: tuple, method: str) -> np.ndarray:
    found = []
    for image, (top, left, height, width) in zip(images, boxes, strict=True):
        across = oracle_weights(left, width, image.shape[1], size[1], method)
        down = oracle_weights(top, height, image.shape[0], size[0], method)
        image = np.clip(np.einsum("qw,hwc->hqc", across, image), 0, 1)
        found.append(np.clip(np.einsum("ph,hqc->pqc", down, image), 0, 1))
    return np.stack(found)


def pillow_crop(
    image: np.ndarray, box: Any, size: tuple, method: str, *, calls: int
) -> np.ndarray:
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
def test_whole_pixel_boxes_agree_with_pillow(box: tuple, method: str) -> None:
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
def test_real_boxes_equal_the_oracle(method: str, x64: None) -> None:
    images = np.random.default_rng(0).uniform(size=(4, 13, 10, 2))
    boxes = np.array(
        [
            [0.3, 0.7, 12.1, 8.9],
            [4.25, 1.5, 3.3, 2.2],
            [6.6, 7.1, 0.9, 0.4],
            [0, 2.5, 13, 7.5],
        ]
    )
    for size in [(5, 8), (16, 3)]:
        found = compiled_crop(
            jnp.asarray(images), jnp.asarray(boxes), size=size, method=method
        )
        assert found.dtype == jnp.float64
        expected = oracle_crop(images, boxes, size, method)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_one_number_is_the_size_of_both_sides() -> None:
    images = jnp.asarray(photographs(), jnp.float32) / 255
    boxes = jnp.array([[2.5, 3, 20, 40], [1, 1.5, 30, 20]])
    found = compiled_crop(images, boxes, size=7)
    np.testing.assert_array_equal(found, compiled_crop(images, boxes, size=(7, 7)))
    np.testing.assert_array_equal(found, compiled_crop(images, boxes, size=np.int64(7)))


@pytest.mark.parametrize("method", METHODS)
def test_the_whole_image_at_its_own_size_is_the_image(method: str, x64: None) -> None:
    images = jnp.asarray(make_images(2, 6, 7))
    boxes = jnp.tile(jnp.array([[0.0, 0.0, 6.0, 7.0]]), (2, 1))
    found = crop_and_resize(images, boxes, size=(6, 7), method=method)
    np.testing.assert_allclose(found, images, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_image_stays_constant(method: str) -> None:
    generator = np.random.default_rng(3)
    ends = np.sort(generator.uniform(0, 9, size=(40, 2, 2)), axis=1)
    boxes = jnp.asarray(np.concatenate([ends[:, 0], ends[:, 1] - ends[:, 0]], axis=1))
    found = compiled_crop(jnp.full((40, 9, 9, 1), 0.7), boxes, size=6, method=method)
    np.testing.assert_allclose(found, 0.7, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_continuous_where_an_edge_crosses_a_pixel(method: str, x64: None) -> None:
    images = jnp.asarray(make_images(1, 8, 8))
    whole = jnp.array([[2.0, 3.0, 4.0, 5.0]])
    crop = partial(compiled_crop, images, size=6, method=method)
    for column in range(4):
        step = 1e-7 * jnp.eye(4)[column : column + 1]
        for other in (whole + step, whole - step):
            np.testing.assert_allclose(crop(other), crop(whole), rtol=0, atol=1e-6)


def test_what_lies_outside_is_cut_off_and_nothing_is_black() -> None:
    images = jnp.asarray(photographs(), jnp.float32) / 255
    beyond = jnp.array([[-5.0, 10.0, 25.0, 20.0], [40.0, 60.0, 20.0, 9.0]])
    inside = jnp.array([[0.0, 10.0, 20.0, 20.0], [40.0, 60.0, 8.0, 4.0]])
    found = compiled_crop(images, beyond, size=8)
    np.testing.assert_allclose(found, compiled_crop(images, inside, size=8), atol=1e-6)
    empty = jnp.array([[-9.0, 5.0, 8.0, 5.0], [5.0, 5.0, 0.0, 5.0]])
    crop = partial(compiled_crop, images, size=8)
    np.testing.assert_array_equal(crop(empty), 0)
    along = jax.jvp(crop, (empty,), (jnp.ones_like(empty),))[1]
    np.testing.assert_array_equal(along, 0)


def smooth_crop(method: str) -> tuple[Callable, jax.Array, jax.Array]:
    """A crop, images and boxes at which nothing has a kink."""
    images = jnp.asarray(make_images(1, 5, 5, channels=1))
    boxes = jnp.array([[0.3, 0.2, 4.1, 1.4]])
    crop = jax.jit(partial(crop_and_resize, size=(2, 3), method=method))
    found = crop(images, boxes)
    assert found.min() > 0 and found.max() < 1
    return crop, images, boxes


def test_derivatives_of_the_crop_in_the_box(x64: None) -> None:
    crop, images, boxes = smooth_crop("lanczos3")
    check_grads(partial(crop, images), (boxes,), order=2, modes=["fwd", "rev"])


def test_derivatives_of_the_crop_in_images_and_box(x64: None) -> None:
    crop, *arguments = smooth_crop("bilinear")
    check_grads(crop, arguments, order=1, modes=["fwd", "rev"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "box",
    [(0, 0, 6, 6), (0, 0, 5, 3), (1, 2, 3, 2), (2, 3, 1, 1)],
    ids=["whole image", "corner", "inside", "one pixel"],
)
def test_derivative_at_whole_pixels_is_the_mean_of_both_sides(
    box: tuple, method: str, x64: None
) -> None:
    images = jnp.asarray(0.4 + make_images(1, 6, 6, channels=1) / 5)
    crop = partial(compiled_crop, images, size=4, method=method)
    at = jnp.asarray(box, jnp.float64)[None]
    for column in range(4):
        direction = jnp.eye(4)[column : column + 1]
        found = jax.jvp(crop, (at,), (direction,))[1]
        step = 1e-6 * direction
        expected = (crop(at + step) - crop(at - step)) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


LEVELS = {"black": 0.0, "grey": 0.5, "white": 1.0}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_extreme_images_and_boxes_have_finite_derivatives(
    level: float, method: str
) -> None:
    boxes = [[0, 0, 6, 6], [0, 0, 3, 6], [2, 1, 3, 3], [1, 1, 1, 1], [5.5, 0, 0.5, 6]]
    boxes = jnp.asarray([*boxes, [1, 1, 1e-3, 1e-3], [-1, -1, 9, 9]], jnp.float32)
    images = jnp.full((len(boxes), 6, 6, 1), level).at[:, 2, 2].set(1 - level)
    crop = partial(crop_and_resize, images, size=6, method=method)

    @jax.jit
    def derivatives(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
        def change(boxes: jax.Array) -> jax.Array:
            return jax.jvp(crop, (boxes,), (direction,))[1]

        gradient = jax.grad(lambda boxes: jnp.sum(jnp.square(change(boxes))))(boxes)
        return change(boxes), gradient

    for direction in (jnp.ones_like(boxes), jnp.zeros_like(boxes)):
        for values in derivatives(direction):  # along boxes, and through that
            assert jnp.isfinite(values).all()
            if not direction.any():
                np.testing.assert_array_equal(values, 0)


def test_second_derivatives_are_exact_next_to_the_centre_of_a_pixel(x64: None) -> None:
    # sin(y) / y of float32 would give noise of 1e-7 / offset^2 there
    images = np.asarray(make_images(1, 6, 6, channels=1), np.float32)

    @jax.jit
    @jax.grad
    def gradient(boxes: jax.Array) -> jax.Array:
        crop = partial(crop_and_resize, jnp.asarray(images, boxes.dtype), size=1)
        change = jax.jvp(crop, (boxes,), (jnp.ones_like(boxes),))[1]
        return jnp.sum(jnp.square(change))

    for offset in (1e-2, 1e-4, 1e-6):
        boxes = np.array([[0.2 + offset, 0.2, 4.6, 4.6]])  # the centre is 2.5
        exact = gradient(jnp.asarray(boxes))
        found = gradient(jnp.asarray(boxes, jnp.float32))
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4)


def test_eager_jit_and_vmap_of_the_crop_agree() -> None:
    images = jnp.asarray(make_images(3, 7, 8), jnp.float32)
    boxes = jnp.array([[0.5, 1, 5, 6], [1, 2, 3, 3], [2.2, 0.1, 2.5, 7]])
    expected = crop_and_resize(images, boxes, size=5)
    each = jax.vmap(lambda i, b: crop_and_resize(i[None], b[None], size=5)[0])
    for found in (each(images, boxes), compiled_crop(images, boxes, size=5)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"images": np.ones((2, 8, 8))}, r"images must be \[B, H, W, C\]"),
        ({"images": np.ones((2, 8, 8, 3), np.uint8)}, "images must be floating.*uint8"),
        ({"boxes": np.ones((2, 3))}, r"boxes must be \[2, 4\].*top, left, height"),
        ({"boxes": np.ones((3, 4))}, r"boxes must be \[2, 4\]"),
        ({"size": 0}, "size must be an integer of 1 or more; found 0"),
        ({"size": (3, -1)}, "size must be an integer of 1 or more; found -1"),
        ({"size": 2.5}, "size must be an integer of 1 or more; found 2.5"),
        ({"size": (3, 3, 3)}, "size must be one number or two"),
        ({"method": "cubic"}, "method must be one of .*lanczos3.* found 'cubic'"),
    ],
    ids=str,
)
def test_crop_and_resize_refuses(arguments: dict, message: str) -> None:
    images, boxes = np.ones((2, 8, 8, 3)), np.ones((2, 4))
    arguments = {"images": images, "boxes": boxes, "size": 4, **arguments}
    images, boxes = arguments.pop("images"), arguments.pop("boxes")
    with pytest.raises(ValueError, match=message):
        crop_and_resize(images, boxes, **arguments)


def test_central_square_agrees_with_pillow() -> None:
    images = jnp.asarray(photographs(), jnp.float32) / 255
    found = jax.jit(partial(central_square, size=20))(images)
    for image, other in zip(found, photographs(), strict=True):
        expected = pillow_crop(other, (0, 8, 48, 48), (20, 20), "lanczos3", calls=2)
        assert np.abs(image - expected).max() <= 2 / 255


def test_central_square_of_its_own_size_is_not_resampled() -> None:
    images = jnp.asarray(make_images(2, 5, 8), jnp.float32)
    found = central_square(images, size=5)
    np.testing.assert_array_equal(found, images[:, :, 1:6])
    np.testing.assert_array_equal(central_square(found, size=5), found)


def test_central_square_makes_one_pair_of_weights_for_all_images() -> None:
    images = jnp.asarray(make_images(9, 8, 8, channels=1), jnp.float32)
    jaxpr = jax.make_jaxpr(partial(central_square, size=4))(images)
    shapes = [v.aval.shape for e in jaxpr.eqns for v in e.outvars]
    assert (1, 4, 8) in shapes and (9, 4, 8) not in shapes


def test_central_square_refuses() -> None:
    images = jnp.ones((2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, C\]"):
        central_square(images[0], size=4)
    with pytest.raises(ValueError, match="size must be an integer .* found 0"):
        central_square(images, size=0)
    with pytest.raises(ValueError, match="method must be one of"):
        central_square(images, size=4, method="cubic")


def test_flip_exchanges_left_and_right_of_those_chosen() -> None:
    images = jnp.asarray(make_images(3, 4, 5))
    flip = jnp.array([True, False, True])
    found = flip_horizontal(images, flip)
    np.testing.assert_array_equal(found[1], images[1])
    np.testing.assert_array_equal(found[0], images[0, :, ::-1])
    np.testing.assert_array_equal(found[2], images[2, :, ::-1])
    np.testing.assert_array_equal(flip_horizontal(found, flip), images)
    np.testing.assert_array_equal(jax.jit(flip_horizontal)(images, flip), found)
    each = jax.vmap(lambda i, f: flip_horizontal(i[None], f[None])[0])
    np.testing.assert_array_equal(each(images, flip), found)


def test_derivative_of_the_flip(x64: None) -> None:
    images = jnp.asarray(make_images(2, 2, 3, channels=1))
    flip = partial(flip_horizontal, flip=jnp.array([True, False]))
    check_grads(flip, (images,), order=2, modes=["fwd", "rev"])


def test_flip_refuses() -> None:
    images = jnp.ones((2, 4, 4, 3))
    with pytest.raises(ValueError, match=r"flip must be bool \[2\].*found float32"):
        flip_horizontal(images, jnp.ones(2))
    with pytest.raises(ValueError, match=r"flip must be bool \[2\].*found bool \[3\]"):
        flip_horizontal(images, jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, C\]"):
        flip_horizontal(images[0], jnp.ones(4, bool))


def affine_alpha(dtype: Any = np.float32, **values: float) -> jax.Array:
    """One row of alpha, the identity but for the given values."""
    named = dict(zip(AFFINE_NAMES, AFFINE_IDENTITY, strict=True)) | values
    return jnp.asarray([[named[name] for name in AFFINE_NAMES]], dtype)


def oracle_affine(image: np.ndarray, alpha: Any) -> np.ndarray:
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


def test_affine_equals_the_oracle(x64: None) -> None:
    images = make_images(4, 6, 9, channels=2)
    low = np.array([-2, 0.4, -0.6, -0.4, -0.4])
    alpha = np.random.default_rng(1).uniform(low, [2, 1.8, 0.6, 0.4, 0.4], (4, 5))
    found = jax.jit(affine)(jnp.asarray(images), jnp.asarray(alpha))
    expected = np.stack(list(map(oracle_affine, images, alpha)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_identity_parameters_return_the_image_exactly() -> None:
    for shape in [(5, 5), (6, 9), (1, 2)]:
        images = jnp.asarray(make_images(1, *shape), jnp.float32)
        np.testing.assert_array_equal(compiled_affine(images, affine_alpha()), images)


def test_a_quarter_turn_is_counterclockwise() -> None:
    images = jnp.asarray(make_images(1, 6, 6), jnp.float32)
    found = compiled_affine(images, affine_alpha(rotation=math.pi / 2))
    expected = jnp.rot90(images, axes=(1, 2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_translation_moves_by_shares_of_the_sides_and_leaves_black() -> None:
    images = jnp.asarray(make_images(1, 8, 4), jnp.float32)
    found = compiled_affine(images, affine_alpha(rows=0.25, columns=-0.5))
    expected = jnp.zeros_like(images).at[:, 2:, :2].set(images[:, :6, 2:])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    gone = compiled_affine(images, affine_alpha(rows=3.0))
    np.testing.assert_array_equal(gone, 0)


def test_scaling_by_2_enlarges_about_the_centre() -> None:
    images = jnp.asarray(make_images(1, 7, 7), jnp.float32)
    found = compiled_affine(images, affine_alpha(scaling=2.0))
    np.testing.assert_allclose(found[:, 1::2, 1::2], images[:, 2:5, 2:5], atol=1e-6)


def test_shear_moves_columns_in_proportion_to_the_row() -> None:
    images = jnp.asarray(make_images(1, 3, 5), jnp.float32)
    found = compiled_affine(images, affine_alpha(shear=1.0))[0]
    np.testing.assert_array_equal(found[1], images[0, 1])
    np.testing.assert_array_equal(found[2, 1:], images[0, 2, :-1])  # below: right
    np.testing.assert_array_equal(found[0, :-1], images[0, 0, 1:])  # above: left


def test_derivatives_of_affine(x64: None) -> None:
    images = jnp.asarray(make_images(2, 4, 5, channels=1))
    alpha = jnp.array([[0.3, 1.1, 0.1, 0.03, -0.05], [-0.7, 0.8, -0.2, 0.11, 0.07]])
    along = jax.jit(partial(affine, images))
    check_grads(along, (alpha,), order=2, modes=["fwd", "rev"])
    check_grads(jax.jit(affine), (images, alpha), order=1, modes=["fwd", "rev"])


def test_derivative_at_the_identity_is_that_to_the_increasing_side(x64: None) -> None:
    images = jnp.asarray(make_images(1, 4, 4, channels=1))
    at, alpha = affine_alpha(np.float64), jnp.array([[0.0, 0.0, 0.0, 0.0, -0.25]])
    change = jax.jvp(partial(affine, images), (at,), (alpha,))[1]
    # moving to the left, each pixel takes from its right neighbour, at last from black
    right = jnp.pad(images, [(0, 0), (0, 0), (0, 1), (0, 0)])[:, :, 1:]
    np.testing.assert_allclose(change, right - images, rtol=0, atol=1e-12)


def test_affine_has_finite_derivatives_everywhere() -> None:
    special = [
        AFFINE_IDENTITY,
        (math.pi / 2, 1, 0, 0, 0),
        (0, 1, 0, 0.25, -0.25),
        (0, 1, 0, 5, 5),
        (0, 1e-3, 0, 0, 0),
        (0, 0, 0, 0, 0),
    ]
    alpha = jnp.asarray(special, jnp.float32)
    images = jnp.asarray(make_images(len(special), 4, 4), jnp.float32)

    def change(alpha: jax.Array) -> jax.Array:
        return jax.jvp(partial(affine, images), (alpha,), (jnp.ones_like(alpha),))[1]

    gradient = jax.grad(lambda alpha: jnp.sum(jnp.square(change(alpha))))
    for function in (partial(affine, images), change, gradient):
        values = jax.jit(function)(alpha)
        assert jnp.isfinite(values).all()


def test_eager_jit_and_vmap_of_affine_agree() -> None:
    images = jnp.asarray(make_images(2, 5, 4), jnp.float32)
    alpha = jnp.array([[0.3, 1.1, 0.1, 0.1, 0.2], [-0.4, 0.9, 0.2, 0.0, -0.1]])
    expected = affine(images, alpha)
    each = jax.vmap(lambda i, a: affine(i[None], a[None])[0])
    for found in (jax.jit(affine)(images, alpha), each(images, alpha)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def refuse_affine(images: Any, alpha: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        affine(images, alpha)


def test_affine_refuses() -> None:
    images, alpha = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 5))
    refuse_affine(images[0], alpha, r"images must be \[B, H, W, C\]")
    refuse_affine(images.astype(int), alpha, "images must be floating; |found int")
    refuse_affine(images, alpha[:, :4], r"alpha must be \[2, 5\].*rotation, scaling")


def test_every_function_takes_any_number_of_channels() -> None:
    functions: list[Callable] = [
        lambda i: crop_and_resize(i, jnp.full((2, 4), 2.0), size=3),
        lambda i: central_square(i, size=3),
        lambda i: flip_horizontal(i, jnp.array([True, False])),
        lambda i: affine(i, jnp.tile(affine_alpha(rotation=0.3), (2, 1))),
    ]
    images = jnp.asarray(make_images(2, 6, 6, channels=4), jnp.float32)
    for function in map(jax.jit, functions):
        each = [function(images[..., c : c + 1]) for c in range(4)]
        expected = jnp.concatenate(each, axis=-1)
        np.testing.assert_allclose(function(images), expected, rtol=0, atol=1e-6)
