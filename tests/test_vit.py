"""Vision transformers: the forward pass in loops, images of any size, no coupling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import erf

from invariance_jax.models import create_encoder

POOLS, QKV = ("token", "mean"), ("query", "key", "value")


def make(pool="token", **changes):
    settings = {"patch_size": 2, "width": 64, "depth": 2, "pool": pool} | changes
    return create_encoder("vit_tiny", **settings)


def init(encoder, images):
    return jax.jit(partial(encoder.init, train=False))(jax.random.key(0), images)


def apply(encoder, variables, images):
    return jax.jit(partial(encoder.apply, train=True))(variables, images)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def norm(x, parameters):
    centred = x - x.mean()
    unit = centred / np.sqrt(np.mean(centred**2) + 1e-6)
    return unit * parameters["scale"] + parameters["bias"]


def dense(x, parameters, axes=1):
    return np.tensordot(x, parameters["kernel"], axes) + parameters["bias"]


def attention(tokens, parameters):
    """Self-attention, one head and one token at a time."""
    q, k, v = ([dense(t, parameters[n]) for t in tokens] for n in QKV)
    found = []
    for own in q:
        mixed = np.zeros_like(own)
        for head, size in enumerate(map(len, own)):
            scores = [own[head] @ key[head] / np.sqrt(size) for key in k]
            shares = np.exp(scores) / np.sum(np.exp(scores))
            for share, value in zip(shares, v, strict=True):
                mixed[head] += share * value[head]
        found.append(dense(mixed, parameters["out"], axes=2))
    return found


def forward(image, parameters, pool, patch=2):
    """h of one image, token by token; sines and cosines of rows, then of columns."""
    features = parameters["ln"]["scale"].size
    tokens = [parameters["token"][0, 0]] if pool == "token" else []
    for row in range(image.shape[0] // patch):
        for column in range(image.shape[1] // patch):
            at = image[patch * row :, patch * column :][:patch, :patch]
            place = [
                wave(where / 10_000 ** (4 * i / features))
                for where in (row, column)
                for wave in (np.sin, np.cos)
                for i in range(features // 4)
            ]
            tokens.append(dense(at, parameters["patches"], axes=3) + place)
    for block in (parameters["block1"], parameters["block2"]):
        mixed = attention([norm(t, block["ln1"]) for t in tokens], block["attention"])
        tokens = [t + m for t, m in zip(tokens, mixed, strict=True)]
        for i, token in enumerate(tokens):
            y = dense(norm(token, block["ln2"]), block["dense1"])
            y = y * (1 + erf(y / np.sqrt(2))) / 2
            tokens[i] = token + dense(y, block["dense2"])
    tokens = [norm(t, parameters["ln"]) for t in tokens]
    return tokens[0] if pool == "token" else sum(tokens) / len(tokens)


@pytest.mark.parametrize("pool", POOLS)
def test_forward_is_that_of_loops(x64, pool):
    images, encoder = draw(2, 4, 6, 3), make(pool, width=128)
    variables = init(encoder, images)
    # Not the first values, of which many are 0 or 1.
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * draw(*leaf.shape, seed=1), variables)
    found = apply(encoder, moved, images)
    parameters = jax.tree.map(np.asarray, moved["params"])
    expected = [forward(np.asarray(image), parameters, pool) for image in images]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_one_set_of_parameters_takes_images_of_any_size():
    variables = init(make(), jnp.zeros((1, 4, 4, 3)))
    for size in (2, 8):
        images = jnp.zeros((3, size, size, 3))
        h = jax.eval_shape(partial(apply, make()), variables, images)
        assert h.shape == (3, 64)


def test_nothing_couples_the_examples_of_a_batch(x64):
    """So a derivative along alpha of a batch needs no signs."""
    images, encoder = draw(3, 4, 4, 3), make()
    variables = init(encoder, images)
    tangent = draw(3, 4, 4, 3, seed=1)

    @jax.jit
    def change(images, tangent):
        h = partial(apply, encoder, variables)
        return jax.jvp(h, (images,), (tangent,))[1]

    alone = change(images[:1], tangent[:1])
    np.testing.assert_allclose(change(images, tangent)[:1], alone, rtol=1e-10)


def test_derivatives_of_first_and_second_order(x64):
    encoder, images = make(depth=1), draw(1, 2, 2, 3)
    variables = init(encoder, images)
    some = jax.jit(lambda images: apply(encoder, variables, images)[:, :3])
    check_grads(some, (images,), order=2, rtol=1e-4, atol=1e-4)


def test_patches_begin_as_a_linear_layer_does():
    params = init(make(), jnp.zeros((1, 4, 4, 3)))["params"]
    kernel = params["patches"]["kernel"]
    bound = np.sqrt(6 / (np.prod(kernel.shape[:3]) + kernel.shape[3]))
    assert 0.9 * bound < np.abs(kernel).max() <= bound


def test_rematerialized_and_half_precision_agree():
    images = draw(2, 4, 4, 3).astype(jnp.float32)
    variables = init(make(), images)
    expected = apply(make(), variables, images)
    again = apply(make(rematerialize=True), variables, images)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-6)
    half = apply(make(precision="bfloat16"), variables, images)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size is 3, expected a divisor .* 4 x 4"),
        ({"patch_size": 2.0}, "patch_size must be an integer .* found 2.0"),
        ({"width": 100}, "width is 100, expected a multiple of 64"),
        ({"pool": "max"}, "pool must be one of .* found 'max'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        init(make(**changes), jnp.zeros((1, 4, 4, 3)))
