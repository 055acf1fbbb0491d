"""The transformation of images: operations in order, derivatives, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import along_and_gradient
from numpy.testing import assert_allclose, assert_array_equal
from reference import assert_uniform

from invariance_jax.transforms import (
    Operation,
    View,
    check_transformation,
    color,
    compose,
    geometry,
    uniform_family,
)
from invariance_jax.transforms.blur import gaussian_blur
from invariance_jax.transforms.image import FAMILIES, make_transformation

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

ALL = {**PAPER, "colorize": True}  # every operation is on
ALL |= {"rotation": 0.3, "scaling": 0.2, "shear": 0.1, "translation": 0.1}
ALL |= {f"{name}_probability": 0.5 for name in ("blur", "solarize", "erase")}

# nothing is random but what a test adds
BARE = {**PAPER, "jitter_probability": 0.0, "gray_probability": 0.0}
BARE |= {"crop": False, "flip": False}


def make(settings, **changes):
    return make_transformation(**{**settings, **changes})


def make_x(batch_size, rows=8, columns=8, channels=3):
    generator = np.random.default_rng(batch_size)
    shape = (batch_size, rows, columns, channels)
    return jnp.asarray(generator.integers(0, 256, shape, dtype=np.uint8))


def draw(transformation, seed, batch_size):
    sample = jax.jit(transformation.sample, static_argnums=1)
    return sample(jax.random.key(seed), batch_size)


def show(transformation, x, view):
    return jax.jit(transformation.apply)(x, view)


def along(transformation, x, view):
    """The views as a function of alpha."""
    return lambda alpha: transformation.apply(x, View(alpha, view.held))


def normalized(images):
    mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (MEAN, STD))
    return (images - mean) / std


def assert_close(found, expected, atol=1e-5):
    assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "settings, families",
    [
        ({"crop": True, "resampling": "bilinear"}, ("crop",)),
        ({"rotation": 0.3, "translation": 0.1}, ("affine",)),
        ({"colorize": True, "jitter_probability": 0.8}, ("colorize", "color")),
        ({**ALL, "image_size": 5}, FAMILIES),
    ],
    ids=["crop", "affine", "colours", "all"],
)
def test_every_family_passes_the_check(settings, families):
    check_transformation(make(BARE, **settings, differentiate=families), make_x(3))


def test_names_stand_in_one_order_whatever_the_order_of_the_choice():
    assert make(ALL).names == color.JITTER_NAMES  # the default
    transformation = make(ALL, differentiate=FAMILIES[::-1])
    low, turn = 8 * math.sqrt(0.08 * 3 / 4), (-0.3, 0.3)
    expected = {"crop.top": (0, 8 - low), "crop.left": (0, 8 - low)}
    expected |= {"crop.height": (low, 8), "crop.width": (low, 8)}
    expected |= {"affine.rotation": turn, "affine.scaling": (0.8, 1.2)}
    expected |= {f"affine.{n}": (-0.1, 0.1) for n in ("shear", "rows", "columns")}
    for channel in "rgb":
        expected |= {f"{channel}fore": (0.4, 1), f"{channel}back": (0, 0.6)}
    expected |= {n: (0.6, 1.4) for n in ("brightness", "contrast", "saturation")}
    expected |= {"hue": (-0.1, 0.1), "blur.sigma": (0.1, 2)}
    assert transformation.names == tuple(expected)
    assert_close(transformation.bounds, list(expected.values()))


def test_draws_are_uniform_within_the_bounds():
    free = ("affine", "colorize", "color")
    transformation = make(ALL, differentiate=free)
    view = draw(transformation, 0, 4000)
    low, high = transformation.bounds.T
    assert_uniform((np.asarray(view.alpha) - low) / (high - low))


def test_gates_open_with_their_probabilities_independently():
    held = draw(make(PAPER), 1, 4000).held
    gates = np.stack([held["acts"][n] for n in ("flip", "color", "gray")], axis=1)
    assert_close(gates.mean(axis=0), [0.5, 0.8, 0.2], 4 * 0.5 / 4000**0.5)
    assert np.abs(np.corrcoef(gates, rowvar=False) - np.eye(3)).max() < 5 / 4000**0.5
    always = draw(make(BARE, jitter_probability=1.0), 0, 200)
    assert set(always.held["acts"]) == {"color"} and always.held["acts"]["color"].all()
    assert draw(make(BARE), 0, 2).held == {"acts": {}}


def test_a_probability_is_a_number_and_no_switch():
    for pair in ([1.0, 0.1], np.array([1.0, 0.1])):  # of any type
        make(BARE, blur_probability=pair)
    for wrong in (True, (0.5, True), "", (0.5,)):
        with pytest.raises(ValueError, match="blur_probability must be"):
            make(BARE, blur_probability=wrong)


def test_the_second_view_has_probabilities_of_its_own():
    both = make(BARE, blur_probability=(1.0, 0.0), solarize_probability=(0.0, 0.3))
    first, second = (
        both.sampler(None, 2000, second=one)(jax.random.key(0)) for one in (False, True)
    )
    assert first.held["acts"]["blur"].all() and not second.held["acts"]["blur"].any()
    assert not first.held["acts"]["solarize"].any()
    share = second.held["acts"]["solarize"].mean()
    assert_close(share, 0.3, 4 * 0.46 / 2000**0.5)
    jax.tree.map(assert_array_equal, first.held["blur"], second.held["blur"])
    assert make(ALL).sample_for is None


def test_the_ranges_of_the_jitter_are_those_asked_for():
    transformation = make(PAPER, jitter_ranges=(0.8, 0.8, 0.4, 0.2))
    expected = [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]
    assert_close(transformation.bounds, expected)


def test_own_operations_are_composed():
    def brighten(images, factor):
        return images * factor[:, :, None, None]

    family = uniform_family(bounds={"factor": (0.5, 1.0)})
    mirror = Operation("mirror", lambda images, _: images[:, :, ::-1], probability=0.5)
    transformation = compose(
        [Operation("brighten", brighten, family, 0.7), mirror],
        differentiate=("brighten",),
    )
    x = make_x(4).astype(jnp.float32) / 255
    check_transformation(transformation, x)
    view = draw(transformation, 1, 4)
    acts = view.held["acts"]
    assert 0 < acts["mirror"].sum() < 4 and 0 < acts["brighten"].sum() < 4
    factor = jnp.where(acts["brighten"][:, None], view.alpha, 1)
    expected = np.array(brighten(x, factor))
    expected[acts["mirror"]] = expected[acts["mirror"], :, ::-1]
    assert_close(show(transformation, x, view), expected)
    with pytest.raises(ValueError, match="differentiate is .*'mirror'"):
        compose([mirror], differentiate=("mirror",))
    with pytest.raises(ValueError, match="mirror_probability must be in"):
        compose([mirror._replace(probability=1.5)], differentiate=())


def test_an_own_operation_stands_before_the_normalization():
    def gamma(images, exponent):
        return jnp.maximum(images, 1e-3) ** exponent[:, :, None, None]

    own = Operation("gamma", gamma, uniform_family(bounds={"gamma": (0.5, 2.0)}))
    bare = {**BARE, "differentiate": ("gamma",)}
    transformation = make(bare, more=[own])
    x = make_x(4)
    check_transformation(transformation, x)
    view = draw(transformation, 1, 4)
    assert transformation.names == ("gamma",)
    expected = normalized(gamma(x.astype(jnp.float32) / 255, view.alpha))
    assert_close(show(transformation, x, view), expected)
    with pytest.raises(ValueError, match="differentiate is .*'hue'.*: gamma"):
        make({**bare, "differentiate": ("gamma", "hue")}, more=[own])
    with pytest.raises(ValueError, match="differentiate is .*None"):
        make({**bare, "differentiate": ("gamma", None)}, more=[own])


@pytest.mark.parametrize("pair", [(1.0, 0.5), (0.5,), (0.0, np.inf)])
def test_a_uniform_family_needs_a_pair_for_each_name(pair):
    with pytest.raises(ValueError, match=r"bounds of 'gamma' must be \(least, great"):
        uniform_family(bounds={"gamma": pair})


def test_the_choice_of_what_is_differentiated_does_not_change_the_draws():
    held = draw(make(ALL, differentiate=()), 4, 6).held
    free = ("affine", "colorize", "color")
    view = draw(make(ALL, differentiate=free), 4, 6)
    drawn = jnp.concatenate([held[name] for name in free], axis=1)
    assert_array_equal(view.alpha, drawn)
    for name in ("crop", "acts"):
        jax.tree.map(assert_array_equal, view.held[name], held[name])
    x = make_x(6)
    one, other = make(ALL, differentiate=()), make(ALL, differentiate=free)
    empty = View(jnp.zeros((6, 0)), held)
    assert_close(show(one, x, empty), show(other, x, view), 1e-6)


def test_boxes_have_whole_pixels_unless_they_are_differentiated():
    held = draw(make(PAPER, source_size=32), 0, 100).held["crop"]
    assert_array_equal(held, jnp.round(held))
    free = make(PAPER, source_size=32, differentiate=("crop",))
    alpha = draw(free, 0, 100).alpha
    assert jnp.mean(alpha != jnp.round(alpha)) > 0.95
    # else the same draws, but for boxes that fit by the rounding alone
    near = jnp.abs(alpha[:, 2:] - held[:, 2:]).max(axis=1) < 0.5 + 1e-4
    assert jnp.mean(near) > 0.85
    one = draw(make(PAPER, source_size=1), 0, 50)  # a pixel is its own crop
    assert_array_equal(one.held["crop"], [[0, 0, 1, 1]] * 50)


def erased_by_hand(images, boxes):
    """The mean colour in every box, one after the other."""
    images = np.array(images)
    for image, box in zip(images, boxes.astype(int), strict=True):
        top, left, height, width = box
        image[top : top + height, left : left + width] = MEAN
    return images


def by_hand(x, held, **resizing):
    """All operations in the order of the paper, from the public functions."""

    def gated(name, changed, images):
        return jnp.where(held["acts"][name][:, None, None, None], changed, images)

    images = x.astype(jnp.float32) / 255
    images = geometry.crop_and_resize(images, held["crop"], **resizing)
    images = gated("flip", images[:, :, ::-1], images)
    images = geometry.affine(images, held["affine"])
    images = color.colorize(images, held["colorize"])
    images = gated("color", color.jitter(images, held["color"]), images)
    images = gated("gray", color.to_grayscale(images), images)
    images = gated("blur", gaussian_blur(images, held["blur"][:, 0]), images)
    inverted = color.solarize(images, jnp.full(len(x), 0.5))
    images = gated("solarize", inverted, images)
    return normalized(gated("erase", erased_by_hand(images, held["erase"]), images))


def test_operations_stand_in_the_documented_order():
    settings = {"image_size": 6, "resampling": "bilinear", "gray_probability": 0.5}
    transformation = make(ALL, **settings, differentiate=())
    x = make_x(8)
    view = draw(transformation, 3, 8)
    for gate in ("flip", "color", "gray", "blur", "solarize", "erase"):
        assert 0 < view.held["acts"][gate].sum() < 8
    expected = by_hand(x, view.held, size=6, method="bilinear")
    assert_close(show(transformation, x, view), expected)


def test_without_any_operation_a_view_is_the_plain_image_exactly():
    x = make_x(3)
    expected = normalized(x.astype(jnp.float32) / 255)
    nothing = make(BARE, differentiate=())
    assert_array_equal(nothing.apply(x, draw(nothing, 0, 3)), expected)
    assert_array_equal(make(PAPER).plain(x), expected)
    one = make(BARE, mean=[0.3], std=[0.5])  # for all channels
    assert_close(one.plain(x), (x / 255 - 0.3) / 0.5)
    never = make(BARE)  # a jitter that never happens: alpha has no effect
    assert never.names == color.JITTER_NAMES
    view = draw(never, 0, 3)
    found = along_and_gradient(along(never, x, view), view.alpha)
    assert not any(leaf.any() for leaf in found)
    assert_array_equal(never.apply(x, view), expected)


@pytest.mark.parametrize("size", [5, 8])
def test_plain_is_the_central_square(size):
    transformation = make(PAPER, source_size=(8, 11), image_size=size)
    x = make_x(2, 8, 11)
    square = x[:, :, 1:9].astype(jnp.float32) / 255
    expected = normalized(geometry.central_square(square, size=size))
    assert_close(transformation.plain(x), expected)


def test_one_channel_is_repeated_to_three():
    transformation = make(ALL, gray_probability=0.5)
    x = make_x(6, channels=1)
    view, repeated = draw(transformation, 0, 6), jnp.repeat(x, 3, axis=-1)
    expected = show(transformation, repeated, view)
    assert_close(show(transformation, x, view), expected, 1e-4)
    assert_close(transformation.plain(x), transformation.plain(repeated))


def test_8_bit_and_floating_examples_give_the_same_views():
    transformation, x = make(PAPER), make_x(3)
    view = draw(transformation, 0, 3)
    found = show(transformation, x, view)
    assert found.dtype == jnp.float32
    for same in (x.astype(jnp.float32) / 255, np.asarray(x)):
        assert_close(show(transformation, same, view), found)


def test_alpha_behind_a_closed_gate_has_no_effect_and_derivative_zero():
    transformation = make(BARE, jitter_probability=0.5)
    x, view = make_x(6), draw(transformation, 0, 6)
    gate = jnp.array([True, False, True, False, False, True])
    view = View(view.alpha, {"acts": {"color": gate}})
    images = along(transformation, x, view)
    change, gradient = along_and_gradient(images, view.alpha)
    assert jnp.all(jnp.abs(change[gate]).max(axis=(1, 2, 3)) > 0.1)
    assert_array_equal(change[~gate], 0)
    assert_array_equal(gradient[~gate], 0)
    assert jnp.all(gradient[gate] != 0)
    moved = View(view.alpha + 0.1, view.held)
    same = show(transformation, x, moved) == show(transformation, x, view)
    assert same[~gate].all() and not same[gate].all()


@pytest.mark.parametrize("family", FAMILIES)
def test_derivative_along_each_family_equals_differences(family, x64):
    settings = {**ALL, "jitter_probability": 1.0, "gray_probability": 0.0}
    transformation = make(settings, differentiate=(family,), strength=0.2)
    x = 0.4 + 0.2 * make_x(3).astype(jnp.float64) / 255
    view = draw(transformation, 0, 3)
    alpha = view.alpha.astype(jnp.float64)
    direction = draw(transformation, 1, 3).alpha - alpha

    apply = jax.jit(along(transformation, x, view))
    found = jax.jvp(apply, (alpha,), (direction,))[1]
    ahead, behind = (apply(alpha + step * direction) for step in (1e-6, -1e-6))
    assert jnp.abs(found).max() > 0.05
    assert_close(found, (ahead - behind) / 2e-6, 1e-5 * jnp.abs(found).max())


IN_01 = r"must be in \[0, 1\]"
EIGHT_BITS = "must be in .*divide those of 8-bit .*found"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"differentiate": ("colour",)}, "'colour'.* expected, .*: crop, color"),
        ({"differentiate": ("color",) * 2}, "'color', 'color'.* expected, each once"),
        ({"differentiate": ("crop",), "crop": False}, "'crop', which is off: set crop"),
        ({"differentiate": ("affine",)}, "'affine', which is off: give rotation"),
        ({"differentiate": ("colorize",)}, "'colorize', which is off: set color"),
        ({"jitter_probability": 1.1}, f"jitter_probability {IN_01}"),
        ({"gray_probability": -0.1}, "gray_probability must be in.* found -0.1"),
        ({"strength": -0.1}, "strength must be in .* found -0.1"),
        ({"strength": 1.3}, "strength must be in .*negative.* found 1.3"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"mean": (0.5, math.nan, 0.5)}, f"mean {IN_01}"),
        ({"mean": (127,)}, f"mean {EIGHT_BITS} 127"),
        ({"std": (0.5, 0.0, 0.5)}, r"std must be in \(0, 1\]"),
        ({"std": (64.0,)}, f"std {EIGHT_BITS} 64"),
        ({"flip": 0.5}, "flip must be True or False, not a prob.* found 0.5"),
        ({"crop": 1}, "crop must be True or False, not a probability; found 1"),
        ({"image_size": 0}, "image_size must be an integer of 1 or more; found"),
        ({"source_size": 0}, "source_size must be the positive rows"),
        ({"source_size": (8, 8, 3)}, "source_size must be the positive rows"),
        ({"resampling": "cubic"}, "resampling must be one of .* found 'cubic'"),
        ({"crop_area": (1.0, 0.08)}, "crop_area must be .*ordered"),
        ({"crop_area": (0.0, 1.0)}, "crop_area must be .*positive"),
        ({"crop_area": (0.5, 1.5)}, "crop_area must be .* at most 1"),
        ({"crop_area": (0.5,)}, "crop_area must be"),
        ({"crop_area": 0.5}, "crop_area must be .* found 0.5"),
        ({"crop_area": ("a", "b")}, "crop_area must be"),
        ({"jitter_ranges": 0.4}, "jitter_ranges must be four numbers; found 0.4"),
        ({"crop_aspect": (-1.0, 0.5)}, "crop_aspect must be .*positive"),
        ({"crop_aspect": (1.0, math.inf)}, "crop_aspect must be"),
        ({"rotation": 30.0}, "rotation .*3.14159.* radians, not degrees; found 30.0"),
        ({"scaling": 1.0}, r"scaling must be in \[0, 0.99.*; found 1.0"),
        ({"shear": math.nan}, r"shear must be in \[0, 2\]"),
        ({"shear": 10.0}, "shear must be .* a slope, not degrees; found 10.0"),
        ({"translation": 4}, f"translation {IN_01}.*fractions of the sides, not pix"),
    ],
    ids=str,
)
def test_make_transformation_refuses(settings, message):
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
def test_apply_and_plain_refuse_other_examples(shape, dtype, message):
    transformation, x = make(PAPER), jnp.zeros(shape, dtype)
    view = draw(transformation, 0, 2)
    for call in (transformation.plain, lambda x: transformation.apply(x, view)):
        with pytest.raises(ValueError, match=message):
            call(x)
        with pytest.raises(ValueError, match=message):
            jax.jit(call).lower(x)


def test_apply_refuses_another_view():
    alpha, held = draw(make(PAPER), 0, 2)
    names = r"view.held must have the keys \['acts', 'crop'\], and 'acts' the keys "
    names += r"\['color', 'flip'"
    for view, message in [
        (View(alpha[:, :3], held), r"alpha must be \[2, 4\]"),
        (View(alpha[:1], held), r"alpha must be \[2, 4\]"),
        (View(alpha, {}), names),
        (View(alpha, {"crop": held["crop"]}), names),
    ]:
        with pytest.raises(ValueError, match=message):
            make(PAPER).apply(make_x(2), view)
