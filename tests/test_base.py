"""check_transformation: each promise of the protocol, kept and broken."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.transforms import Transformation, View, check_transformation

SIZE = 4


def sample(key, batch_size):
    """A brightness in [0.5, 1.5], and whether to mirror."""
    alpha_key, mirror_key = jax.random.split(key)
    alpha = jax.random.uniform(alpha_key, (batch_size, 1), minval=0.5, maxval=1.5)
    return View(alpha, {"mirror": jax.random.bernoulli(mirror_key, 0.5, (batch_size,))})


def apply(x, view):
    """The brightened, perhaps mirrored images."""
    mirrored = jnp.where(
        view.held["mirror"][:, None, None, None], x["images"][:, :, ::-1], x["images"]
    )
    return view.alpha[:, :, None, None] ** 2 * mirrored


GOOD = Transformation(
    ("brightness",), np.array([[0.5, 1.5]]), sample, apply, lambda x: x["images"]
)


def make_x(batch_size=4):
    """A pytree whose leaves share the leading axis, one of them of whole numbers."""
    images = np.random.default_rng(0).uniform(size=(batch_size, SIZE, SIZE, 3))
    labels = np.arange(batch_size)
    return {"images": jnp.asarray(images, jnp.float32), "labels": labels}


def test_one_of_ones_own_passes_with_and_without_a_plain_image_and_held_choices():
    check_transformation(GOOD, make_x())
    bright = replace(
        GOOD,
        sample=lambda key, batch_size: View(sample(key, batch_size).alpha),
        apply=lambda x, view: view.alpha[:, :, None, None] * x["images"],
        plain=None,
    )
    check_transformation(bright, make_x())


def test_draws_in_float64_pass(x64):
    check_transformation(GOOD, make_x())


def test_a_gate_that_is_mostly_off_passes():
    def gated(x, view):
        bright = view.alpha[:, :, None, None] * x["images"]
        return jnp.where(view.held[:, None, None, None], bright, x["images"])

    def sample(key, batch_size):
        alpha = jax.random.uniform(key, (batch_size, 1))
        return View(alpha, jax.random.bernoulli(key, 0.1, (batch_size,)))

    unit = np.array([[0.0, 1.0]])
    check_transformation(Transformation(("b",), unit, sample, gated), make_x(3))


def test_a_column_fixed_by_its_bounds_passes():
    two = with_two_columns(lambda alpha: alpha.at[:, 1].set(0.5))
    fixed = replace(two, bounds=np.array([[0.0, 1.0], [0.5, 0.5]]))

    def sample(key, batch_size):
        return View(two.sample(key, batch_size).alpha.at[:, 1].set(0.5))

    check_transformation(replace(fixed, sample=sample), make_x())


def test_other_seeds_draw_other_views():
    alphas = set()

    def record(x, view):
        jax.debug.callback(lambda alpha: alphas.add(float(alpha)), view.alpha[0, 0])
        return apply(x, view)

    check_transformation(replace(GOOD, apply=record), make_x(), seed=0)
    first = set(alphas)
    check_transformation(replace(GOOD, apply=record), make_x(), seed=1)
    assert len(alphas) > len(first)


def with_view(change):
    """GOOD with a changed view."""
    return replace(GOOD, sample=lambda *args: change(sample(*args)))


def with_views(change):
    """GOOD with a sampler whose views depend on their number."""

    def sample_for(key, batch_size, *, second, sizes):
        return change(sample(key, batch_size), second)

    return replace(GOOD, sample_for=sample_for)


def test_second_views_may_all_have_the_same_alpha():
    def change(view, second):
        return view._replace(alpha=jnp.ones_like(view.alpha)) if second else view

    check_transformation(with_views(change), make_x())


def with_images(change):
    """GOOD with changed images."""
    return replace(GOOD, apply=lambda x, view: change(apply(x, view)))


def with_both(change):
    """GOOD whose images follow from images and alpha."""
    return replace(GOOD, apply=lambda x, view: change(apply(x, view), view.alpha))


def with_plain(change):
    """GOOD with changed plain images."""
    return replace(GOOD, plain=lambda x: change(x["images"]))


def with_two_columns(change):
    """A brightness and a contrast, and a change of them."""

    def sample(key, batch_size):
        return View(jax.random.uniform(key, (batch_size, 2)))

    def apply(x, view):
        first, second = jnp.split(change(view.alpha)[:, :, None, None], 2, axis=1)
        return first * x["images"] + second * x["images"] ** 2

    names, bounds = ("brightness", "contrast"), np.array([[0.0, 1.0]] * 2)
    return Transformation(names, bounds, sample, apply)


@jax.custom_jvp
def half_derivative(alpha):
    """The identity, with half its derivative."""
    return alpha


half_derivative.defjvp(lambda primals, tangents: (primals[0], tangents[0] / 2))


def halved(view):
    return view._replace(alpha=half_derivative(view.alpha))


@jax.custom_vjp
def reverse_only(images):
    """The identity, with a rule for reverse mode only."""
    return images


reverse_only.defvjp(lambda images: (images, None), lambda _, g: (g,))


def forward_only(images):
    """The identity through a loop that has no reverse mode."""

    def halve(carry):
        return carry[0] * 0.5, carry[1] * 2.0, carry[2] + 1

    start = images, jnp.ones_like(images), 0
    a, b, _ = jax.lax.while_loop(lambda carry: carry[2] < 3, halve, start)
    return a * b


def with_alpha(change):
    """GOOD whose sampler draws another alpha."""
    return with_view(lambda view: view._replace(alpha=change(view.alpha)))


def with_bounds(bounds):
    """GOOD with other bounds."""
    return replace(GOOD, bounds=np.asarray(bounds))


def zero(images):
    """Zeros with the derivatives of the images."""
    return images - jax.lax.stop_gradient(images)


ALPHA = r"sample must return alpha \[4, 1\]; found "
HELD = "every leaf of held must have leading axis B; found "
IMAGES = r"apply must return \[4, H, W, 3\]; found "
WITHIN = "sample must draw alpha within bounds"
BOUNDS = r"bounds must be an array \[1, 2\], a row per name; found "
ORDERED = "bounds must be finite and ordered"
COLUMNS = "apply must use only columns of alpha in names: .* index"

BROKEN = {
    "no name": (replace(GOOD, names=()), "names must hold at least one name"),
    "one name twice": (
        replace(GOOD, names=("brightness",) * 2, bounds=np.ones((2, 2))),
        "names must differ",
    ),
    "a row of bounds too many": (with_bounds(np.zeros((2, 2))), BOUNDS + r"\(2, 2\)"),
    "bounds without a lower end": (with_bounds(np.zeros(1)), BOUNDS + r"\(1,\)"),
    "bounds in a list": (replace(GOOD, bounds=[[0.5, 1.5]]), BOUNDS + "list"),
    "reversed bounds": (with_bounds([[1.5, 0.5]]), ORDERED),
    "bounds without an end": (with_bounds([[0.5, np.inf]]), ORDERED),
    "narrower bounds": (with_bounds([[0.9, 1.1]]), WITHIN),
    "nan in alpha": (with_alpha(lambda alpha: alpha * np.nan), WITHIN),
    "alpha alone": (with_view(lambda view: view.alpha), "sample must return a View"),
    "alpha without columns": (with_alpha(lambda alpha: alpha[:, 0]), ALPHA + r"\(4,\)"),
    "alpha for one": (with_alpha(lambda alpha: alpha[:1]), ALPHA + r"\(1, 1\)"),
    "whole alpha": (
        with_alpha(lambda alpha: jnp.ones((4, 1), int)),
        "alpha must be float32 or float64; found int32",
    ),
    "the same draw for all": (
        with_alpha(lambda alpha: jnp.broadcast_to(alpha[:1], alpha.shape)),
        "sample must draw different alpha for different examples",
    ),
    "draws outside the key": (
        with_alpha(lambda alpha: np.random.uniform(0.5, 1.5, (4, 1)).astype("f")),
        "sample must draw different alpha for different keys",
    ),
    "held for the batch": (
        with_view(lambda v: v._replace(held=jnp.array(True))),
        HELD + r"\(\)",
    ),
    "held for one": (
        with_view(lambda v: v._replace(held=jnp.ones(1, bool))),
        HELD + r"\(1,\)",
    ),
    "sample that looks at values": (
        with_view(lambda view: view if view.alpha.sum() > 0 else view),
        "sample must compile: TracerBoolConversionError: Attempted boolean conversion",
    ),
    "apply that raises": (
        with_images(lambda i: {}["noise"]),
        "apply must compile: KeyError: 'noise'",
    ),
    "alpha in a list": (
        with_alpha(lambda alpha: [alpha]),
        r"sample must return alpha \[4, 1\]; found list",
    ),
    "wide second views": (
        with_views(lambda view, second: view._replace(alpha=view.alpha + second)),
        "sample_for with second=True must draw alpha within bounds",
    ),
    "first views without columns": (
        with_views(lambda view, second: view if second else view._replace(alpha=0.0)),
        r"sample_for with second=False must return alpha \[4, 1\]; found \(\)",
    ),
    "channels first": (
        with_images(lambda i: jnp.moveaxis(i, -1, 1)),
        IMAGES + r"\(4, 3, 4, 4\)",
    ),
    "flat images": (with_images(lambda i: i.reshape(4, -1)), IMAGES + r"\(4, 48\)"),
    "one image": (with_images(lambda i: i[:1]), IMAGES + r"\(1, 4, 4, 3\)"),
    "bytes": (
        with_images(lambda i: (255 * i).astype(jnp.uint8)),
        "apply must return images in float32; found uint8",
    ),
    "images in a tuple": (
        with_images(lambda i: (i,)),
        "apply must return an array; found a tuple",
    ),
    "images that divide by 0": (
        with_images(lambda i: i / 0),
        "the images of apply must be finite",
    ),
    "square root of 0": (
        with_images(lambda i: i + jnp.sqrt(zero(i))),
        "forward mode along alpha.* must be finite",
    ),
    "power 1.5 of 0": (
        with_images(lambda i: i + zero(i) ** 1.5),
        "reverse over forward mode.* must be finite",
    ),
    "custom_vjp": (
        with_images(reverse_only),
        "apply must allow forward mode along alpha: .*custom_vjp",
    ),
    "while_loop": (
        with_images(forward_only),
        "apply must allow reverse over forward mode: .*while_loop",
    ),
    "the last two exchanged": (
        with_images(lambda i: i[jnp.array([0, 1, 3, 2])]),
        "apply must treat examples independently; alone, example 2 differs",
    ),
    "alpha without an effect": (
        replace(GOOD, apply=lambda x, view: x["images"]),
        "apply must depend on alpha; its derivative is 0 in all examples of 16 views",
    ),
    "one column in steps": (
        with_two_columns(lambda alpha: alpha.at[:, 1].set(jnp.round(4 * alpha[:, 1]))),
        "the derivative along 'contrast' is 0 everywhere, though the images change",
    ),
    "a derivative of its own": (
        replace(GOOD, apply=lambda x, view: apply(x, halved(view))),
        "along 'brightness' must agree .* found a relative error of 5. %",
    ),
    "a column too many": (
        with_both(lambda i, alpha: i * alpha[:, 1, None, None, None]),
        COLUMNS + " 1 is out of bounds",
    ),
    "a column too many, mapped": (
        with_both(jax.vmap(lambda i, alpha: i * alpha[2])),
        COLUMNS + " 2 is out of bounds",
    ),
    "a column too many, transposed": (
        with_both(lambda i, alpha: i * alpha.T[1, :, None, None, None]),
        COLUMNS + " 1 is out of bounds",
    ),
    "plain of another size": (
        with_plain(lambda i: i[:, 1:]),
        r"plain must return images of the shape of apply's.* found \(4, 3, 4, 3\)",
    ),
    "plain of the batch": (
        with_plain(lambda i: i - i.mean(axis=0, keepdims=True)),
        "plain must treat examples independently; alone, example 0 differs",
    ),
}


@pytest.mark.parametrize("transformation, message", BROKEN.values(), ids=BROKEN)
def test_broken_promise_is_named(transformation, message):
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
def test_examples_need_one_leading_axis_of_at_least_2(x):
    with pytest.raises(ValueError, match="leaves of x must share a leading axis"):
        check_transformation(GOOD, x)
