"""Feature averaging: the draws of an example, the running means, the memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from intermediates import largest_intermediate
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.evaluation.averaging import (
    average_features,
    encode_views,
    sample_view,
)
from invariance_jax.transforms import View

BATCH, FEATURES, SIZE = 6, 5, 2


class Tint:
    """Shifts the colours of a plain image by alpha and flips it where held says so."""

    def sample(self, key, batch_size, /):
        key_alpha, key_held = jax.random.split(key)
        return View(
            jax.random.normal(key_alpha, (batch_size, 3)),
            jax.random.bernoulli(key_held, shape=(batch_size,)),
        )

    def apply(self, x, view, /):
        ramp = jnp.linspace(0.0, 1.0, SIZE).astype(x.dtype)
        ramp = jnp.where(view.held[:, None], ramp[None, ::-1], ramp[None])
        colors = x[:, :3] + view.alpha.astype(x.dtype)
        rows = jnp.broadcast_to(ramp[:, None, :, None], (len(x), SIZE, SIZE, 1))
        return rows * colors[:, None, None, :]


KERNEL = np.sin(np.arange(SIZE * SIZE * 3 * FEATURES) * 0.7).reshape(-1, FEATURES)


def encode(images):
    flat = images.reshape(len(images), -1)
    return jnp.tanh(flat @ jnp.asarray(KERNEL, flat.dtype))


@partial(jax.jit, static_argnames="num_views")
def average(key, x, indices, num_views):
    """The function under test, compiled once for each shape and sweep."""
    return average_features(
        key, encode, Tint(), x, num_views=num_views, indices=indices
    )


@pytest.fixture
def key():
    return jax.random.key(3)


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 4)), jnp.float32)


def loop_views(key, x, indices, count):
    """The representation of each view of each example, one at a time, in NumPy."""
    h = np.zeros((count, len(x), FEATURES))
    for m in range(count):
        for b, index in enumerate(indices):
            own_key = jax.random.fold_in(jax.random.fold_in(key, m), index)
            drawn = Tint().sample(own_key, 1)
            color = np.asarray(x[b, :3], float) + np.asarray(drawn.alpha[0], float)
            image = np.zeros((SIZE, SIZE, 3))
            for column in range(SIZE):
                place = SIZE - 1 - column if drawn.held[0] else column
                image[:, place] = column / (SIZE - 1) * color
            for d in range(FEATURES):
                h[m, b, d] = np.tanh(np.sum(image.ravel() * KERNEL[:, d]))
    return h


@pytest.mark.parametrize("indices", [None, [40, 2, 7, 7, 0, 100000]], ids=str)
def test_views_and_their_averages_are_those_of_a_loop(key, x, indices):
    given = None if indices is None else jnp.asarray(indices)
    views = encode_views(key, encode, Tint(), x, num_views=4, indices=given)
    expected = loop_views(key, np.asarray(x), indices or list(range(BATCH)), 4)
    assert_allclose(views, expected, atol=1e-5)
    settings = {"num_views": (1, 3, 4), "indices": given}
    averages = average_features(key, encode, Tint(), x, **settings)
    expected = np.stack([views[:count].mean(axis=0) for count in (1, 3, 4)])
    assert_allclose(averages, expected, atol=1e-6)


def test_float64_is_kept(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    result = average_features(jax.random.key(0), encode, Tint(), x, num_views=(1, 2))
    assert result.dtype == jnp.float64
    expected = loop_views(jax.random.key(0), np.asarray(x), [0, 1, 2], 2)
    assert_allclose(result[1], expected.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_draws_are_bitwise_the_same_in_any_batches(implementation):
    key = jax.random.key(3, impl=implementation)
    whole = sample_view(key, Tint(), jnp.arange(7), view=5)
    parts = [
        sample_view(key, Tint(), jnp.asarray(part), view=5)
        for part in ([0, 1, 2], [3], [4, 5, 6])
    ]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    assert_array_equal(joined.alpha, whole.alpha)
    assert_array_equal(joined.held, whole.held)
    assert whole.alpha.shape == (7, 3)
    assert whole.held.dtype == bool


def test_draws_differ_between_examples_views_and_keys(key):
    def draw(key, indices, view):
        return np.asarray(sample_view(key, Tint(), jnp.asarray(indices), view=view)[0])

    base = draw(key, [0, 1, 2, 3], 0)
    for other in (
        draw(key, [0, 1, 2, 3], 1),
        draw(jax.random.key(4), [0, 1, 2, 3], 0),
        base[[1, 2, 3, 0]],
    ):
        assert not np.any(base == other)
    assert not np.any(draw(key, [2], 1) == draw(key, [1], 2))  # not interchangeable


def test_jit_traces_once_for_all_batches_and_vmap_maps_shards(key, x):
    traces = []

    def counted(images):
        traces.append(images.shape)
        return encode(images)

    @jax.jit
    def run(x, indices):
        settings = {"num_views": (1, 4, 5), "indices": indices}
        return average_features(key, counted, Tint(), x, **settings)

    first, after_first = run(x[:3], jnp.arange(3)), len(traces)
    joined = jnp.concatenate([first, run(x[3:], jnp.arange(3, 6))], axis=1)
    assert len(traces) == after_first <= 2
    whole = average(key, x, jnp.arange(BATCH), (1, 4, 5))
    assert_allclose(joined, whole, atol=1e-5)
    shards = jax.vmap(run)(x.reshape(3, 2, 4), jnp.arange(6).reshape(3, 2))
    shards = jnp.moveaxis(shards, 0, 1).reshape(3, BATCH, FEATURES)
    assert_allclose(shards, whole, atol=1e-5)


def test_memory_does_not_grow_with_the_number_of_views(key, x):
    def largest(function, num_views):
        return largest_intermediate(
            lambda x: function(key, encode, Tint(), x, num_views=num_views), x
        )

    assert largest(encode_views, 64) == 64 * BATCH * FEATURES  # the walk sees it
    many, few = (largest(average_features, (1, n)) for n in (64, 4))
    assert many == few < 4 * BATCH * FEATURES


def test_examples_may_be_a_pytree(key, x):
    class FromTree(Tint):
        def apply(self, x, view, /):
            return super().apply(x["colors"] + x["shift"][:, None], view)

    tree = {"colors": x, "shift": jnp.arange(BATCH, dtype=jnp.float32)}
    result = average_features(key, encode, FromTree(), tree, num_views=(1, 4, 5))
    moved = x + jnp.arange(BATCH, dtype=jnp.float32)[:, None]
    expected = average(key, moved, jnp.arange(BATCH), (1, 4, 5))
    assert_allclose(result, expected, atol=1e-6)


def test_the_gradient_in_the_examples_is_that_of_the_mean(key, x):
    def averaged(x):
        return jnp.sum(average_features(key, encode, Tint(), x, num_views=(3,))[0])

    def stacked(x):
        return jnp.sum(encode_views(key, encode, Tint(), x, num_views=3)) / 3

    assert_allclose(jax.grad(averaged)(x), jax.grad(stacked)(x), atol=1e-5)


@pytest.mark.parametrize("index", [-1, jnp.int32(-1), 2**32, 2**32 + 1])
def test_indices_beyond_32_bits_are_refused(key, index):
    # A key would take them for 2^32 - 1, 0 and 1.
    with pytest.raises(ValueError, match="indices must be from 0 to 4294967295"):
        sample_view(key, Tint(), np.array([index]), view=0)
    with pytest.raises(ValueError, match="view must be an integer from 0 to"):
        sample_view(key, Tint(), np.array([0]), view=index)


def test_bfloat16_is_summed_in_float32(key, x):
    def constant(images):
        return jnp.full((len(images), FEATURES), 1.0078125, jnp.bfloat16)

    number = np.int64(300)  # NumPy's integers are numbers of views
    result = average_features(key, constant, Tint(), x, num_views=(number,))
    assert result.dtype == jnp.float32
    assert_array_equal(np.asarray(result, np.float32), 1.0078125)


@pytest.mark.parametrize(
    "num_views", [(), (0,), (0, 1), (-1, 2), (2, 2), (3, 1), 4, [1, 2], (1.0,), (True,)]
)
def test_a_bad_sweep_is_refused(key, x, num_views):
    with pytest.raises(ValueError, match="num_views must be a strictly increasing"):
        average_features(key, encode, Tint(), x, num_views=num_views)


@pytest.mark.parametrize("num_views", [0, -1, 2.0, True, (2,)])
def test_a_bad_number_of_views_is_refused(key, x, num_views):
    with pytest.raises(ValueError, match="num_views must be an integer of 1 or more"):
        encode_views(key, encode, Tint(), x, num_views=num_views)


COMMON = "share one leading axis B"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"indices": jnp.arange(4)}, "each of the 6 examples of x, but has 4"),
        ({"indices": jnp.zeros((6, 1), int)}, r"indices must be \[B\], an int"),
        ({"indices": jnp.zeros(6)}, "integer dtype, not float32"),
        ({"x": ()}, COMMON),
        ({"x": jnp.float32(1)}, COMMON),
        ({"x": {"a": jnp.zeros((2, 4)), "b": jnp.zeros(3)}}, COMMON),
        ({"encode": lambda v: v}, r"encode must return \[B, D\] with B = 6"),
        ({"encode": lambda v: jnp.zeros((6, 2), int)}, "dtype; found int32"),
    ],
)
def test_bad_examples_indices_and_encoders_are_refused(key, x, changes, message):
    given = {"encode": encode, "x": x, "transformation": Tint(), **changes}
    with pytest.raises(ValueError, match=message):
        average_features(key, num_views=(1,), **given)
