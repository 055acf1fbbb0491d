"""The variance within examples, in total, and the ratio of the two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from invariance_jax.evaluation.variance import invariance, paired_change


def loop_invariance(h):
    """The definition, sums written out, in float64."""
    views, batch, features = h.shape
    within = total = 0.0
    for d in range(features):
        for b in range(batch):
            mean = sum(h[m, b, d] for m in range(views)) / views
            squares = sum((h[m, b, d] - mean) ** 2 for m in range(views))
            within += squares / (views - 1) / batch
        rows = [h[m, b, d] for m in range(views) for b in range(batch)]
        mean = sum(rows) / len(rows)
        total += sum((row - mean) ** 2 for row in rows) / (len(rows) - 1)
    return within, total, within / total


def make_h(views=3, batch=5, features=4):
    generator = np.random.default_rng(7)
    centres = 2 * generator.normal(size=(1, batch, features))
    return centres + generator.normal(size=(views, batch, features))


def test_agrees_with_the_loop(x64):
    result = invariance(jnp.asarray(make_h()))
    assert all(value.dtype == jnp.float64 and value.shape == () for value in result)
    assert_allclose(result, loop_invariance(make_h()), rtol=1e-12)


def test_scales_and_shifts_change_variances_as_they_must(x64):
    h = jnp.asarray(make_h())
    plain, scaled = invariance(h), invariance(8 * h)
    expected = [64 * plain.within, 64 * plain.total, plain.normalized]
    assert_allclose(scaled, expected, rtol=1e-12)
    shift = jnp.asarray([[[1.0, -2.0, 30.0, 0.5]]])
    assert_allclose(invariance(h + shift), plain, rtol=1e-10)
    moved = invariance(h + 10 * h[:1])  # each example by its own
    assert_allclose(moved.within, plain.within, rtol=1e-10)
    assert moved.total > 2 * plain.total
    permuted = h[jnp.array([2, 0, 1])][:, jnp.array([4, 2, 0, 1, 3])]
    assert_allclose(invariance(permuted), plain, rtol=1e-12)


def test_an_invariant_representation_has_exactly_zero_within():
    h = jnp.asarray(make_h(views=1), jnp.float32)
    result = invariance(jnp.broadcast_to(h, (7, *h.shape[1:])))
    assert result.within == 0 and result.normalized == 0 and result.total > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_no_variance(dtype, x64):
    h = make_h(views=4).astype(dtype)
    noise = 1 + np.finfo(dtype).eps * np.array([0, 1, 3, 2]).reshape(4, 1, 1)
    still = h[:1] * noise.astype(dtype)
    result = invariance(jnp.asarray(still))
    assert still.std(axis=0).all()  # there is rounding
    assert result.within == 0 and result.normalized == 0 and result.total > 0
    assert paired_change(jnp.asarray(still)) == 0
    both = jnp.concatenate([h, still], axis=1)  # examples that change count
    assert_allclose(invariance(both).within, invariance(h).within / 2, rtol=1e-5)
    assert_allclose(paired_change(both), paired_change(h) / 2, rtol=1e-5)


@pytest.mark.parametrize("spread", [1e-5, 1e-6, 1e-7])
def test_a_collapse_within_rounding_is_no_invariance(spread):
    random = np.random.default_rng(0).normal(size=(4, 200, 16))
    center = np.full(16, 0.25)  # a unit vector
    h = jnp.asarray(center + spread * random, jnp.float32)
    assert_allclose(invariance(h).normalized, 1, atol=0.05)


def test_a_constant_representation_gives_zeros_and_finite_derivatives():
    # 0.1 seven times has a mean that float32 rounds to another number than 0.1.
    h = jnp.full((7, 3, 2), 0.1, jnp.float32)
    assert [float(value) for value in invariance(h)] == [0, 0, 0]
    gradient = jax.grad(lambda h: invariance(h).normalized)(h)
    assert_array_equal(gradient, 0)


def test_a_large_mean_does_not_cost_precision():
    h = 1024 + np.round(make_h(views=4, batch=50) * 1024) / 1024
    expected = loop_invariance(h)
    result = invariance(jnp.asarray(h, jnp.float32))
    assert_allclose(result, expected, rtol=1e-5)


def test_derivatives_of_first_and_second_order(x64):
    function, h = jax.jit(lambda h: jnp.stack(invariance(h))), make_h(2, 3, 2)
    check_grads(function, (jnp.asarray(h),), 2, rtol=1e-5, atol=1e-5)


FEW = "M >= 2 views of B >= 2 examples"  # of one the ratio is 1, whatever h is
RANK = r"h must be \[M, B, D\]"


@pytest.mark.parametrize(
    "function, shape, message",
    [
        (invariance, (4, 3), RANK),
        (invariance, (2, 3, 4, 5), RANK),
        (invariance, (1, 4, 2), FEW),
        (invariance, (3, 0, 2), FEW),
        (invariance, (3, 1, 2), FEW),
        (paired_change, (1, 4, 2), "M >= 2 views of B >= 1 examples"),
    ],
)
def test_other_shapes_are_refused(function, shape, message):
    with pytest.raises(ValueError, match=message):
        function(jnp.zeros(shape))


def loop_paired_change(h):
    """Half the squared distance of views 0 and 1, 2 and 3, ... , averaged."""
    pairs = [(h[m, b], h[m + 1, b]) for m in range(0, len(h) - 1, 2) for b in range(5)]
    return sum(np.sum((one - two) ** 2) for one, two in pairs) / len(pairs) / 2


@pytest.mark.parametrize("views", [2, 4, 5])
def test_paired_change_agrees_with_the_loop(views, x64):
    h = make_h(views=views)
    found = paired_change(jnp.asarray(h))
    assert_allclose(found, loop_paired_change(h), rtol=1e-12)
    if views == 2:
        assert_allclose(found, invariance(jnp.asarray(h)).within, rtol=1e-12)
