"""The Spirograph renderer and its transformation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import along_and_gradient
from intermediates import largest_intermediate
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from reference import assert_close, assert_uniform, oracle_render

from invariance_jax.transforms import View, check_transformation
from invariance_jax.transforms.spirograph import (
    BOUNDS,
    PARAMETERS,
    make_transformation,
    render,
)

TARGETS = ("m", "b", "sigma", "rfore")

# no pixel comes near the curve
FAR = {"image_size": 4, "num_points": 5, "extent": 1000.0}

compiled_render = jax.jit(
    render, static_argnames=["image_size", "num_points", "extent", "normalization"]
)


def make_parameters(batch_size, seed=0, dtype=np.float64):
    low, high = BOUNDS.T
    uniform = np.random.default_rng(seed).uniform(size=(batch_size, len(PARAMETERS)))
    return (low + (high - low) * uniform).astype(dtype)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_reference_values(dtype, tolerance, reference, x64):
    alpha, x, tangent, weight = (
        jnp.asarray(reference[f"spirograph_{name}"], dtype)
        for name in ("alpha", "x", "tangent", "weight")
    )
    transformation = make_transformation()
    apply = jax.jit(lambda alpha, x: transformation.apply(x, View(alpha)))
    image, change = jax.jvp(partial(apply, x=x), (alpha,), (tangent,))
    assert image.dtype == change.dtype == dtype
    assert_close(image, reference["spirograph_image"], tolerance)
    assert_close(change, reference["spirograph_image_jvp"], tolerance)
    grads = jax.grad(lambda *a: jnp.sum(weight * apply(*a)), argnums=(0, 1))(alpha, x)
    assert_close(grads[0], reference["spirograph_grad_alpha"], tolerance)
    assert_close(grads[1], reference["spirograph_grad_x"], tolerance)


def test_parameters_and_bounds_are_those_of_the_paper():
    bounds = dict(zip(PARAMETERS, BOUNDS.tolist(), strict=True))
    colors = ["rfore", "rback", "gfore", "gback", "bfore", "bback"]
    assert list(bounds) == ["m", "b", "h", "sigma", *colors]
    expected = [[2, 5], [0.1, 1.1], [0.5, 2.5], [0.25, 1]] + 3 * [[0.4, 1], [0, 0.6]]
    assert list(bounds.values()) == expected


@pytest.mark.parametrize("normalization", ["row", "image"])
def test_image_equals_the_oracle(normalization, x64):
    for sizes in (
        {},
        {"image_size": 9, "num_points": 7, "extent": 4.5},
        {"image_size": 1, "num_points": 1, "extent": 2.0},
    ):
        settings = {**sizes, "normalization": normalization}
        for dtype, tolerance in ((np.float64, 1e-6), (np.float32, 1e-4)):
            parameters = make_parameters(8, dtype=dtype)
            found = compiled_render(jnp.asarray(parameters), **settings)
            assert found.dtype == dtype
            expected = oracle_render(parameters, **settings)
            assert_allclose(found, expected, rtol=0, atol=tolerance)


def smooth_parameters():
    """A curve that turns slowly, so that differences resolve its derivatives."""
    return jnp.array([3.1, 0.9, 1.2, 0.8, 0.9, 0.1, 0.5, 0.3, 0.7, 0.2])


@pytest.mark.parametrize("normalization", ["row", "image"])
def test_derivatives_of_first_and_second_order(normalization, x64):
    small = partial(render, image_size=6, num_points=9, normalization=normalization)
    parameters = smooth_parameters()
    levels = oracle_render(
        np.asarray([*parameters[:4], 1, 0, 1, 0, 1, 0])[None],
        image_size=6,
        num_points=9,
        normalization=normalization,
    )[0, :, :, 0]
    ordered = np.sort(levels if normalization == "row" else levels.reshape(1, -1))
    assert np.all(ordered[:, -2] < 0.99 * ordered[:, -1])  # the maximum has no kink
    check_grads(jax.jit(small), (parameters,), order=2, atol=1e-4)


def test_derivative_at_a_tie_is_the_mean_of_the_tied_pixels(x64):
    # m = h: the curve is the one point (h, 0), half way between the two columns
    parameters = smooth_parameters().at[2].set(3.1)
    small = jax.jit(partial(render, image_size=2, num_points=9, extent=2.0))
    image = small(parameters)
    assert_allclose(image[:, 0], image[:, 1], rtol=1e-12)
    direction = jnp.eye(10)[0]
    change = jax.jvp(small, (parameters,), (direction,))[1]
    step = 1e-7 * direction
    # the mean of the one-sided differences, which differ
    ahead = (small(parameters + step) - image) / 1e-7
    behind = (image - small(parameters - step)) / 1e-7
    assert jnp.max(jnp.abs(ahead - behind)) > 0.1
    assert_allclose(change, (ahead + behind) / 2, rtol=0, atol=1e-3)


def test_blank_image_has_the_background_and_finite_derivatives():
    parameters = jnp.asarray(make_parameters(2, dtype=np.float32))
    image = compiled_render(parameters, **FAR)
    assert_array_equal(
        image, jnp.broadcast_to(parameters[:, None, None, 5::2], image.shape)
    )
    for values in along_and_gradient(partial(render, **FAR), parameters, parameters):
        assert jnp.isfinite(values).all()


def test_leading_axes_are_kept(x64):
    parameters = jnp.asarray(make_parameters(6))
    small = partial(render, image_size=8, num_points=10)
    image = small(parameters)
    several = small(parameters.reshape(2, 3, 10))
    assert several.shape == (2, 3, 8, 8, 3)
    assert_allclose(several.reshape(image.shape), image, rtol=0, atol=1e-5)
    assert_allclose(small(parameters[0]), image[0], rtol=0, atol=1e-5)


def test_memory_is_a_few_images_not_one_per_point():
    parameters = jnp.asarray(make_parameters(5, dtype=np.float32))
    images = 5 * 32 * 32 * 3
    assert largest_intermediate(render, parameters) <= images
    along = partial(jax.jvp, render)
    assert largest_intermediate(along, (parameters,), (parameters,)) <= images


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"parameters": np.zeros((2, 9))}, r"parameters must be \[..., 10\].*\(2, 9\)"),
        ({"parameters": [0.0] * 10}, "parameters must be an array; found a list"),
        ({"parameters": np.zeros(())}, r"parameters must be \[..., 10\]"),
        ({"image_size": 0}, "image_size must be an integer of 1 or more; found 0"),
        ({"num_points": -1}, "num_points must be an integer .* found -1"),
        ({"extent": 0.0}, "extent must be above 0; found 0.0"),
        ({"normalization": "rows"}, "normalization must be one of .* found 'rows'"),
    ],
    ids=str,
)
def test_render_refuses(arguments, message):
    arguments = {"parameters": np.ones(10), **arguments}
    with pytest.raises(ValueError, match=message):
        render(arguments.pop("parameters"), **arguments)


@pytest.mark.parametrize("targets", [TARGETS[::-1], ("bback", "m")], ids="-".join)
def test_any_split_renders_the_same_images(targets):
    sizes = {"image_size": 7, "num_points": 12, "extent": 5.0, "normalization": "image"}
    transformation = make_transformation(targets=targets, **sizes)
    assert transformation.plain is None  # no image without nuisance
    nuisance = [name for name in PARAMETERS if name not in targets]
    assert transformation.names == tuple(nuisance)
    parameters = make_parameters(3, dtype=np.float32)
    x, alpha = (
        jnp.asarray(parameters[:, [PARAMETERS.index(name) for name in names]])
        for names in (targets, nuisance)
    )
    found = jax.jit(transformation.apply)(x, View(alpha))
    expected = compiled_render(jnp.asarray(parameters), **sizes)
    assert_allclose(found, expected, rtol=0, atol=1e-6)
    check_transformation(transformation, x)


def changed_bounds(name, low, high):
    bounds = BOUNDS.copy()
    bounds[PARAMETERS.index(name)] = low, high
    return {"bounds": bounds}


def test_draws_are_uniform_within_the_bounds():
    transformation = make_transformation(**changed_bounds("h", 1.0, 1.25))
    view = transformation.sample(jax.random.key(0), 4000)
    assert view.alpha.shape == (4000, 6) and view.alpha.dtype == np.float32
    assert view.held == ()
    low, high = transformation.bounds.T
    assert (low[0], high[0]) == (1.0, 1.25)
    assert_uniform((np.asarray(view.alpha) - low) / (high - low))


def test_draws_depend_on_the_key_alone_and_equal_bounds_hold_a_parameter_fixed():
    sample = make_transformation(**changed_bounds("h", 2, 2)).sample
    first, again, other = (sample(jax.random.key(k), 5).alpha for k in (0, 0, 1))
    assert_array_equal(first, again)
    assert not np.any(first[:, 1:] == other[:, 1:])
    assert_array_equal(first[:, 0], 2.0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"targets": ("m", "a")}, "targets names the unknown parameter 'a'"),
        ({"targets": ("m", "b", "m")}, "targets must name each parameter once"),
        ({"targets": ()}, "targets must name 1 to 9 parameters.* found 0"),
        ({"targets": PARAMETERS}, "targets must name 1 to 9 parameters.* found 10"),
        ({"bounds": BOUNDS[:4]}, r"bounds must be \[10, 2\]; found shape \(4, 2\)"),
        (changed_bounds("m", 5, 2), "bounds of m must be finite and ordered"),
        (changed_bounds("h", 0, np.inf), "bounds of h must be finite and ordered"),
        (changed_bounds("b", 0, 1), "bounds of b must stay above 0"),
        (changed_bounds("sigma", -1, 1), "bounds of sigma must stay above 0"),
        (changed_bounds("gback", 0, 255), r"gback, a colour, must be in \[0, 1\]"),
        ({"normalization": "max"}, "normalization must be one of .* found 'max'"),
    ],
)
def test_make_transformation_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        make_transformation(**settings)


@pytest.mark.parametrize(
    "x_shape, alpha_shape", [((2, 3), (2, 6)), ((2, 4), (2, 5)), ((2, 4), (3, 6))]
)
def test_apply_refuses_other_shapes(x_shape, alpha_shape):
    with pytest.raises(ValueError, match=r"x must be \[B, 4\]|alpha must be \[2, 6\]"):
        make_transformation().apply(jnp.ones(x_shape), View(jnp.ones(alpha_shape)))
