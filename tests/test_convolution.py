"""Convolutions by products of matrices: values, derivatives, platforms."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose
from replicas import AXIS, devices

from invariance_jax.models import parts
from invariance_jax.models.convolution import Convolution, convolve

# name -> (image [B, H, W, C], F, kernel size, strides)
CASES = {
    "winograd": ((4, 9, 11, 32), 33, 3, 1),
    "winograd, even": ((16, 4, 4, 33), 32, 3, 1),
    "few channels": ((2, 5, 4, 3), 4, 3, 1),
    "strided": ((3, 7, 8, 4), 5, 3, 2),
    "points": ((3, 5, 4, 6), 2, 1, 1),
    "strided points": ((3, 5, 4, 2), 6, 1, 2),
    "large stem": ((2, 9, 8, 3), 4, 7, 2),
}


def draw(name, dtype=np.float64, seed=0):
    """Image and kernel, and a direction for each."""
    shape, features, size, _ = CASES[name]
    generator = np.random.default_rng(seed)
    shapes = 2 * (shape, (size, size, shape[-1], features))
    return [jnp.array(generator.normal(size=shape), dtype) for shape in shapes]


def ours(name):
    return partial(convolve, strides=CASES[name][-1])


def by_loops(name, x, kernel):
    """The sum over the places of the kernel, pixel by pixel of the output."""
    *_, size, strides = CASES[name]
    sides = (size // 2, size // 2)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), sides, sides, (0, 0)))
    kernel = np.asarray(kernel, np.float64)
    height, width = ((n - size) // strides + 1 for n in padded.shape[1:3])
    y = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            top, left = i * strides, j * strides
            patch = padded[:, top : top + size, left : left + size]
            y[:, i, j] = np.einsum("bijc,ijcf->bf", patch, kernel)
    return y


def by_xla(name, x, kernel):
    *_, size, strides = CASES[name]
    padding, order = [(size // 2, size // 2)] * 2, ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=order
    )


def derivatives(convolution, x, kernel, dx, dkernel):
    """A tangent, gradients, and gradients of a squared tangent."""
    _, tangent = jax.jvp(convolution, (x, kernel), (dx, dkernel))

    def loss(x, kernel):
        return jnp.sum(jnp.sin(convolution(x, kernel)))

    def penalty(x, kernel):
        def represent(x):
            return jnp.tanh(convolution(jnp.sin(x), kernel))

        return jnp.sum(jax.jvp(represent, (x,), (dx,))[1] ** 2)

    both = (0, 1)
    return tangent, jax.grad(loss, both)(x, kernel), jax.grad(penalty, both)(x, kernel)


def assert_close(found, expected, tolerance):
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert one.dtype == two.dtype
        largest = np.max(np.abs(two))
        assert_allclose(one, two, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_loops(name, x64):
    x, kernel, *_ = draw(name)
    assert_close(ours(name)(x, kernel), by_loops(name, x, kernel), 1e-12)


@pytest.mark.parametrize(
    "name, dtype, tolerance",
    [*((name, np.float64, 1e-11) for name in CASES), ("winograd", np.float32, 1e-5)],
)
def test_derivatives_are_those_of_the_convolution_of_xla(name, dtype, tolerance, x64):
    drawn = draw(name, dtype)
    expected = jax.jit(partial(derivatives, partial(by_xla, name)))(*drawn)
    found = jax.jit(partial(derivatives, ours(name)))(*drawn)
    assert_close(found, expected, tolerance)


def test_bfloat16_is_not_filtered():
    x, kernel, *_ = draw("winograd", jnp.bfloat16)
    found = jax.jit(ours("winograd"))(x, kernel)
    assert found.dtype == jnp.bfloat16
    expected = by_loops("winograd", x, kernel)
    assert np.max(np.abs(found - expected)) < 0.01 * np.max(np.abs(expected))
    assert "tensor<16x" not in lowered("winograd", jnp.bfloat16, "cpu")


@pytest.mark.parametrize(
    "name, mapped",
    [("winograd", (1, None)), ("strided", (None, 3)), ("strided", (2, 0))],
)
def test_maps_are_calls_one_by_one(name, mapped, x64):
    x, kernel, dx, dkernel = draw(name)
    stacks = [
        two[0] if axis is None else jnp.stack(two, axis)
        for two, axis in zip(((x, dx), (kernel, dkernel)), mapped, strict=True)
    ]

    def loss(x, kernel):
        return jnp.sum(jnp.sin(ours(name)(x, kernel)))

    gradient = jax.grad(loss, (0, 1))
    found = jax.jit(jax.vmap(gradient, mapped))(*stacks)
    second = (x if mapped[0] is None else dx, kernel if mapped[1] is None else dkernel)
    for index, arguments in enumerate(((x, kernel), second)):
        one = jax.tree.map(lambda leaf, i=index: leaf[i], found)
        assert_close(one, jax.jit(gradient)(*arguments), 1e-11)


@pytest.mark.parametrize("name", ["winograd", "strided"])
def test_some_examples_at_a_time_are_all_examples(name, x64, monkeypatch):
    drawn = draw(name)
    expected = jax.jit(partial(derivatives, ours(name)))(*drawn)
    monkeypatch.setattr(parts, "PART_BYTES", drawn[0].nbytes // len(drawn[0]))
    jax.clear_caches()
    assert_close(jax.jit(partial(derivatives, ours(name)))(*drawn), expected, 1e-12)


@pytest.mark.parametrize("num_parts", [1, 2])
@pytest.mark.parametrize("name", ["winograd", "winograd, even", "strided points"])
def test_the_kernel_may_be_shared_by_the_devices_of_a_mesh(
    name, num_parts, x64, monkeypatch
):
    x, kernel, *_ = draw(name)
    x = jnp.concatenate([x] * (-(-4 // len(x))))  # two or more images on each device
    monkeypatch.setattr(parts, "PART_BYTES", x.nbytes // 2 // num_parts)
    jax.clear_caches()

    def gradients(x, kernel):
        return jax.grad(lambda *both: jnp.sum(jnp.sin(ours(name)(*both))), (0, 1))(
            x, kernel
        )

    mesh, one, shared = Mesh(np.array(devices(2)), AXIS), P(AXIS), P()
    specs = {"in_specs": (one, shared), "out_specs": (one, shared)}
    mapped = jax.jit(jax.shard_map(gradients, mesh=mesh, **specs))
    assert_close(mapped(x, kernel), jax.jit(gradients)(x, kernel), 1e-11)


def test_parts_divide_the_batch():
    seen = []

    def double(x):
        seen.append(x.shape)
        return 2 * x

    x = jnp.zeros((6, parts.PART_BYTES // 4 // 2))  # two of six fit, exactly
    assert parts.map_parts(double, x).shape == x.shape
    assert seen == [(2, x.shape[1])]


def lowered(name, dtype, platform):
    traced = jax.jit(partial(derivatives, ours(name))).trace(*draw(name, dtype))
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("name", CASES)
def test_processors_only_multiply_matrices(name):
    text = lowered(name, np.float32, "cpu")
    assert "stablehlo.convolution" not in text
    assert "stablehlo.dot_general" in text
    assert ("tensor<16x" in text) == name.startswith("winograd")


def test_accelerators_keep_the_convolution_of_xla():
    text = lowered("winograd", np.float32, "cuda")
    assert "stablehlo.convolution" in text and "stablehlo.dot_general" not in text


def test_parameters_and_values_are_those_of_flax():
    x, *_ = draw("strided", np.float32)
    flax = nn.Conv(5, (3, 3), strides=2, padding=1, use_bias=False)
    own = Convolution(5, 3, strides=2)
    variables = jax.jit(flax.init)(jax.random.key(0), x)
    assert_close(jax.jit(own.init)(jax.random.key(0), x), variables, 0)
    assert_close(own.apply(variables, x), flax.apply(variables, x), 1e-5)
    half = own.clone(dtype=jnp.bfloat16)
    y, variables = half.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert variables["params"]["kernel"].dtype == jnp.float32


IMAGE, KERNEL = (1, 4, 4, 3), (3, 3, 3, 5)


@pytest.mark.parametrize(
    "shapes",
    [
        *[((1, 4, 4, 2), KERNEL), ((4, 4, 3), KERNEL)],
        *[(IMAGE, (3, 5, 3, 5)), (IMAGE, (2, 2, 3, 5))],
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match=r"x has shape .* kernel \(.* of an odd size"):
        convolve(*map(jnp.zeros, shapes), strides=1)


def test_the_precision_of_a_context_within_jit_reaches_the_convolution():
    image, kernel, *_ = draw("strided", np.float32)

    @jax.jit
    def slope(image, kernel):
        with jax.default_matmul_precision("highest"):
            return jax.grad(lambda k: jnp.sum(ours("strided")(image, k) ** 2))(kernel)

    lowered = slope.trace(image, kernel).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert text.count("stablehlo.convolution") == 2
    assert text.count("precision HIGHEST") == 4  # of both operands
