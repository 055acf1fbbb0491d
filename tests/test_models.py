"""Encoders and the projection head: reference values, derivatives, settings."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import reference_state_dict

from invariance_jax.models import (
    ENCODERS,
    MLP,
    ProjectionHead,
    ResNet,
    create_encoder,
    weights,
)

AXIS = "replicas"
IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
RESNETS = ("resnet18", "resnet34", "resnet50")

# one block of each kind in the first stage, and one that halves the image
TINY = {
    "basic": ResNet((1, 1), bottleneck=False),
    "bottleneck": ResNet((1, 1), bottleneck=True),
    "imagenet": ResNet((1,), bottleneck=False, stem="imagenet"),
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


def reference_variables(entry):
    """The formula weights of the reference, float64."""
    return weights.from_torch_state_dict(reference_state_dict(entry))


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_has_the_reference_outputs(name, reference, reference_json, x64):
    # Float64, since training mode with these weights is chaotic: images rounded to
    # float32 already change the output of resnet34 and resnet50 by half its size.
    module = create_encoder(name)
    variables = reference_variables(reference_json[name])
    images = np.sin(0.013 * np.arange(4 * 32 * 32 * 3)).reshape(4, 32, 32, 3)

    @jax.jit
    def call(variables, images):
        evaluated = module.apply(variables, images, train=False)
        return evaluated, module.apply(variables, images, train=True)

    for mode, found in zip(("eval", "train"), call(variables, images), strict=True):
        assert found.dtype == jnp.float64
        expected = reference[f"{name}_out_{mode}"]
        largest = np.max(np.abs(expected))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_float32_resnet_has_the_reference_outputs_in_evaluation_mode(
    name, reference, reference_json
):
    module = create_encoder(name)
    variables = reference_variables(reference_json[name])
    variables = jax.tree.map(np.float32, variables)
    images = np.sin(0.013 * np.arange(4 * 32 * 32 * 3)).reshape(4, 32, 32, 3)
    apply = jax.jit(partial(module.apply, train=False))
    found = apply(variables, np.float32(images))
    expected = reference[f"{name}_out_eval"]
    largest = np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest)


def test_float32_resnet_agrees_with_float64_in_training_mode(x64):
    module = TINY["basic"]
    images = make_images()
    variables = initialize(module, images)
    apply = jax.jit(partial(module.apply, train=True))
    found = apply(variables, images)
    assert found.dtype == jnp.float32
    exact = apply(*jax.tree.map(lambda a: a.astype(jnp.float64), (variables, images)))
    largest = np.max(np.abs(exact))
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_has_the_number_of_parameters_of_the_paper(name, reference_json):
    expected = {"resnet18": 11168832, "resnet34": 21276992, "resnet50": 23500352}
    params = shapes_of(create_encoder(name))["params"]
    number = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert number == expected[name] == reference_json[name]["num_params"]


@pytest.mark.parametrize("name, kernel", [("basic", 3), ("imagenet", 7)])
def test_stem_has_the_kernel_of_its_name(name, kernel):
    params = shapes_of(TINY[name])["params"]
    assert params["conv1"]["kernel"].shape == (kernel, kernel, 3, 64)


def test_imagenet_stem_equals_explicit_convolution_and_pooling():
    module = ResNet((), bottleneck=False, stem="imagenet")
    images = make_images(2, 8)
    variables = initialize(module, images)
    kernel = np.asarray(variables["params"]["conv1"]["kernel"], np.float64)
    padded = np.pad(np.asarray(images), ((0, 0), (3, 3), (3, 3), (0, 0)))
    x = np.zeros((2, 4, 4, 64))
    for i in range(4):
        for j in range(4):
            patch = padded[:, 2 * i : 2 * i + 7, 2 * j : 2 * j + 7]
            x[:, i, j] = np.tensordot(patch, kernel, axes=3) / np.sqrt(1 + 1e-5)
    x = np.pad(np.maximum(x, 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    pooled = np.zeros((2, 2, 2, 64))
    for i in range(2):
        for j in range(2):
            patch = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            pooled[:, i, j] = patch.max(axis=(1, 2))
    h = module.apply(variables, images, train=False)
    np.testing.assert_allclose(h, pooled.mean(axis=(1, 2)), rtol=1e-4, atol=1e-4)


def test_resnet_kernels_are_normal_with_fan_out_and_not_truncated():
    module = ResNet((1,), bottleneck=True)
    variables = module.init(jax.random.key(0), make_images(1, 4), train=False)
    kernel = variables["params"]["layer1_0"]["conv3"]["kernel"]
    assert kernel.shape == (1, 1, 64, 256)
    std = np.sqrt(2 / 256)
    assert np.std(kernel) == pytest.approx(std, rel=0.02)
    assert np.max(np.abs(kernel)) > 3.5 * std


def test_mlp_kernels_are_normal_with_fan_in():
    module = MLP(width=256, depth=2)
    variables = module.init(jax.random.key(0), make_images(1, 4), train=False)
    kernel = variables["params"]["dense2"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / 256), rel=0.02)


def test_mlp_equals_dense_layers_with_normalization_between(x64):
    module = MLP(width=5, depth=3)
    images = make_images(dtype=np.float64)
    variables = initialize(module, images)
    params = jax.tree.map(np.asarray, variables["params"])
    params["dense3"]["bias"] = np.linspace(-1.0, 1.0, 5)
    x = np.asarray(images).reshape(4, -1)
    for layer in (1, 2):
        x = x @ params[f"dense{layer}"]["kernel"]
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
        x = np.maximum(x, 0)
    expected = x @ params["dense3"]["kernel"] + params["dense3"]["bias"]
    h = module.apply({**variables, "params": params}, images, train=True)
    np.testing.assert_allclose(h, expected, atol=1e-6)


def test_mlp_of_final_norm_relu_ends_in_normalization_and_relu():
    module = TINY["mlp norm_relu"]
    images = make_images(16)
    variables = initialize(module, images)
    assert set(variables["params"]) == {"dense1", "bn1", "dense2", "bn2"}
    assert set(variables["params"]["dense2"]) == {"kernel"}
    h = module.apply(variables, images, train=True)
    assert np.min(h) == 0


def head_variables(reference):
    params = {
        "dense1": {"kernel": reference["head_w1"]},
        "bn1": {"scale": reference["head_bn_scale"], "bias": reference["head_bn_bias"]},
        "dense2": {"kernel": reference["head_w2"]},
    }
    stats = {
        name: {"mean": np.zeros(size), "var": np.ones(size)}
        for name, size in (("bn1", 16), ("bn2", 128))
    }
    return {"params": params, "batch_stats": stats}


def test_projection_head_has_the_reference_values(reference, x64):
    variables, h = head_variables(reference), jnp.array(reference["head_h"])
    z = ProjectionHead().apply(variables, h, train=True)
    expected = reference["head_z_train"]
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_projection_head_has_the_variables_of_the_reference(reference):
    module = ProjectionHead()
    variables = module.init(jax.random.key(0), jnp.ones((2, 16)), train=True)
    found, expected = (
        jax.tree.map(np.shape, tree) for tree in (variables, head_variables(reference))
    )
    assert found == expected


def test_projection_kernels_are_uniform_within_the_root_of_fan_in():
    module = ProjectionHead(features=200, output=300)
    params = module.init(jax.random.key(0), jnp.ones((2, 100)), train=False)["params"]
    for name, fan_in in (("dense1", 100), ("dense2", 200)):
        kernel = params[name]["kernel"] * np.sqrt(fan_in)
        assert 0.99 < np.max(kernel) <= 1
        assert -1 <= np.min(kernel) < -0.99
        assert np.std(kernel) == pytest.approx(1 / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize("name", TINY)
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
    np.testing.assert_allclose(slope, numeric, rtol=1e-4)


@pytest.mark.parametrize("name", ["basic", "mlp"])
def test_bfloat16_keeps_parameters_statistics_and_h_in_float32(name):
    module = TINY[name]
    images = make_images(8)
    variables = initialize(module, images)
    half = module.clone(dtype=jnp.bfloat16)
    apply = partial(half.apply, train=True, mutable=["batch_stats"])
    h, updated = jax.jit(apply)(variables, images)
    shapes = jax.eval_shape(partial(half.init, train=False), jax.random.key(0), images)
    for leaf in jax.tree.leaves((h, updated, shapes)):
        assert leaf.dtype == jnp.float32
    exact = jax.jit(partial(module.apply, train=True))(variables, images)
    assert 1e-4 < np.max(np.abs(h - exact)) / np.max(np.abs(exact)) < 0.1


def test_bfloat16_runs_the_convolutions_and_products_in_bfloat16():
    for name in ("resnet18", "mlp"):
        module = create_encoder(name, precision="bfloat16")
        images = make_images()
        apply = partial(module.apply, train=True)
        jaxpr = jax.make_jaxpr(apply)(shapes_of(module, images), images)
        operations = re.findall(
            r"(\w+)\[[^=]*\] = (?:convolution_of_images|dot_general)", str(jaxpr)
        )
        assert set(operations) == {"bf16"}


def test_eager_jit_and_vmap_agree():
    module = TINY["mlp"]
    images = make_images()
    variables = initialize(module, images)
    call = partial(module.apply, variables, train=True)
    eager = call(images)
    np.testing.assert_allclose(jax.jit(call)(images), eager, atol=1e-5)
    mapped = jax.vmap(call)(jnp.stack([images[::-1], images]))
    np.testing.assert_allclose(mapped[1], eager, atol=1e-5)
    np.testing.assert_allclose(mapped[0], eager[::-1], atol=1e-5)


@pytest.mark.parametrize("name", ["basic", "mlp norm_relu"])
def test_evaluation_mode_treats_each_example_on_its_own(name):
    module = TINY[name]
    images = make_images()
    variables = initialize(module, images)
    apply = jax.jit(partial(module.apply, train=False))
    h = apply(variables, images)
    np.testing.assert_allclose(apply(variables, images[1:2]), h[1:2], atol=1e-5)


@pytest.mark.parametrize(
    "name, group_size",
    [("resnet18", 4), ("mlp", 0), ("mlp", 4), ("head", 0), ("head", 4)],
)
def test_settings_of_normalization_reach_every_layer(name, group_size):
    # the same numbers from four replicas of two and from one of eight
    settings = {"axis_name": AXIS}
    if name == "head":
        module = ProjectionHead(group_size=group_size, **settings)
        x = make_images(8, 2).reshape(8, 12)
    else:
        module = create_encoder(name, width=6, norm_group_size=group_size, **settings)
        if name == "resnet18":
            module = module.clone(stage_sizes=(1, 1))
        x = make_images(8, 4)
    variables = initialize(module, x)

    def call(module, x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    split = x.reshape(4, 2, *x.shape[1:])
    h, stats = jax.jit(jax.vmap(partial(call, module), axis_name=AXIS))(split)
    alone = module.clone(axis_name=None)
    expected, averages = jax.jit(partial(call, alone))(x)
    np.testing.assert_allclose(h.reshape(expected.shape), expected, atol=1e-4)
    for a, b in zip(*map(jax.tree.leaves, (stats, averages)), strict=True):
        np.testing.assert_allclose(a[3], b, rtol=1e-4, atol=1e-5)
    if group_size:
        group, _ = jax.jit(partial(call, alone.clone(group_size=0)))(x[:group_size])
        np.testing.assert_allclose(expected[:group_size], group, atol=1e-4)


@pytest.mark.parametrize(
    "name, features",
    [
        *[("resnet18", 512), ("resnet34", 512), ("resnet50", 2048)],
        *[("mlp", 512), ("vit_tiny", 192), ("vit_small", 384)],
    ],
)
def test_encoder_has_the_features_of_its_name(name, features):
    module = create_encoder(name)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    apply = partial(module.apply, train=False)
    h = jax.eval_shape(apply, shapes_of(module), images)
    assert (h.shape, h.dtype) == ((2, features), jnp.float32)


def test_every_name_makes_an_encoder_with_the_settings_given():
    for name in ENCODERS:
        module = create_encoder(
            name,
            stem="imagenet",
            width=64,
            depth=2,
            norm_group_size=4,
            norm_tangent="example",
            precision="bfloat16",
            axis_name=AXIS,
        )
        assert module.dtype == jnp.bfloat16 and module.width == 64
        if name.startswith("vit"):
            assert module.depth == 2
            continue
        assert module.group_size == 4
        assert module.tangent == "example"
        assert module.axis_name == AXIS
        if name == "mlp":
            assert module.depth == 2
        else:
            assert module.stem == "imagenet"


def test_unknown_encoder_is_refused_with_the_closest_name():
    with pytest.raises(ValueError, match="name is 'resnet81'.*closest is 'resnet18'"):
        create_encoder("resnet81")


@pytest.mark.parametrize(
    "setting, value, closest",
    [("stem", "cifar10", "cifar"), ("precision", "bf16", "bfloat16")],
)
def test_unknown_setting_is_refused_with_the_closest_one(setting, value, closest):
    message = f"{setting} is '{value}'.*closest is '{closest}'"
    with pytest.raises(ValueError, match=message):
        create_encoder("mlp", **{setting: value})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"width": 0}, "width is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"final": "relu"}, "final is 'relu'"),
    ],
)
def test_bad_mlp_settings_are_refused(settings, message):
    module = MLP(**{"width": 4, "depth": 2, **settings})
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), make_images(), train=False)


def test_unknown_stem_is_refused():
    module = ResNet((1,), bottleneck=False, stem="none")
    with pytest.raises(ValueError, match="stem is 'none'"):
        module.init(jax.random.key(0), make_images(), train=False)


@pytest.mark.parametrize("name", ["basic", "mlp"])
def test_images_of_another_rank_are_refused(name):
    with pytest.raises(ValueError, match=r"images must be \[B, H, W, C\]; found"):
        TINY[name].init(jax.random.key(0), jnp.ones((8, 8, 3)), train=False)


def test_representation_of_another_rank_is_refused():
    with pytest.raises(ValueError, match="h has shape"):
        ProjectionHead().init(jax.random.key(0), jnp.ones(8), train=False)


def test_rematerialization_keeps_less_and_changes_no_variable():
    encoders = [
        create_encoder("resnet18", rematerialize=rematerialize)
        for rematerialize in (False, True)
    ]
    images = jnp.zeros((2, 8, 8, 3))
    plain, again = (jax.eval_shape(partial(initialize, e), images) for e in encoders)
    assert plain == again

    def count(encoder):
        def loss(params, state):
            state = {**state, "params": params}
            return jnp.sum(encoder.apply(state, jnp.zeros((2, 8, 8, 3)), train=False))

        jaxpr = jax.make_jaxpr(jax.grad(loss))(plain["params"], plain)
        return str(jaxpr).count("remat")

    assert count(encoders[0]) == 0 < count(encoders[1])
