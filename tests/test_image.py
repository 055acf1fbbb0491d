"""The transformation of images: operations in order, derivatives, refusals."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.evaluation.averaging import sample_view
from invariance_jax.transforms import (
    Transformation,
    View,
    check_transformation,
    color,
    distributions,
    geometry,
)
from invariance_jax.transforms.distributions import FAMILIES
from invariance_jax.transforms.image import make_transformation

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

PAPER = {
    "source_size": 8,
    "image_size": 8,
    "mean": MEAN,
    "std": STD,
    "strength": 0.5,
    "jitter_probability": 0.8,
    "gray_probability": 0.2,
    "crop": True,
    "flip": True,
}

# every operation is on
ALL = {
    **PAPER,
    "colorize": True,
    "rotation": 0.3,
    "scaling": 0.2,
    "shear": 0.1,
    "translation": 0.1,
}

# nothing is random but what a test adds
BARE = {
    **PAPER,
    "jitter_probability": 0.0,
    "gray_probability": 0.0,
    "crop": False,
    "flip": False,
}


def make(settings: dict, **changes: Any) -> Transformation:
    return make_transformation(**{**settings, **changes})


def make_x(batch_size: int, rows: int = 8, columns: int = 8, channels: int = 3) -> Any:
    generator = np.random.default_rng(batch_size)
    shape = (batch_size, rows, columns, channels)
    return jnp.asarray(generator.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture(autouse=True)
def quick_compilation() -> Iterator[None]:
    """The time of these tests is that of compiling, and not that of running."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def draw(transformation: Transformation, seed: int, batch_size: int) -> View:
    sample = jax.jit(transformation.sample, static_argnums=1)
    return sample(jax.random.key(seed), batch_size)


def show(transformation: Transformation, x: Any, view: View) -> jax.Array:
    return jax.jit(transformation.apply)(x, view)


def normalized(images: Any) -> jax.Array:
    mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (MEAN, STD))
    return (images - mean) / std


def assert_close(found: Any, expected: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


CHOICES = [choice for size in range(1, 4) for choice in combinations(FAMILIES, size)]


SWITCHES: dict[str, dict] = {
    "crop": {"crop": True},
    "affine": {"rotation": 0.3, "translation": 0.1},
    "colorize": {"colorize": True},
    "color": {"jitter_probability": 0.8},
}


@pytest.mark.parametrize("differentiate", CHOICES, ids="-".join)
def test_every_choice_of_one_to_three_passes_the_check(differentiate: tuple) -> None:
    changes: dict = {"differentiate": differentiate, "resampling": "bilinear"}
    for name in differentiate:
        changes |= SWITCHES[name]
    check_transformation(make(BARE, **changes), make_x(3))


def test_the_choice_of_all_passes_the_check() -> None:
    transformation = make(ALL, differentiate=FAMILIES, image_size=5)
    check_transformation(transformation, make_x(3))


def test_names_stand_in_one_order_whatever_the_order_of_the_choice() -> None:
    transformation = make(ALL, differentiate=FAMILIES[::-1])
    assert transformation.names == (
        *("crop.top", "crop.left", "crop.height", "crop.width"),
        *("affine.rotation", "affine.scaling", "affine.shear"),
        *("affine.rows", "affine.columns"),
        *("rfore", "rback", "gfore", "gback", "bfore", "bback"),
        *("brightness", "contrast", "saturation", "hue"),
    )
    bounds = dict(zip(transformation.names, transformation.bounds, strict=True))
    assert_close(bounds["affine.rotation"], [-0.3, 0.3])
    assert_close(bounds["affine.scaling"], [0.8, 1.2])
    assert_close(bounds["affine.columns"], [-0.1, 0.1])
    assert_close(bounds["gfore"], [0.4, 1])
    assert_close(bounds["bback"], [0, 0.6])
    assert_close(bounds["contrast"], [0.6, 1.4])
    assert_close(bounds["hue"], [-0.1, 0.1])
    low = 8 * math.sqrt(0.08 * 3 / 4)
    assert_close(bounds["crop.height"], [low, 8])
    assert_close(bounds["crop.left"], [0, 8 - low])


def test_colour_alone_is_differentiated_by_default() -> None:
    assert make(ALL).names == color.JITTER_NAMES


def test_draws_are_uniform_within_the_bounds() -> None:
    free = ("affine", "colorize", "color")
    transformation = make(ALL, differentiate=free)
    view = draw(transformation, 0, 4000)
    low, high = transformation.bounds.T
    unit = (np.asarray(view.alpha) - low) / (high - low)
    assert unit.min() > -1e-5 and unit.max() < 1 + 1e-5
    # 4 standard errors of the mean and the variance of a uniform distribution
    assert_close(unit.mean(axis=0), 1 / 2, 4 * 0.289 / 4000**0.5)
    assert_close(unit.var(axis=0), 1 / 12, 4 * 0.0745 / 4000**0.5)
    between = np.corrcoef(unit, rowvar=False) - np.eye(unit.shape[1])
    assert np.abs(between).max() < 5 / 4000**0.5


def test_gates_open_with_their_probabilities_independently() -> None:
    held = draw(make(PAPER), 1, 4000).held
    gates = np.stack([held[name] for name in ("flip", "jitter", "gray")], axis=1)
    expected = np.array([0.5, 0.8, 0.2])
    assert_close(gates.mean(axis=0), expected, 4 * 0.5 / 4000**0.5)
    assert np.abs(np.corrcoef(gates, rowvar=False) - np.eye(3)).max() < 5 / 4000**0.5


def test_a_probability_of_1_always_opens_and_of_0_draws_nothing() -> None:
    always = draw(make(BARE, jitter_probability=1.0), 0, 200)
    assert set(always.held) == {"jitter"} and always.held["jitter"].all()
    assert draw(make(BARE), 0, 2).held == {}


def test_the_choice_of_what_is_differentiated_does_not_change_the_draws() -> None:
    held = draw(make(ALL, differentiate=()), 4, 6).held
    free = ("affine", "colorize", "color")
    view = draw(make(ALL, differentiate=free), 4, 6)
    drawn = jnp.concatenate([held[name] for name in free], axis=1)
    np.testing.assert_array_equal(view.alpha, drawn)
    for name in ("crop", "flip", "jitter", "gray"):
        np.testing.assert_array_equal(view.held[name], held[name])
    x = make_x(6)
    one, other = make(ALL, differentiate=()), make(ALL, differentiate=free)
    empty = View(jnp.zeros((6, 0)), held)
    assert_close(show(one, x, empty), show(other, x, view), 1e-6)


def test_draws_depend_on_the_key_alone() -> None:
    sample = make(ALL).sample
    first, again, other = (sample(jax.random.key(k), 5) for k in (0, 0, 1))
    same = jax.tree.map(np.array_equal, first, again)
    assert all(jax.tree.leaves(same))
    assert not np.any(first.alpha == other.alpha)
    assert not np.array_equal(first.held["crop"], other.held["crop"])


def draw_boxes(family: distributions.Family, number: int) -> np.ndarray:
    shape = (number, family.num_uniform)
    unit = np.random.default_rng(number).uniform(size=shape)
    return np.asarray(jax.jit(family.draw)(unit.astype(np.float32)), np.float64)


def oracle_boxes(
    number: int,
    source: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    whole: bool,
    seed: int = 0,
) -> np.ndarray:
    """Random resized crop, one try after the other."""
    generator = np.random.default_rng(seed)
    rows, columns = source
    boxes = []
    for _ in range(number):
        for _ in range(10):
            target = rows * columns * generator.uniform(*area)
            ratio = math.exp(generator.uniform(*np.log(aspect)))
            width, height = math.sqrt(target * ratio), math.sqrt(target / ratio)
            if whole:
                width, height = round(width), round(height)
            if 0 < width <= columns and 0 < height <= rows:
                if whole:
                    top = generator.integers(0, rows - height + 1)
                    left = generator.integers(0, columns - width + 1)
                else:
                    top = generator.uniform(0, rows - height)
                    left = generator.uniform(0, columns - width)
                boxes.append((top, left, height, width))
                break
        else:
            width, height = float(columns), float(rows)
            if columns / rows < aspect[0]:
                height = width / aspect[0]
            elif columns / rows > aspect[1]:
                width = height * aspect[1]
            if whole:
                width, height = round(width), round(height)
            top, left = (rows - height) / 2, (columns - width) / 2
            if whole:
                top, left = top // 1, left // 1
            boxes.append((top, left, height, width))
    return np.array(boxes)


LAWS = {
    "paper": ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
    "tall image": ((40, 18), (0.3, 1.0), (3 / 4, 4 / 3)),
    "wide aspect, small image": ((5, 7), (0.05, 0.9), (0.4, 3.0)),
    "often the central box": ((9, 40), (0.3, 1.0), (1.0, 2.0)),
}


@pytest.mark.parametrize("whole", [True, False], ids=["whole pixels", "real"])
@pytest.mark.parametrize("distribution", LAWS.values(), ids=LAWS)
def test_boxes_follow_the_law_of_the_rejection_procedure(
    distribution: tuple, whole: bool
) -> None:
    source, area, aspect = distribution
    family = distributions.crop_family(
        source_size=source, area=area, aspect=aspect, whole_pixels=whole
    )
    number = 8000
    found = draw_boxes(family, number)
    expected = oracle_boxes(number, source, area, aspect, whole)

    def statistics(boxes: np.ndarray) -> np.ndarray:
        top, left, height, width = boxes.T
        share = height * width / (source[0] * source[1])
        ratio = np.log(width / height)
        columns = [share, share**2, ratio, ratio**2, top, left, height, width]
        return np.stack([*columns, top * height, left * width], axis=1)

    found_statistics, expected_statistics = statistics(found), statistics(expected)
    spread = expected_statistics.std(axis=0) * math.sqrt(2 / number)
    difference = found_statistics.mean(axis=0) - expected_statistics.mean(axis=0)
    assert np.all(np.abs(difference) <= 4.5 * spread + 1e-5)


@pytest.mark.parametrize("whole", [True, False], ids=["whole pixels", "real"])
@pytest.mark.parametrize("distribution", LAWS.values(), ids=LAWS)
def test_boxes_lie_inside_the_image_and_the_bounds(
    distribution: tuple, whole: bool
) -> None:
    source, area, aspect = distribution
    family = distributions.crop_family(
        source_size=source, area=area, aspect=aspect, whole_pixels=whole
    )
    boxes = draw_boxes(family, 3000)
    top, left, height, width = boxes.T
    assert np.all((top >= 0) & (left >= 0) & (height > 0) & (width > 0))
    assert np.all(top + height <= source[0] + 1e-4)
    assert np.all(left + width <= source[1] + 1e-4)
    low, high = family.bounds.T
    assert np.all((boxes >= low - 1e-4) & (boxes <= high + 1e-4))
    if whole:
        np.testing.assert_array_equal(boxes, np.round(boxes))
        # every place is used, the last one too
        assert np.any(top + height == source[0]) and np.any(top == 0)
    else:
        inside = (boxes != boxes.round()).any(axis=1)
        tolerance = 1e-4
        ratio = (width / height)[inside]
        assert np.all(ratio >= aspect[0] - tolerance)
        assert np.all(ratio <= aspect[1] + tolerance)


def test_mean_area_is_that_of_the_paper_law() -> None:
    # over the unit square of (area, log aspect) that fits, by a fine grid
    source, area, aspect = LAWS["paper"]
    share = np.linspace(*area, 2001)[:, None]
    stretch = np.exp(np.linspace(*np.log(aspect), 2001))[None] ** 0.5
    fits = (np.sqrt(share) * stretch <= 1) & (np.sqrt(share) / stretch <= 1)
    expected = (share * fits).sum() / fits.sum()
    family = distributions.crop_family(
        source_size=source, area=area, aspect=aspect, whole_pixels=False
    )
    boxes = draw_boxes(family, 20000)
    found = np.prod(boxes[:, 2:], axis=1) / 32**2
    assert abs(found.mean() - expected) < 4 * found.std() / 20000**0.5


def test_boxes_have_whole_pixels_unless_they_are_differentiated() -> None:
    held = draw(make(PAPER, source_size=32), 0, 100).held["crop"]
    np.testing.assert_array_equal(held, jnp.round(held))
    free = make(PAPER, source_size=32, differentiate=("crop",))
    alpha = draw(free, 0, 100).alpha
    assert jnp.mean(alpha != jnp.round(alpha)) > 0.95
    # else the same draws, but for boxes that fit by the rounding alone
    near = jnp.abs(alpha[:, 2:] - held[:, 2:]).max(axis=1) < 0.5 + 1e-4
    assert jnp.mean(near) > 0.85


def test_an_image_of_one_pixel_is_its_own_crop() -> None:
    transformation = make(PAPER, source_size=1)
    view = draw(transformation, 0, 50)
    np.testing.assert_array_equal(view.held["crop"], [[0, 0, 1, 1]] * 50)


def by_hand(x: Any, held: dict, size: int) -> jax.Array:
    """All operations in the order of the paper, from the public functions."""
    images = x.astype(jnp.float32) / 255
    images = geometry.crop_and_resize(images, held["crop"], size=size)
    images = geometry.flip_horizontal(images, held["flip"])
    images = geometry.affine(images, held["affine"])
    images = color.colorize(images, held["colorize"])
    jittered = color.jitter(images, held["color"])
    images = jnp.stack(
        [a if gate else b for a, b, gate in zip(jittered, images, held["jitter"])]  # noqa: B905
    )
    gray = color.to_grayscale(images)
    images = jnp.stack(
        [a if gate else b for a, b, gate in zip(gray, images, held["gray"])]  # noqa: B905
    )
    return normalized(images)


def test_operations_stand_in_the_documented_order() -> None:
    transformation = make(ALL, differentiate=(), gray_probability=0.5)
    x = make_x(8)
    view = draw(transformation, 3, 8)
    for gate in ("flip", "jitter", "gray"):
        assert 0 < view.held[gate].sum() < 8
    assert_close(show(transformation, x, view), by_hand(x, view.held, 8))


@pytest.mark.parametrize("method", geometry.METHODS)
def test_crop_only_views_are_resized_boxes(method: str) -> None:
    crop_only = make(BARE, crop=True, differentiate=(), resampling=method, image_size=6)
    view = draw(crop_only, 0, 5)
    assert view.alpha.shape == (5, 0) and set(view.held) == {"crop"}
    x = make_x(5)
    boxes = view.held["crop"]
    expected = geometry.crop_and_resize(x / 255, boxes, size=6, method=method)
    assert_close(show(crop_only, x, view), normalized(expected))


def test_colour_only_views_are_the_jittered_plain_image() -> None:
    colour_only = make(BARE, jitter_probability=1.0)
    x = make_x(4)
    view = draw(colour_only, 0, 4)
    expected = normalized(color.jitter(x.astype(jnp.float32) / 255, view.alpha))
    assert_close(show(colour_only, x, view), expected)


def test_colour_agrees_with_the_reference(reference: dict[str, np.ndarray]) -> None:
    transformation = make(
        BARE, jitter_probability=1.0, source_size=32, image_size=32, mean=[0], std=[1]
    )
    x, alpha, tangent = (
        jnp.asarray(reference[f"color_{name}"], jnp.float32)
        for name in ("image", "alpha", "tangent")
    )
    held = {"jitter": jnp.ones(4, bool)}
    images, change = jax.jvp(
        lambda alpha: transformation.apply(x, View(alpha, held)), (alpha,), (tangent,)
    )
    assert_close(images, reference["color_jitter"])
    assert_close(change, reference["color_jitter_jvp"], 1e-5 * 2)


def test_without_any_operation_a_view_is_the_plain_image_exactly() -> None:
    nothing = make(BARE, differentiate=())
    x = make_x(3)
    view = draw(nothing, 0, 3)
    expected = normalized(x.astype(jnp.float32) / 255)
    np.testing.assert_array_equal(nothing.apply(x, view), expected)
    np.testing.assert_array_equal(make(PAPER).plain(x), expected)


@pytest.mark.parametrize("size", [5, 8])
def test_plain_is_the_central_square(size: int) -> None:
    transformation = make(PAPER, source_size=(8, 11), image_size=size)
    x = make_x(2, 8, 11)
    square = x[:, :, 1:9].astype(jnp.float32) / 255
    expected = normalized(geometry.central_square(square, size=size))
    assert_close(transformation.plain(x), expected)


def test_one_channel_is_repeated_to_three() -> None:
    transformation = make(ALL, gray_probability=0.5)
    x = make_x(6, channels=1)
    view = draw(transformation, 0, 6)
    expected = show(transformation, jnp.repeat(x, 3, axis=-1), view)
    assert_close(show(transformation, x, view), expected, 1e-4)
    expected = transformation.plain(jnp.repeat(x, 3, axis=-1))
    np.testing.assert_array_equal(transformation.plain(x), expected)


def test_8_bit_and_floating_examples_give_the_same_views() -> None:
    transformation = make(PAPER)
    x = make_x(3)
    view = draw(transformation, 0, 3)
    found = show(transformation, x, view)
    assert found.dtype == jnp.float32
    floating = x.astype(jnp.float32) / 255
    assert_close(show(transformation, floating, view), found)
    assert_close(show(transformation, np.asarray(x), view), found)


def test_float64_examples_and_alpha_keep_their_dtype(x64: None) -> None:
    transformation = make(PAPER)
    view = draw(transformation, 0, 2)
    assert view.alpha.dtype == jnp.float32
    precise = View(view.alpha.astype(jnp.float64), view.held)
    for x in (make_x(2), make_x(2) / 255):
        assert jax.eval_shape(transformation.apply, x, precise).dtype == jnp.float64


def test_one_mean_and_deviation_serve_all_channels() -> None:
    x = make_x(2)
    found = make(BARE, mean=[0.3], std=[0.5]).plain(x)
    assert_close(found, (x / 255 - 0.3) / 0.5)


def test_colorize_draws_a_grey_image_and_plain_stays_grey() -> None:
    colored = make(BARE, colorize=True, differentiate=("colorize",))
    x = make_x(3, channels=1)
    view = draw(colored, 0, 3)
    level = x.astype(jnp.float32) / 255
    fore, back = view.alpha[:, None, None, 0::2], view.alpha[:, None, None, 1::2]
    expected = normalized(level * fore + (1 - level) * back)
    assert_close(show(colored, x, view), expected)
    plain = normalized(jnp.repeat(level, 3, axis=-1))
    np.testing.assert_array_equal(colored.plain(x), plain)


def test_flips_about_half() -> None:
    flipping = make(BARE, flip=True, differentiate=())
    x = make_x(20)
    view = draw(flipping, 0, 20)
    images, plain = show(flipping, x, view), flipping.plain(x)
    for image, still, flip in zip(images, plain, view.held["flip"], strict=True):
        np.testing.assert_array_equal(image, still[:, ::-1] if flip else still)
    assert 4 < view.held["flip"].sum() < 16


def test_jitter_of_strength_0_leaves_all_but_the_slip_of_the_hue() -> None:
    still = make(BARE, jitter_probability=1.0, strength=0.0)
    x = make_x(3)
    view = draw(still, 0, 3)
    difference = jnp.abs(show(still, x, view) - still.plain(x))
    assert difference.max() < 3e-3 / min(STD)


def along_and_gradient(
    transformation: Transformation, x: Any, view: View, directions: Sequence[jax.Array]
) -> list[tuple[jax.Array, jax.Array]]:
    """For each direction the change of the views, and the gradient of its square."""

    @jax.jit
    def both(direction: jax.Array) -> tuple[jax.Array, jax.Array]:
        def size(alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
            def apply(alpha: jax.Array) -> jax.Array:
                return transformation.apply(x, View(alpha, view.held))

            change = jax.jvp(apply, (alpha,), (direction,))[1]
            return jnp.sum(jnp.square(change)), change

        gradient, change = jax.grad(size, has_aux=True)(view.alpha)
        return change, gradient

    return [both(direction) for direction in directions]


def test_alpha_behind_a_closed_gate_has_no_effect_and_derivative_zero() -> None:
    transformation = make(BARE, jitter_probability=0.5)
    x, view = make_x(6), draw(transformation, 0, 6)
    gate = jnp.array([True, False, True, False, False, True])
    view = View(view.alpha, {"jitter": gate})
    direction = jnp.ones_like(view.alpha)
    [(change, gradient)] = along_and_gradient(transformation, x, view, [direction])
    assert jnp.all(jnp.abs(change[gate]).max(axis=(1, 2, 3)) > 0.1)
    np.testing.assert_array_equal(change[~gate], 0)
    np.testing.assert_array_equal(gradient[~gate], 0)
    assert jnp.all(gradient[gate] != 0)
    moved = View(view.alpha + direction / 10, view.held)
    same = show(transformation, x, moved) == show(transformation, x, view)
    assert same[~gate].all() and not same[gate].all()


def test_alpha_of_a_jitter_that_never_happens_has_no_effect() -> None:
    never = make(BARE)
    x, view = make_x(2), draw(never, 0, 2)
    assert never.names == color.JITTER_NAMES
    ones = jnp.ones_like(view.alpha)
    [(change, gradient)] = along_and_gradient(never, x, view, [ones])
    np.testing.assert_array_equal(change, 0)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(never.apply(x, view), never.plain(x))


@pytest.mark.parametrize("colorize", [False, True], ids=["plain", "colorized"])
def test_extreme_images_have_finite_derivatives(colorize: bool) -> None:
    free = ("crop", "affine", "color") + (("colorize",) if colorize else ())
    settings = {**ALL, "jitter_probability": 1.0, "colorize": colorize}
    transformation = make(settings, differentiate=free)
    levels = jnp.array([0, 128, 255, 0, 128, 255], jnp.uint8)
    x = jnp.broadcast_to(levels[:, None, None, None], (6, 8, 8, 3))
    drawn = draw(transformation, 0, 6)
    other = draw(transformation, 1, 6)
    # the whole image, no affine map, factors of 1: every kink and clip point
    still = [0, 0, 8, 8, *geometry.AFFINE_IDENTITY]
    still += [1, 0] * 3 * colorize + [1, 1, 1, 0]
    alpha = drawn.alpha.at[:3].set(jnp.asarray(still, jnp.float32)[None])
    view = View(alpha, drawn.held)
    assert jnp.isfinite(jax.jit(transformation.apply)(x, view)).all()
    directions = [other.alpha - alpha, jnp.zeros_like(alpha)]
    for values in along_and_gradient(transformation, x, view, directions):
        for value in values:
            assert jnp.isfinite(value).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_derivative_along_each_family_equals_differences(
    family: str, x64: None
) -> None:
    settings = {**ALL, "jitter_probability": 1.0, "gray_probability": 0.0}
    transformation = make(settings, differentiate=(family,), strength=0.2)
    x = 0.4 + 0.2 * make_x(3).astype(jnp.float64) / 255
    view = draw(transformation, 0, 3)
    alpha = view.alpha.astype(jnp.float64)
    direction = draw(transformation, 1, 3).alpha - alpha

    @jax.jit
    def apply(alpha: jax.Array) -> jax.Array:
        return transformation.apply(x, View(alpha, view.held))

    found = jax.jvp(apply, (alpha,), (direction,))[1]
    ahead, behind = (apply(alpha + step * direction) for step in (1e-6, -1e-6))
    assert jnp.abs(found).max() > 0.05
    assert_close(found, (ahead - behind) / 2e-6, 1e-5 * jnp.abs(found).max())


def test_eager_jit_and_vmap_agree() -> None:
    transformation = make(ALL, differentiate=FAMILIES)
    x = make_x(3)
    key = jax.random.key(0)
    view = transformation.sample(key, 3)
    jitted = jax.jit(transformation.sample, static_argnums=1)(key, 3)
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-6), jitted, view)
    expected = transformation.apply(x, view)
    assert_close(jax.jit(transformation.apply)(x, view), expected, 1e-4)

    def one(x: jax.Array, view: View) -> jax.Array:
        alone = jax.tree.map(lambda leaf: leaf[None], (x, view))
        return transformation.apply(*alone)[0]

    assert_close(jax.jit(jax.vmap(one))(x, view), expected, 1e-4)


@pytest.mark.parametrize("differentiate", [(), FAMILIES], ids=["P = 0", "all"])
def test_views_are_drawn_for_each_example_as_evaluation_does(
    differentiate: tuple,
) -> None:
    transformation = make(ALL, differentiate=differentiate)

    @jax.jit
    def draw_each(indices: jax.Array) -> View:
        return sample_view(jax.random.key(0), transformation, indices, view=2)

    both, alone = draw_each(jnp.array([7, 3])), draw_each(jnp.array([3]))
    assert both.alpha.shape == (2, len(transformation.names))
    jax.tree.map(lambda a, b: assert_close(a[1], b[0], 1e-6), both, alone)
    images = jax.jit(transformation.apply)(make_x(2), both)
    assert jnp.isfinite(images).all()


def test_examples_stay_8_bit_until_they_are_transformed() -> None:
    transformation = make(PAPER)
    view = draw(transformation, 0, 4)
    jaxpr = jax.make_jaxpr(transformation.apply)(make_x(4), view)
    assert jaxpr.in_avals[0].dtype == jnp.uint8


def refusal(settings: dict, message: str) -> Any:
    return pytest.param(settings, message, id=message[:40])


@pytest.mark.parametrize(
    "settings, message",
    [
        refusal({"differentiate": ("colour",)}, "unknown family 'colour'.*'color'"),
        refusal({"differentiate": ("color", "x")}, "unknown family 'x'; expected"),
        refusal({"differentiate": ("color",) * 2}, "must name 'color' once"),
        refusal({"differentiate": ("crop",), "crop": False}, "'crop', which is off"),
        refusal(
            {"differentiate": ("affine",)}, "'affine', which is off: give rotation"
        ),
        refusal(
            {"differentiate": ("colorize",)}, "'colorize', which is off: set color"
        ),
        refusal({"jitter_probability": 1.1}, r"jitter_probability must be in \[0, 1\]"),
        refusal(
            {"gray_probability": -0.1}, r"gray_probability must be in.* found -0.1"
        ),
        refusal({"strength": -0.1}, "strength must be in .* found -0.1"),
        refusal({"strength": 1.3}, "strength must be in .*negative.* found 1.3"),
        refusal({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        refusal({"std": (0.5,) * 4}, "std must be three finite numbers"),
        refusal({"mean": (0.5, math.nan, 0.5)}, r"mean must be in \[0, 1\]"),
        refusal({"mean": (127,)}, "mean must be in .*divide those of 8-bit .*found 12"),
        refusal({"std": (0.5, 0.0, 0.5)}, r"std must be in \(0, 1\]"),
        refusal({"std": (64.0,)}, "std must be in .*divide those of 8-bit .* found 64"),
        refusal({"flip": 0.5}, "flip must be True or False, and no prob.* found 0.5"),
        refusal({"crop": 1}, "crop must be True or False, and no probability; found 1"),
        refusal({"image_size": 0}, "image_size must be an integer of 1 or more; found"),
        refusal({"source_size": 0}, "source_size must be the positive rows"),
        refusal({"source_size": (8, 8, 3)}, "source_size must be the positive rows"),
        refusal({"resampling": "cubic"}, "resampling must be one of .* found 'cubic'"),
        refusal({"crop_area": (1.0, 0.08)}, "crop_area must be .*ordered"),
        refusal({"crop_area": (0.0, 1.0)}, "crop_area must be .*positive"),
        refusal({"crop_area": (0.5, 1.5)}, "crop_area must be .* at most 1"),
        refusal({"crop_area": (0.5,)}, "crop_area must be"),
        refusal({"crop_aspect": (2.0, 0.5)}, "crop_aspect must be .*ordered"),
        refusal({"crop_aspect": (-1.0, 0.5)}, "crop_aspect must be .*positive"),
        refusal({"crop_aspect": (1.0, math.inf)}, "crop_aspect must be"),
        refusal({"rotation": -0.1}, r"rotation must be in \[0, 3.14159\]"),
        refusal({"rotation": 30.0}, "rotation .* radians, not degrees; found 30.0"),
        refusal({"scaling": 1.0}, r"scaling must be in \[0, 0.99.*; found 1.0"),
        refusal({"shear": math.nan}, r"shear must be in \[0, 2\]"),
        refusal({"shear": 10.0}, "shear must be .* a slope, not degrees; found 10.0"),
        refusal({"translation": math.inf}, r"translation must be in \[0, 1\]"),
        refusal({"translation": 4}, "translation .*shares of the sides, not pixels"),
    ],
)
def test_make_transformation_refuses(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(PAPER, **settings)


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((2, 9, 8, 3), np.uint8, r"x must be \[B, 8, 8, 1 or 3\].* \[2, 9, 8, 3\]"),
        ((2, 8, 8, 2), np.uint8, r"x must be \[B, 8, 8, 1 or 3\]"),
        ((2, 8, 8), np.uint8, r"x must be \[B, 8, 8, 1 or 3\]"),
        ((2, 8, 8, 3), np.int32, "x must be uint8, or floating .* found int32"),
        ((2, 8, 8, 3), bool, "x must be uint8, or floating .* found bool"),
    ],
)
def test_apply_and_plain_refuse_other_examples(
    shape: tuple, dtype: Any, message: str
) -> None:
    transformation = make(PAPER)
    view = draw(transformation, 0, 2)
    x = jnp.zeros(shape, dtype)
    with pytest.raises(ValueError, match=message):
        transformation.apply(x, view)
    with pytest.raises(ValueError, match=message):
        transformation.plain(x)
    with pytest.raises(ValueError, match=message):
        jax.jit(transformation.apply).lower(x, view)


def refuse_view(alpha: Any, held: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(PAPER).apply(make_x(2), View(alpha, held))


def test_apply_refuses_another_view() -> None:
    alpha, held = draw(make(PAPER), 0, 2)
    refuse_view(alpha[:, :3], held, r"alpha must be \[2, 4\]")
    refuse_view(alpha[:1], held, r"alpha must be \[2, 4\]")
    refuse_view(alpha, (), r"view.held must have \['crop', 'flip', 'gray', 'jitter'\]")
    without: Sequence[str] = [name for name in held if name != "flip"]
    refuse_view(alpha, {name: held[name] for name in without}, "view.held must have")
