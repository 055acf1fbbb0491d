"""The draws of a step: permutations of the examples, views, signed directions."""

import itertools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_base

from invariance_jax.settings.schema import Penalty
from invariance_jax.training.batches import make_sampler, shuffle
from invariance_jax.training.draws import make_draw
from invariance_jax.transforms import spirograph

KEY = jax.random.key(0)
BATCH, EXAMPLES, DIRECTIONS = 8, 30, 3


def make(transformation=None, *, average_views=1, **penalty):
    """The draws; keywords are keys of the penalty."""
    draw = make_draw(
        transformation or spirograph.make_transformation(),
        Penalty(**{"directions": DIRECTIONS, **penalty}),
        batch_size=BATCH,
        sign_features=5,
        average_views=average_views,
    )
    return jax.jit(draw)


def of_200_steps(**settings):
    """The draws of 200 steps, stacked."""
    return jax.vmap(make(**settings), in_axes=(None, 0))(KEY, jnp.arange(200))


@pytest.fixture(scope="module")
def draw():
    return make()


def sampler(num_examples=EXAMPLES):
    return jax.jit(make_sampler(num_examples=num_examples, batch_size=BATCH))


@pytest.fixture(scope="module")
def indices():
    """Those of 200 steps, `[200, B]`."""
    steps = jnp.arange(200, dtype=jnp.int32)
    return np.asarray(jax.vmap(sampler(), in_axes=(None, 0))(KEY, steps))


@pytest.fixture(scope="module")
def many():
    return of_200_steps()


def alpha_of(side):
    return np.asarray(side.views[0].alpha)


def permutation(key, num_examples):
    positions = jnp.arange(num_examples, dtype=jnp.int32)
    return np.asarray(shuffle(key, positions, num_examples=num_examples))


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_every_generator_draws_each_direction_from_a_key_of_its_own(implementation):
    key, step = jax.random.key(0, impl=implementation), jnp.int32(5)
    transformation = spirograph.make_transformation()
    _, views_key = jax.random.split(key)
    keys = jax.random.split(jax.random.fold_in(views_key, step), 3 + DIRECTIONS)
    side = make(transformation)(key, step).first
    alpha = alpha_of(side)
    change = np.abs(np.asarray(side.alpha_other) - alpha[:, None])
    for number, own in enumerate(keys[3:]):
        drawn = np.asarray(transformation.sample(own, BATCH).alpha)
        expected = np.abs(drawn - alpha)
        np.testing.assert_allclose(change[:, number], expected, rtol=0, atol=1e-6)


def test_the_program_does_not_grow_with_the_directions():
    def size(directions):
        text = str(jax.make_jaxpr(make(directions=directions))(KEY, 0))
        return text.count(" = ")

    assert size(3) == size(300)


@pytest.mark.parametrize("num_examples", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_shuffle_is_a_permutation(num_examples):
    found = permutation(KEY, num_examples)
    np.testing.assert_array_equal(np.sort(found), np.arange(num_examples))


def test_shuffle_gives_every_permutation_of_three_equally_often():
    keys = jax.random.split(KEY, 3000)
    positions = jnp.arange(3, dtype=jnp.int32)
    rows = jax.vmap(lambda key: shuffle(key, positions, num_examples=3))(keys)
    counts = Counter(map(tuple, np.asarray(rows).tolist()))
    expected = 3000 / 6
    chi_squared = sum(
        (counts[order] - expected) ** 2 / expected
        for order in itertools.permutations(range(3))
    )
    assert chi_squared < 25  # 5 degrees of freedom: exceeded once in 7000


def test_shuffle_of_some_positions_is_that_of_all():
    positions = jnp.array([3, 999, 0], jnp.int32)
    found = shuffle(KEY, positions, num_examples=1000)
    np.testing.assert_array_equal(found, permutation(KEY, 1000)[positions])


def test_shuffle_is_the_same_in_double_precision():
    found = permutation(KEY, 1000)
    with jax.enable_x64(True):
        wide = permutation(KEY, 1000)
    assert wide.dtype == found.dtype == np.int32
    np.testing.assert_array_equal(wide, found)


def test_an_epoch_takes_every_example_at_most_once(indices):
    per_epoch = EXAMPLES // BATCH
    for epoch in range(5):
        taken = indices[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert len(np.unique(taken)) == per_epoch * BATCH


def test_the_remainder_is_another_one_in_each_epoch(indices):
    per_epoch = EXAMPLES // BATCH
    epochs = indices[: 60 * per_epoch].reshape(60, -1)
    left_out = [tuple(sorted({*range(EXAMPLES)} - {*row})) for row in epochs.tolist()]
    assert len(set(left_out)) > 50


def test_held_choices_are_drawn_for_each_example_of_both_views():
    draws = of_200_steps(transformation=test_base.GOOD)
    first, second = (np.asarray(side.views[0].held["mirror"]) for side in draws[:2])
    for even in (first, second, first == second, first[:, 0] == first[:, 1]):
        assert abs(even.mean() - 0.5) < 2.5 / np.sqrt(even.size)


def test_keys_draw_different_steps(draw):
    ours, theirs = draw(KEY, 0), draw(jax.random.key(1), 0)
    assert not np.array_equal(alpha_of(ours.first), alpha_of(theirs.first))
    sample = sampler()
    assert not np.array_equal(sample(KEY, 0), sample(jax.random.key(1), 0))


def test_views_and_directions_are_independent(many):
    sources = [alpha_of(many.first), alpha_of(many.second)]
    sources += [many.first.alpha_other[:, :, k] for k in range(DIRECTIONS)]
    columns = np.stack([np.asarray(s)[..., 0].ravel() for s in sources])
    correlation = np.corrcoef(columns)
    bound = 5 / np.sqrt(columns.shape[1])
    assert np.abs(correlation[0, 1]) < bound
    # Ends are reflected about the first view: they go with it, not with the second.
    assert np.abs(correlation[1, 2:]).max() < bound


@pytest.fixture(scope="module")
def inside(many):
    """Whether ends, and their reflections, are within the bounds, `[200, B, K]`."""
    low, high = spirograph.make_transformation().bounds.T
    alpha, end = alpha_of(many.first)[:, :, None], np.asarray(many.first.alpha_other)
    return [
        np.all((one >= low - 1e-5) & (one <= high + 1e-5), axis=-1)
        for one in (end, 2 * alpha - end)
    ]


def test_an_end_or_its_reflection_is_within_the_bounds(inside):
    end, back = inside
    assert np.all(end | back) and not np.all(end)


def test_signs_are_even_and_independent_between_examples_and_directions(inside):
    end, back = inside
    sure, sign = ~end | ~back, np.where(end, 1.0, -1.0)
    assert abs(sign[sure].mean()) < 5 / np.sqrt(sure.sum())
    for first, second in [
        ((slice(None), 0, 0), (slice(None), 1, 0)),
        ((slice(None), slice(None), 0), (slice(None), slice(None), 1)),
    ]:
        both = sure[first] & sure[second]
        product = (sign[first] * sign[second])[both]
        assert abs(product.mean()) < 5 / np.sqrt(both.sum())


@pytest.fixture(scope="module")
def with_options():
    """As `many`, with everything that may be drawn."""
    return of_200_steps(estimator="sign", average_views=3)


def test_what_is_off_is_not_drawn(draw):
    draws = draw(KEY, 4)
    assert draws.first.signs is None and draws.second[1:] == (None,) * 4
    assert len(draws.first.views) == len(draws.second.views) == 1
    for off in ({"weight": 0.0}, {"kind": "consistency"}):
        none = jax.eval_shape(make(estimator="sign", **off), KEY, 4)
        assert none.first[1:] == (None,) * 4


def test_options_leave_the_other_draws_as_they_are(many, with_options):
    for ours, theirs in zip(many[:2], with_options[:2], strict=True):
        np.testing.assert_array_equal(alpha_of(ours), alpha_of(theirs))
    ends = many.first.alpha_other, with_options.first.alpha_other
    np.testing.assert_array_equal(*ends)
    fewer = make(average_views=2, weight=0.0, directions=1)(KEY, 4)
    for ours, theirs in zip(fewer[:2], with_options[:2], strict=True):
        for number, view in enumerate(ours.views):
            expected = theirs.views[number].alpha[4]
            np.testing.assert_array_equal(view.alpha, expected)


def test_one_parameter_is_redrawn_as_often_as_its_weight_says():
    weights = (1.0, 0.0, 2.0, 0.0, 0.0, 1.0)
    side = of_200_steps(kind="total_effect", parameter_weights=weights).first
    low, high = spirograph.make_transformation().bounds.T
    assert side.alpha_other is None
    moved = np.asarray(side.alpha_redrawn != side.views[0].alpha[:, :, None])
    assert np.all(moved.sum(axis=-1) == 1)
    shares = moved.mean(axis=(0, 1, 2))
    np.testing.assert_allclose(shares, np.array(weights) / 4, atol=0.03)
    ends = np.asarray(side.alpha_redrawn)
    assert np.all((ends >= low - 1e-5) & (ends <= high + 1e-5))
    new = ends[moved[..., 2], 2]
    assert abs(new.mean() - (low[2] + high[2]) / 2) < 0.02


@pytest.mark.parametrize("kind", ["gradient", "total_effect", "mixed"])
def test_ends_differ_from_the_view_in_the_penalized_parameters_only(kind):
    names = spirograph.make_transformation().names
    side = of_200_steps(kind=kind, parameters=(names[1], names[4])).first
    for ends in (side.alpha_other, side.alpha_redrawn):
        if ends is not None:
            change = abs(np.asarray(ends) - alpha_of(side)[:, :, None])
            moved = change.max(axis=(0, 1, 2)) > 1e-6  # two programs may round alpha
            assert [*np.flatnonzero(moved)] == [1, 4]


def test_full_steps_go_to_the_draw_that_directions_are_reflected_from(many):
    side = of_200_steps(kind="mixed").first
    # But for the rounding of two programs.
    np.testing.assert_allclose(side.alpha_other, many.first.alpha_other, atol=1e-6)
    alpha = alpha_of(side)[:, :, None]
    change, step = side.alpha_other - alpha, side.alpha_redrawn - alpha
    np.testing.assert_allclose(abs(change), abs(step), atol=1e-6)
    assert {*np.unique(np.sign(change[..., 0] * step[..., 0]))} == {-1.0, 1.0}
    assert {*np.unique(side.columns)} == {*range(6)}


def test_options_are_independent_of_one_another_and_of_the_rest(with_options):
    draws = with_options
    signs = np.asarray(draws.first.signs)
    assert {*np.unique(signs)} == {-1.0, 1.0}
    assert abs(signs.mean()) < 5 / np.sqrt(signs.size)
    columns = [view.alpha[..., 0] for side in draws[:2] for view in side.views]
    columns += [signs[:, :, 0, 0], signs[:, :, 1, 0], signs[:, :, 0, 1]]
    columns += [signs[:, ::-1, 0, 0]]
    columns = np.stack([np.asarray(column, float).ravel() for column in columns])
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / np.sqrt(columns.shape[1])
