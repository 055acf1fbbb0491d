"""Fast convolutions against `lax.conv`: values, both modes of derivatives, and vmap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.models import convolution
from invariance_jax.models.convolution import convolve

OPTIONS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def plain(images, kernel, strides=(1, 1), padding=((1, 1), (1, 1))):
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, **OPTIONS)


def fast(images, kernel, strides=(1, 1), padding=((1, 1), (1, 1))):
    return convolve(images, kernel, strides, padding, **OPTIONS)


def draw(*shapes, seed=0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


def winograd(function, *inputs):
    """Whether the program has no convolution that XLA would see."""
    text = jax.jit(function).lower(*inputs).as_text()
    return "stablehlo.convolution" not in text


def assert_close(found, expected):
    def check(a, b):
        tolerance = 1e-5 * float(np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)

    jax.tree.map(check, found, expected)


@pytest.fixture(params=[1, 2**21], ids=["an image at a time", "together"])
def inputs(request, monkeypatch):
    monkeypatch.setattr(convolution, "_CHUNK_BYTES", request.param)
    return draw((3, 8, 10, 32), (3, 3, 32, 40))


def test_values_are_those_of_lax(inputs):
    assert winograd(fast, *inputs)
    assert_close(jax.jit(fast)(*inputs), plain(*inputs))


def results(convolve, images, kernel):
    """Both modes of differentiation, and the one over the other, of all arguments."""
    tangents = draw(images.shape, kernel.shape, seed=1, dtype=images.dtype)
    shape = jax.eval_shape(convolve, images, kernel).shape
    (other,) = draw(shape, seed=2)

    def loss(images, kernel):
        return jnp.sum(jnp.sin(convolve(images, kernel)) * other)

    def slope(images, kernel):
        change = jax.jvp(convolve, (images, kernel), tuple(tangents))[1]
        return jnp.sum(jnp.square(change))

    gradient = jax.grad(loss, argnums=(0, 1))
    return (
        jax.jvp(convolve, (images, kernel), tuple(tangents)),
        gradient(images, kernel),
        jax.grad(slope, argnums=(0, 1))(images, kernel),
        jax.jvp(gradient, (images, kernel), tuple(tangents)),
    )


def test_derivatives_are_those_of_lax(inputs):
    found, expected = (jax.jit(partial(results, f))(*inputs) for f in (fast, plain))
    assert_close(found, expected)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_it_may_be_mapped(axes):
    shapes = (3, 8, 8, 32), (3, 3, 32, 32)
    sizes = [
        shape if axis is None else (2, *shape)
        for shape, axis in zip(shapes, axes, strict=True)
    ]
    inputs = draw(*sizes)

    def both(function):
        def gradient(images, kernel):
            return jax.grad(lambda *z: jnp.sum(function(*z) ** 2), argnums=(0, 1))(
                images, kernel
            )

        return jax.vmap(gradient, in_axes=axes)(*inputs)

    assert_close(both(fast), both(plain))


OTHERS = {
    "stride": ((9, 8, 32), (3, 3, 32, 32), (2, 1), 1),
    "no padding": ((8, 8, 32), (3, 3, 32, 32), (1, 1), 0),
    "odd": ((9, 8, 32), (3, 3, 32, 32), (1, 1), 1),
    "small": ((6, 6, 32), (3, 3, 32, 32), (1, 1), 1),
    "few channels": ((8, 8, 3), (3, 3, 3, 32), (1, 1), 1),
    "1 x 1, stride": ((8, 8, 4), (1, 1, 4, 5), (2, 2), 0),
    "7 x 7, stride": ((11, 10, 3), (7, 7, 3, 4), (2, 2), 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_convolutions_have_the_values_and_derivatives_of_lax(name):
    image, kernel, strides, pad = OTHERS[name]
    settings = {"strides": strides, "padding": ((pad, pad), (pad, pad))}
    inputs = draw((2, *image), kernel)

    def both(function):
        return jax.jit(partial(results, partial(function, **settings)))(*inputs)

    assert not winograd(partial(fast, **settings), *inputs)
    assert_close(both(fast), both(plain))


def test_other_precisions_have_the_values_and_derivatives_of_lax(x64):
    inputs = draw((2, 8, 8, 32), (3, 3, 32, 32), dtype=np.float64)
    assert not winograd(fast, *inputs)
    found, expected = (jax.jit(partial(results, f))(*inputs) for f in (fast, plain))
    assert_close(found, expected)
    half = [x.astype(jnp.bfloat16) for x in inputs]
    np.testing.assert_array_equal(fast(*half), plain(*half))
    assert fast(*half).dtype == jnp.bfloat16


def test_dilated_and_grouped_convolutions_are_left_to_lax():
    images, kernel = draw((2, 8, 8, 32), (3, 3, 32, 32))
    sizes = (1, 1), ((1, 1), (1, 1))
    dilated = convolve(images, kernel, *sizes, rhs_dilation=(2, 2), **OPTIONS)
    assert dilated.shape == (2, 6, 6, 32)
    grouped = convolve(
        images, kernel[:, :, :16], *sizes, feature_group_count=2, **OPTIONS
    )
    assert grouped.shape == (2, 8, 8, 32)


def test_accelerators_are_left_to_lax(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    inputs = draw((2, 8, 8, 32), (3, 3, 32, 32))
    assert "convolve" not in str(jax.make_jaxpr(fast)(*inputs))
