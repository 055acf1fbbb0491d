"""Encoders and the projection head: reference values, derivatives, settings."""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from reference import assert_close, reference_state_dict
from replicas import AXIS

from invariance_jax.models import (
    MLP,
    BatchNorm,
    ProjectionHead,
    ResidualBlock,
    ResNet,
    ViT,
    create_encoder,
    weights,
)
from invariance_jax.models.convolution import Convolution

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
RESNETS = ("resnet18", "resnet34", "resnet50")

# one block of each kind in the first stage, and one that halves the image
TINY = {
    "basic": ResNet((1, 1), bottleneck=False),
    "bottleneck": ResNet((1, 1), bottleneck=True, width=6),
    "imagenet": ResNet((1,), bottleneck=False, stem="imagenet", width=6),
    "mlp": MLP(width=6, depth=3),
    "mlp norm_relu": MLP(width=6, depth=2, final="norm_relu"),
}


def make_images(batch=4, size=8, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    return jnp.array(generator.uniform(size=(batch, size, size, 3)), dtype)


def shapes_of(module, images=IMAGES):
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(partial(module.init, train=False), key, images)


def initialize(module, images, seed=0):
    """Variables of unit-sized activations, drawn by NumPy: nothing to compile."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key != "kernel":
            ones = path[-1].key in ("scale", "var")
            return jnp.full(leaf.shape, float(ones), jnp.float32)
        std = np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return jnp.array(generator.normal(0, std, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(module, images[:1]))


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(n, marks=pytest.mark.slow) for n in RESNETS[1:])],
)
def test_resnet_has_the_reference_outputs(name, reference, reference_json, x64):
    # Float64, since training mode with these weights is chaotic: images rounded to
    # float32 already change the output of resnet34 and resnet50 by half its size.
    module = create_encoder(name)
    state_dict = reference_state_dict(reference_json[name])
    variables = weights.from_torch_state_dict(state_dict)
    images = np.sin(0.013 * np.arange(4 * 32 * 32 * 3)).reshape(4, 32, 32, 3)

    def check(found, mode, dtype):
        assert found.dtype == dtype
        assert_close(found, reference[f"{name}_out_{mode}"], 1e-4)

    @jax.jit
    def call(variables, images):
        evaluated = module.apply(variables, images, train=False)
        return evaluated, module.apply(variables, images, train=True)

    for mode, found in zip(("eval", "train"), call(variables, images), strict=True):
        check(found, mode, np.float64)
    if name == "resnet18":
        single = jax.tree.map(np.float32, (variables, images))
        apply = jax.jit(partial(module.apply, train=False))
        check(apply(*single), "eval", np.float32)


def test_float32_resnet_agrees_with_float64_in_training_mode(x64):
    module, images = TINY["basic"], make_images()
    variables = initialize(module, images)
    apply = jax.jit(partial(module.apply, train=True))
    found = apply(variables, images)
    assert found.dtype == jnp.float32
    exact = apply(*jax.tree.map(lambda a: a.astype(jnp.float64), (variables, images)))
    assert_close(found, exact, 1e-4)


def test_imagenet_stem_equals_explicit_convolution_and_pooling():
    module = ResNet((), bottleneck=False, stem="imagenet")
    images = make_images(2, 8)
    variables = initialize(module, images)
    kernel = np.asarray(variables["params"]["conv1"]["kernel"], np.float64)
    assert kernel.shape == (7, 7, 3, 64)
    padded = np.pad(np.asarray(images), ((0, 0), (3, 3), (3, 3), (0, 0)))
    x = np.zeros((2, 4, 4, 64))
    for i, j in np.ndindex(4, 4):
        patch = padded[:, 2 * i : 2 * i + 7, 2 * j : 2 * j + 7]
        x[:, i, j] = np.tensordot(patch, kernel, axes=3) / np.sqrt(1 + 1e-5)
    x = np.pad(np.maximum(x, 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    pooled = np.zeros((2, 2, 2, 64))
    for i, j in np.ndindex(2, 2):
        pooled[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(1, 2))
    h = module.apply(variables, images, train=False)
    assert_allclose(h, pooled.mean(axis=(1, 2)), rtol=1e-4, atol=1e-4)


def test_a_block_without_kernels_is_the_relu_of_its_input():
    conv = partial(Convolution, kernel_init=nn.initializers.zeros)
    block = ResidualBlock(3, 1, False, conv=conv, norm=BatchNorm)
    x = jnp.broadcast_to(jnp.array([-1.0, 0.0, 2.0]), (2, 4, 4, 3))
    variables = block.init(jax.random.key(0), x, False)
    y, derivative = jax.jvp(
        lambda x: block.apply(variables, x, False), (x,), (jnp.full_like(x, 3.0),)
    )
    assert_allclose(y, jnp.maximum(x, 0))
    assert_allclose(derivative, jnp.where(x > 0, 3.0, 0.0))


def test_kernels_are_normal_with_fan_out_of_resnets_and_fan_in_of_mlps():
    for module, path in (
        (ResNet((1,), bottleneck=True), ("layer1_0", "conv3")),  # 64 to 256
        (MLP(width=256, depth=2), ("dense2",)),
    ):
        init = jax.jit(partial(module.init, train=False))  # compiles the draws alone
        tree = init(jax.random.key(0), make_images(1, 4))["params"]
        for name in (*path, "kernel"):
            tree = tree[name]
        assert tree.shape[-1] == 256
        std = np.sqrt(2 / 256)
        assert np.std(tree) == pytest.approx(std, rel=0.02)
        assert np.max(np.abs(tree)) > 3.5 * std  # not truncated


def test_mlp_equals_dense_layers_with_normalization_between(x64):
    module, images = MLP(width=5, depth=3), make_images(dtype=np.float64)
    variables = initialize(module, images)
    params = jax.tree.map(np.asarray, variables["params"])
    params["dense3"]["bias"] = np.linspace(-1.0, 1.0, 5)
    x = np.asarray(images).reshape(4, -1)
    for layer in (1, 2):
        x = x @ params[f"dense{layer}"]["kernel"]
        x = np.maximum((x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5), 0)
    expected = x @ params["dense3"]["kernel"] + params["dense3"]["bias"]
    h = module.apply({**variables, "params": params}, images, train=True)
    assert_allclose(h, expected, atol=1e-6)


def test_mlp_of_final_norm_relu_ends_in_normalization_and_relu():
    module, images = TINY["mlp norm_relu"], make_images(16)
    variables = initialize(module, images)
    assert set(variables["params"]) == {"dense1", "bn1", "dense2", "bn2"}
    assert set(variables["params"]["dense2"]) == {"kernel"}
    assert np.min(module.apply(variables, images, train=True)) == 0


def test_projection_head_has_the_reference_values_and_variables(reference, x64):
    params = {
        "dense1": {"kernel": reference["head_w1"]},
        "bn1": {"scale": reference["head_bn_scale"], "bias": reference["head_bn_bias"]},
        "dense2": {"kernel": reference["head_w2"]},
    }
    stats = {
        name: {"mean": np.zeros(size), "var": np.ones(size)}
        for name, size in (("bn1", 16), ("bn2", 128))
    }
    variables = {"params": params, "batch_stats": stats}
    h = jnp.array(reference["head_h"])
    z = jax.jit(partial(ProjectionHead().apply, train=True))(variables, h)
    assert_close(z, reference["head_z_train"], 1e-6)
    own = shapes_of(ProjectionHead(), jax.ShapeDtypeStruct((2, 16), jnp.float32))
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, variables)


def test_projection_kernels_are_uniform_within_the_root_of_fan_in():
    module = ProjectionHead(features=200, output=300)
    init = jax.jit(partial(module.init, train=False))
    params = init(jax.random.key(0), jnp.ones((2, 100)))["params"]
    for name, fan_in in (("dense1", 100), ("dense2", 200)):
        kernel = params[name]["kernel"] * np.sqrt(fan_in)
        assert 0.99 < np.max(kernel) <= 1 and -1 <= np.min(kernel) < -0.99
        assert np.std(kernel) == pytest.approx(1 / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize("name", ["bottleneck", "imagenet", "mlp", "mlp norm_relu"])
def test_reverse_over_forward_is_right_along_a_line(name, x64):
    # the gradient of the squared tangent, against central differences of it
    module = TINY[name]
    images = make_images(3, 4, np.float64)
    direction = make_images(3, 4, np.float64, seed=1)
    variables = initialize(module, images)
    variables = jax.tree.map(lambda a: a.astype(jnp.float64), variables)
    step = jax.tree.map(
        lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), variables
    )

    def penalty(epsilon):
        moved = jax.tree.map(lambda a, b: a + epsilon * b, variables, step)
        represent = partial(module.apply, moved, train=True)
        _, dh = jax.jvp(represent, (images,), (direction,))
        return jnp.mean(dh**2)

    penalty = jax.jit(jax.value_and_grad(penalty))
    slope = penalty(0.0)[1]
    numeric = (penalty(1e-6)[0] - penalty(-1e-6)[0]) / 2e-6
    assert slope != 0
    assert_allclose(slope, numeric, rtol=1e-4)


@pytest.mark.parametrize("name", ["basic", "mlp"])
def test_bfloat16_is_that_of_products_and_not_of_parameters_statistics_and_h(name):
    module, images = TINY[name], make_images(8)
    variables = initialize(module, images)
    half = module.clone(dtype=jnp.bfloat16)
    apply = partial(half.apply, train=True, mutable=["batch_stats"])
    h, updated = jax.jit(apply)(variables, images)
    for leaf in jax.tree.leaves((h, updated, shapes_of(half, images))):
        assert leaf.dtype == jnp.float32
    exact = jax.jit(partial(module.apply, train=True))(variables, images)
    assert 1e-4 < np.max(np.abs(h - exact)) / np.max(np.abs(exact)) < 0.1
    operations = re.findall(
        r"(\w+)\[[^=]*\] = (?:convolution_of_images|dot_general)",
        str(jax.make_jaxpr(apply)(variables, images)),
    )
    assert set(operations) == {"bf16"}


@pytest.mark.parametrize("name", ["basic", "mlp"])
def test_evaluation_mode_treats_each_example_on_its_own(name):
    module, images = TINY[name], make_images()
    variables = initialize(module, images)
    apply = jax.jit(partial(module.apply, variables, train=False))
    assert_allclose(apply(images[1:2]), apply(images)[1:2], atol=1e-5)
    if name == "mlp":
        call = partial(module.apply, variables, train=True)
        mapped = jax.jit(jax.vmap(call))(jnp.stack([images[::-1], images]))
        assert_allclose(mapped[1], call(images), atol=1e-5)


@pytest.mark.parametrize("name, group_size", [("resnet18", 4), ("mlp", 0), ("head", 4)])
def test_settings_of_normalization_reach_every_layer(name, group_size):
    # the same numbers from four replicas of two and from one of eight
    settings = {"axis_name": AXIS}
    if name == "head":
        module = ProjectionHead(group_size=group_size, **settings)
        x = make_images(8, 2).reshape(8, 12)
    else:
        module = create_encoder(name, width=6, norm_group_size=group_size, **settings)
        if name == "resnet18":  # fewer blocks, one of which halves the image
            module = module.clone(stage_sizes=(1, 1))
        x = make_images(8, 4)
    variables = initialize(module, x)

    def call(module, x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    split = x.reshape(4, 2, *x.shape[1:])
    h, stats = jax.jit(jax.vmap(partial(call, module), axis_name=AXIS))(split)
    alone = module.clone(axis_name=None)
    expected, averages = jax.jit(partial(call, alone))(x)
    assert_allclose(h.reshape(expected.shape), expected, atol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (stats, averages)), strict=True):
        assert_allclose(a[3], b, rtol=1e-4, atol=1e-5)
    if group_size:
        group, _ = jax.jit(partial(call, alone.clone(group_size=0)))(x[:group_size])
        assert_allclose(expected[:group_size], group, atol=1e-4)


@pytest.mark.parametrize(
    "name, features",
    [
        *[("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)],
        *[("mlp", 512), ("vit_tiny", 192), ("vit_small", 384)],
    ],
)
def test_encoder_has_the_features_of_its_name_and_the_settings_given(name, features):
    module = create_encoder(name)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    apply = partial(module.apply, train=False)
    h = jax.eval_shape(apply, shapes_of(module), images)
    assert (h.shape, h.dtype) == ((2, features), jnp.float32)
    settings = {"norm_group_size": 4, "norm_tangent": "example", "axis_name": AXIS}
    settings |= {"stem": "imagenet", "width": 64, "depth": 2, "precision": "bfloat16"}
    own = create_encoder(name, **settings)
    assert (own.dtype, own.width) == (jnp.bfloat16, 64)
    assert name.startswith("resnet") or own.depth == 2
    if not name.startswith("vit"):
        assert (own.group_size, own.tangent, own.axis_name) == (4, "example", AXIS)
    if name.startswith("resnet"):
        assert own.stem == "imagenet"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "resnet81"}, "found 'resnet81': the closest is resnet18"),
        ({"stem": "cifar10"}, "found 'cifar10': the closest is cifar"),
        ({"precision": "bf16"}, "found 'bf16': the closest is bfloat16"),
    ],
    ids=str,
)
def test_unknown_names_are_refused_with_the_closest_one(settings, message):
    with pytest.raises(ValueError, match=message):
        create_encoder(**{"name": "mlp", **settings})


@pytest.mark.parametrize("sizes", [{"width": 0}, {"depth": 0}], ids=str)
@pytest.mark.parametrize("name", ["mlp", "vit_tiny"])
def test_a_size_of_0_is_not_the_default(name, sizes):
    with pytest.raises(ValueError, match="must be .* found 0"):
        create_encoder(name, **sizes)


RANK = r"images must be \[B, H, W, C\]; found"


@pytest.mark.parametrize(
    "module, shape, message",
    [
        (MLP(width=0, depth=2), (4, 8, 8, 3), "width must be .* found 0"),
        (MLP(width=4, depth=0), (4, 8, 8, 3), "depth must be .* found 0"),
        (MLP(width=4, depth=2, final="relu"), (4, 8, 8, 3), "final .* found 'relu'"),
        (TINY["basic"].clone(stem="none"), (4, 8, 8, 3), "stem .* found 'none'"),
        (TINY["basic"].clone(width=0), (4, 8, 8, 3), "width must be .* found 0"),
        (TINY["basic"].clone(width=2.5), (4, 8, 8, 3), "width must be .* found 2.5"),
        (ResNet((1, 0), False), (4, 8, 8, 3), "stage_sizes must be .* found 0"),
        (ViT(4, width=64, depth=0), (4, 8, 8, 3), "depth must be .* found 0"),
        (TINY["basic"], (8, 8, 3), RANK),
        (TINY["mlp"], (8, 8, 3), RANK),
        (TINY["basic"], (0, 8, 8, 3), r"must not be empty; found \[0, 8, 8, 3\]"),
        (ProjectionHead(), (8,), r"h must be \[B, D\]; found \[8\]"),
        (ProjectionHead(features=0), (4, 8), "features must be .* found 0"),
        (ProjectionHead(layers=0), (4, 8), "layers must be .* found 0"),
        (ProjectionHead(output=0.5), (4, 8), "output must be .* found 0.5"),
    ],
)
def test_bad_settings_and_images_are_refused(module, shape, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), jnp.ones(shape), train=False)


def test_rematerialization_keeps_less_and_changes_no_variable():
    images, found = jnp.zeros((2, 8, 8, 3)), []
    for rematerialize in (False, True):
        encoder = create_encoder("resnet18", rematerialize=rematerialize)
        state = shapes_of(encoder, images)

        def loss(params, state, encoder=encoder):
            h = encoder.apply({**state, "params": params}, images, train=False)
            return jnp.sum(h)

        jaxpr = jax.make_jaxpr(jax.grad(loss))(state["params"], state)
        found.append((state, str(jaxpr).count("remat")))
    assert found[0][0] == found[1][0] and found[0][1] == 0 < found[1][1]
