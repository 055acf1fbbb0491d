"""The variance within examples, in total, and the ratio of the two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from invariance_jax.evaluation.variance import invariance, paired_change


def loop_invariance(h: np.ndarray) -> tuple[float, float, float]:
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


def make_h(views: int = 3, batch: int = 5, features: int = 4) -> np.ndarray:
    generator = np.random.default_rng(7)
    centres = 2 * generator.normal(size=(1, batch, features))
    return centres + generator.normal(size=(views, batch, features))


def test_float64_agrees_with_the_loop(x64: None) -> None:
    result = invariance(jnp.asarray(make_h()))
    assert all(value.dtype == jnp.float64 and value.shape == () for value in result)
    np.testing.assert_allclose(result, loop_invariance(make_h()), rtol=1e-12)


def test_float32_agrees_with_the_loop() -> None:
    result = invariance(jnp.asarray(make_h(), jnp.float32))
    assert all(value.dtype == jnp.float32 for value in result)
    np.testing.assert_allclose(result, loop_invariance(make_h()), rtol=1e-5)


def test_within_is_numpys_variance_over_the_views(x64: None) -> None:
    h = make_h(views=6)
    expected = h.var(axis=0, ddof=1).sum(axis=-1).mean()
    np.testing.assert_allclose(invariance(jnp.asarray(h)).within, expected, rtol=1e-12)


def test_total_is_numpys_variance_over_all_rows(x64: None) -> None:
    h = make_h(views=6)
    expected = h.reshape(-1, h.shape[-1]).var(axis=0, ddof=1).sum()
    np.testing.assert_allclose(invariance(jnp.asarray(h)).total, expected, rtol=1e-12)


def test_jit_and_vmap_equal_eager() -> None:
    h = jnp.asarray(make_h(), jnp.float32)
    eager = invariance(h)
    np.testing.assert_allclose(jax.jit(invariance)(h), eager, rtol=1e-6)
    mapped = jax.vmap(invariance)(jnp.stack([h, 2 * h]))
    np.testing.assert_allclose([value[0] for value in mapped], eager, rtol=1e-6)
    np.testing.assert_allclose(mapped.within[1], 4 * eager.within, rtol=1e-6)


def test_a_scale_multiplies_variances_by_its_square_and_not_the_ratio() -> None:
    h = jnp.asarray(make_h(), jnp.float32)
    plain, scaled = invariance(h), invariance(8 * h)
    np.testing.assert_allclose(scaled.within, 64 * plain.within, rtol=1e-6)
    np.testing.assert_allclose(scaled.total, 64 * plain.total, rtol=1e-6)
    np.testing.assert_allclose(scaled.normalized, plain.normalized, rtol=1e-6)


def test_a_common_shift_changes_nothing(x64: None) -> None:
    h = jnp.asarray(make_h())
    shift = jnp.asarray([[[1.0, -2.0, 30.0, 0.5]]])
    np.testing.assert_allclose(invariance(h + shift), invariance(h), rtol=1e-10)


def test_a_shift_of_each_example_leaves_within_alone(x64: None) -> None:
    h = jnp.asarray(make_h())
    moved = invariance(h + 10 * h[:1])
    np.testing.assert_allclose(moved.within, invariance(h).within, rtol=1e-10)
    assert moved.total > 2 * invariance(h).total


def test_permuted_views_and_examples_change_nothing(x64: None) -> None:
    h = make_h()
    permuted = jnp.asarray(h[[2, 0, 1]][:, [4, 2, 0, 1, 3]])
    np.testing.assert_allclose(
        invariance(permuted), invariance(jnp.asarray(h)), rtol=1e-12
    )


def test_an_invariant_representation_has_exactly_zero_within() -> None:
    h = jnp.asarray(make_h(views=1), jnp.float32)
    result = invariance(jnp.broadcast_to(h, (7, *h.shape[1:])))
    assert result.within == 0 and result.normalized == 0 and result.total > 0


def test_views_independent_of_the_example_have_a_ratio_of_about_one() -> None:
    h = np.random.default_rng(0).normal(size=(4, 500, 3))
    np.testing.assert_allclose(
        invariance(jnp.asarray(h, jnp.float32)).normalized, 1, atol=0.05
    )


def test_a_constant_representation_gives_zeros_and_finite_derivatives() -> None:
    # 0.1 seven times has a mean that float32 rounds to another number than 0.1.
    h = jnp.full((7, 3, 2), 0.1, jnp.float32)
    assert [float(value) for value in invariance(h)] == [0, 0, 0]
    gradient = jax.grad(lambda h: invariance(h).normalized)(h)
    np.testing.assert_array_equal(gradient, 0)


def test_a_large_mean_does_not_cost_precision() -> None:
    h = 1024 + np.round(make_h(views=4, batch=50) * 1024) / 1024
    expected = loop_invariance(h)
    result = invariance(jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_bfloat16_is_measured_in_float32() -> None:
    h = jnp.asarray(make_h(), jnp.bfloat16)
    result = invariance(h)
    assert result.within.dtype == jnp.float32
    expected = loop_invariance(np.asarray(h, np.float64))
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_derivatives_of_first_and_second_order(x64: None) -> None:
    check_grads(
        jax.jit(lambda h: jnp.stack(invariance(h))),
        (jnp.asarray(make_h(2, 3, 2)),),
        order=2,
        modes=["fwd", "rev"],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5)])
def test_another_rank_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"h must be \[M, B, D\]"):
        invariance(jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 4, 2), (0, 4, 2), (3, 0, 2), (3, 1, 2)])
def test_too_few_views_or_examples_are_refused(shape: tuple[int, ...]) -> None:
    # Of one example the ratio is 1, whatever the representation.
    with pytest.raises(ValueError, match="M >= 2 views of B >= 2 examples"):
        invariance(jnp.zeros(shape))


def loop_paired_change(h: np.ndarray) -> float:
    """Half the squared distance of views 0 and 1, 2 and 3, ... , averaged."""
    views, batch, features = h.shape
    squares = []
    for pair in range(views // 2):
        for b in range(batch):
            change = [
                h[2 * pair, b, d] - h[2 * pair + 1, b, d] for d in range(features)
            ]
            squares.append(sum(value**2 for value in change))
    return sum(squares) / len(squares) / 2


@pytest.mark.parametrize("views", [2, 4, 5])
def test_paired_change_agrees_with_the_loop(views: int, x64: None) -> None:
    h = make_h(views=views)
    expected = loop_paired_change(h)
    np.testing.assert_allclose(paired_change(jnp.asarray(h)), expected, rtol=1e-12)


def test_paired_change_of_two_views_is_the_variance_within(x64: None) -> None:
    h = jnp.asarray(make_h(views=2))
    np.testing.assert_allclose(paired_change(h), invariance(h).within, rtol=1e-12)


def test_paired_change_estimates_the_variance_within() -> None:
    h = np.random.default_rng(0).normal(size=(8, 2000, 3)).astype(np.float32)
    h = h + 5 * h[:1]
    expected = invariance(jnp.asarray(h)[1:]).within
    np.testing.assert_allclose(paired_change(jnp.asarray(h)[1:]), expected, rtol=0.03)


def test_paired_change_of_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="M >= 2 views of B >= 1 examples"):
        paired_change(jnp.zeros((1, 4, 2)))
