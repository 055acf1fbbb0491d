"""Feature averaging: the draws of an example, the running means, the memory."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.evaluation.averaging import (
    average_features,
    encode_views,
    sample_view,
)
from invariance_jax.types import Array, Key

BATCH, FEATURES, SIZE = 6, 5, 2


class Drawn(NamedTuple):
    alpha: Array
    held: Array


class Tint:
    """Shifts the colours of a plain image by alpha and flips it where held says so."""

    def sample(self, key: Key, batch_size: int, /) -> Drawn:
        key_alpha, key_held = jax.random.split(key)
        return Drawn(
            jax.random.normal(key_alpha, (batch_size, 3)),
            jax.random.bernoulli(key_held, shape=(batch_size,)),
        )

    def apply(self, x: Array, view: Drawn, /) -> Array:
        ramp = jnp.linspace(0.0, 1.0, SIZE).astype(x.dtype)
        ramp = jnp.where(view.held[:, None], ramp[None, ::-1], ramp[None])
        colors = x[:, :3] + view.alpha.astype(x.dtype)
        rows = jnp.broadcast_to(ramp[:, None, :, None], (len(x), SIZE, SIZE, 1))
        return rows * colors[:, None, None, :]


KERNEL = np.sin(np.arange(SIZE * SIZE * 3 * FEATURES) * 0.7).reshape(-1, FEATURES)


def encode(images: Array) -> Array:
    flat = images.reshape(len(images), -1)
    return jnp.tanh(flat @ jnp.asarray(KERNEL, flat.dtype))


@partial(jax.jit, static_argnames="num_views")
def average(key: Key, x: Array, indices: Array, num_views: tuple[int, ...]) -> Array:
    """The function under test, compiled once for each shape and sweep."""
    return average_features(
        key, encode, Tint(), x, num_views=num_views, indices=indices
    )


@pytest.fixture
def key() -> Key:
    return jax.random.key(3)


@pytest.fixture
def x() -> Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 4)), jnp.float32)


def loop_views(key: Key, x: np.ndarray, indices: list[int], count: int) -> np.ndarray:
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


def test_average_features_is_the_mean_over_views_of_a_loop(key: Key, x: Array) -> None:
    result = average_features(key, encode, Tint(), x, num_views=(1, 3, 4))
    views = loop_views(key, np.asarray(x), list(range(BATCH)), 4)
    expected = np.stack([views[:count].mean(axis=0) for count in (1, 3, 4)])
    assert result.shape == (3, BATCH, FEATURES)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_indices_name_the_draws_of_the_loop(key: Key, x: Array) -> None:
    indices = [40, 2, 7, 7, 0, 100000]
    result = encode_views(
        key, encode, Tint(), x, num_views=2, indices=jnp.asarray(indices)
    )
    np.testing.assert_allclose(
        result, loop_views(key, np.asarray(x), indices, 2), atol=1e-5
    )


def test_running_mean_is_the_plain_mean_of_encode_views(key: Key, x: Array) -> None:
    views = encode_views(key, encode, Tint(), x, num_views=9)
    result = average_features(key, encode, Tint(), x, num_views=(2, 9))
    assert views.shape == (9, BATCH, FEATURES)
    np.testing.assert_allclose(result[0], views[:2].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(result[1], views.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_sweep_gives_what_each_number_of_views_gives_alone(
    key: Key, x: Array, count: int
) -> None:
    sweep = average(key, x, jnp.arange(BATCH), (1, 4, 5))
    alone = average(key, x, jnp.arange(BATCH), (count,))
    np.testing.assert_array_equal(sweep[(1, 4, 5).index(count)], alone[0])


def test_draws_are_bitwise_the_same_in_any_batches(key: Key) -> None:
    whole = sample_view(key, Tint(), jnp.arange(7), view=5)
    parts = [
        sample_view(key, Tint(), jnp.asarray(part), view=5)
        for part in ([0, 1, 2], [3], [4, 5, 6])
    ]
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    np.testing.assert_array_equal(joined.alpha, whole.alpha)
    np.testing.assert_array_equal(joined.held, whole.held)
    assert whole.alpha.shape == (7, 3)
    assert whole.held.dtype == bool


def test_draws_differ_between_examples_views_and_keys(key: Key) -> None:
    base = sample_view(key, Tint(), jnp.arange(4), view=0).alpha
    others = [
        sample_view(key, Tint(), jnp.arange(4), view=1).alpha,
        sample_view(jax.random.key(4), Tint(), jnp.arange(4), view=0).alpha,
        base[jnp.asarray([1, 2, 3, 0])],
    ]
    for other in others:
        assert not np.any(np.asarray(base) == np.asarray(other))


def test_view_and_example_are_not_interchangeable(key: Key) -> None:
    first = sample_view(key, Tint(), jnp.asarray([2]), view=1).alpha
    second = sample_view(key, Tint(), jnp.asarray([1]), view=2).alpha
    assert not np.any(np.asarray(first) == np.asarray(second))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_features_are_the_same_in_any_batches(key: Key, x: Array, size: int) -> None:
    identities = jnp.arange(BATCH)
    whole = average(key, x, identities, (1, 4, 5))
    parts = [
        average(key, x[part], identities[part], (1, 4, 5))
        for part in (slice(start, start + size) for start in range(0, BATCH, size))
    ]
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-6)


def test_features_follow_a_permutation_of_the_examples(key: Key, x: Array) -> None:
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    plain = average(key, x, jnp.arange(BATCH), (1, 4, 5))
    permuted = average(key, x[order], order, (1, 4, 5))
    np.testing.assert_allclose(permuted, plain[:, order], atol=1e-6)


def test_jit_equals_eager_and_traces_once_for_all_batches(key: Key, x: Array) -> None:
    traces = []

    def counted(images: Array) -> Array:
        traces.append(images.shape)
        return encode(images)

    def run(x: Array, indices: Array) -> Array:
        return average_features(
            key, counted, Tint(), x, num_views=(1, 2, 4, 8), indices=indices
        )

    compiled = jax.jit(run)
    first = compiled(x[:3], jnp.arange(3))
    after_first = len(traces)
    second = compiled(x[3:], jnp.arange(3, 6))
    assert len(traces) == after_first <= 2
    eager = average_features(key, encode, Tint(), x, num_views=(1, 2, 4, 8))
    joined = jnp.concatenate([first, second], axis=1)
    np.testing.assert_allclose(joined, eager, atol=1e-6)


def test_vmap_over_shards_equals_eager(key: Key, x: Array) -> None:
    def run(x: Array, indices: Array) -> Array:
        return average(key, x, indices, (1, 4, 5))

    shards = jax.vmap(run)(x.reshape(3, 2, 4), jnp.arange(6).reshape(3, 2))
    joined = jnp.moveaxis(shards, 0, 1).reshape(3, BATCH, FEATURES)
    np.testing.assert_allclose(joined, run(x, jnp.arange(6)), atol=1e-6)


def values_of(jaxpr: Any) -> Iterator[Any]:
    """Every value that a jaxpr and the jaxprs inside it compute."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "jaxpr")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from values_of(inner)


def largest_value(function: Any, x: Array) -> int:
    jaxpr = jax.make_jaxpr(function)(x).jaxpr
    return max(aval.size for aval in values_of(jaxpr) if aval.dtype == jnp.float32)


def test_memory_does_not_grow_with_the_number_of_views(key: Key, x: Array) -> None:
    def average(count: int) -> int:
        return largest_value(
            lambda x: average_features(key, encode, Tint(), x, num_views=(1, count)), x
        )

    def stack(count: int) -> int:
        return largest_value(
            lambda x: encode_views(key, encode, Tint(), x, num_views=count), x
        )

    assert stack(64) == 64 * BATCH * FEATURES  # The walk sees what is inside.
    assert average(64) == average(4) < 4 * BATCH * FEATURES


def test_examples_may_be_a_pytree(key: Key, x: Array) -> None:
    class FromTree(Tint):
        def apply(self, x: Any, view: Drawn, /) -> Array:
            return super().apply(x["colors"] + x["shift"][:, None], view)

    tree = {"colors": x, "shift": jnp.arange(BATCH, dtype=jnp.float32)}
    result = average_features(key, encode, FromTree(), tree, num_views=(1, 4, 5))
    moved = x + jnp.arange(BATCH, dtype=jnp.float32)[:, None]
    expected = average(key, moved, jnp.arange(BATCH), (1, 4, 5))
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_fixed_linear_head_has_no_more_loss_on_the_average(
    key: Key, x: Array
) -> None:
    head = np.random.default_rng(1).normal(size=(FEATURES, 2))
    target = np.random.default_rng(2).normal(size=(BATCH, 2))
    views = np.asarray(encode_views(key, encode, Tint(), x, num_views=5))
    means = np.asarray(average(key, x, jnp.arange(BATCH), (1, 4, 5)))
    single = [np.mean((h @ head - target) ** 2) for h in views]
    losses = [np.mean((h @ head - target) ** 2) for h in means]
    assert losses[2] < np.mean(single)
    assert losses[1] < np.mean(single[:4])


def test_the_average_of_many_views_approaches_a_limit(key: Key, x: Array) -> None:
    h = np.stack(
        [
            average(jax.random.key(seed), x, jnp.arange(BATCH), (1, 64))
            for seed in range(8)
        ]
    )
    spread = np.mean(np.var(h, axis=0, ddof=1), axis=(1, 2))
    np.testing.assert_allclose(spread[1], spread[0] / 64, rtol=0.4)


def test_the_identity_transformation_gives_the_encoder_itself(
    key: Key, x: Array
) -> None:
    class Identity(Tint):
        def sample(self, key: Key, batch_size: int, /) -> Drawn:
            return Drawn(jnp.zeros((batch_size, 3)), jnp.zeros(batch_size, bool))

    drawn = Identity().sample(key, BATCH)
    expected = encode(Tint().apply(x, drawn))
    result = average_features(key, encode, Identity(), x, num_views=(1, 7))
    np.testing.assert_allclose(result[0], expected, atol=1e-6)
    np.testing.assert_allclose(result[1], expected, atol=1e-6)


def test_the_gradient_in_the_examples_is_that_of_the_mean(key: Key, x: Array) -> None:
    def averaged(x: Array) -> Array:
        return jnp.sum(average_features(key, encode, Tint(), x, num_views=(3,))[0])

    def stacked(x: Array) -> Array:
        return jnp.sum(encode_views(key, encode, Tint(), x, num_views=3)) / 3

    np.testing.assert_allclose(jax.grad(averaged)(x), jax.grad(stacked)(x), atol=1e-5)


def test_float64_is_kept(x64: None) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)))
    result = average_features(jax.random.key(0), encode, Tint(), x, num_views=(1, 2))
    assert result.dtype == jnp.float64
    expected = loop_views(jax.random.key(0), np.asarray(x), [0, 1, 2], 2)
    np.testing.assert_allclose(result[1], expected.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("index", [-1, 2**32, 2**32 + 1])
def test_indices_beyond_32_bits_are_refused(key: Key, index: int) -> None:
    # A key would take them for 2^32 - 1, 0 and 1.
    with pytest.raises(ValueError, match="indices must be from 0 to 4294967295"):
        sample_view(key, Tint(), np.array([index]), view=0)
    with pytest.raises(ValueError, match="view must be an integer from 0 to"):
        sample_view(key, Tint(), np.array([0]), view=index)


def test_numpy_integers_are_numbers_of_views(key: Key, x: Array) -> None:
    found = average_features(key, encode, Tint(), x, num_views=(np.int64(2),))
    expected = average_features(key, encode, Tint(), x, num_views=(2,))
    np.testing.assert_array_equal(found, expected)


def test_bfloat16_is_summed_in_float32(key: Key, x: Array) -> None:
    def constant(images: Array) -> Array:
        return jnp.full((len(images), FEATURES), 1.0078125, jnp.bfloat16)

    result = average_features(key, constant, Tint(), x, num_views=(300,))
    assert result.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(result, np.float32), 1.0078125)


@pytest.mark.parametrize(
    "num_views", [(), (0,), (0, 1), (-1, 2), (2, 2), (3, 1), 4, [1, 2], (1.0,), (True,)]
)
def test_a_bad_sweep_is_refused(key: Key, x: Array, num_views: Any) -> None:
    with pytest.raises(ValueError, match="num_views must be a strictly increasing"):
        average_features(key, encode, Tint(), x, num_views=num_views)


@pytest.mark.parametrize("num_views", [0, -1, 2.0, True, (2,)])
def test_a_bad_number_of_views_is_refused(key: Key, x: Array, num_views: Any) -> None:
    with pytest.raises(ValueError, match="num_views must be an integer of 1 or more"):
        encode_views(key, encode, Tint(), x, num_views=num_views)


def test_indices_of_another_length_are_refused(key: Key, x: Array) -> None:
    with pytest.raises(ValueError, match="each of the 6 examples of x, but has 4"):
        average_features(key, encode, Tint(), x, num_views=(1,), indices=jnp.arange(4))


def test_indices_that_are_no_vector_are_refused(key: Key, x: Array) -> None:
    with pytest.raises(ValueError, match=r"indices must be \[B\], an int"):
        average_features(
            key, encode, Tint(), x, num_views=(1,), indices=jnp.zeros((6, 1), int)
        )


def test_indices_that_are_not_integers_are_refused(key: Key) -> None:
    with pytest.raises(ValueError, match="integer dtype, not float32"):
        sample_view(key, Tint(), jnp.zeros(3), view=0)


@pytest.mark.parametrize(
    "x", [(), jnp.float32(1), {"a": jnp.zeros((2, 4)), "b": jnp.zeros(3)}]
)
def test_examples_without_a_common_axis_are_refused(key: Key, x: Any) -> None:
    with pytest.raises(ValueError, match="share one leading axis B"):
        average_features(key, encode, Tint(), x, num_views=(1,))


def test_an_encoder_of_another_rank_is_refused(key: Key, x: Array) -> None:
    with pytest.raises(ValueError, match=r"encode must give \[B, D\] with B = 6"):
        average_features(key, lambda v: v, Tint(), x, num_views=(1,))


def test_an_encoder_of_integers_is_refused(key: Key, x: Array) -> None:
    with pytest.raises(ValueError, match="float dtype, but gives int32"):
        average_features(
            key, lambda v: jnp.zeros((6, 2), jnp.int32), Tint(), x, num_views=(1,)
        )
