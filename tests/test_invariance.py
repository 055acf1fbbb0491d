"""The invariance penalty: values, derivatives, limits, batch statistics, replicas."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from reference import encoder_weights, oracle_consistency, oracle_penalty

from invariance_jax.losses import consistency, invariance_penalty
from invariance_jax.models import BatchNorm
from invariance_jax.numerics import l2_normalize
from invariance_jax.transforms import View
from invariance_jax.transforms.spirograph import make_transformation, render

AXIS = "replicas"
NORMALIZATIONS = ["l2", "none", "batch"]
normalizations = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def make_problem(
    batch_size: int = 6, directions: int = 3, dtype: Any = np.float32
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Weights of a smooth encoder of 3 parameters, alpha and alpha_other."""
    generator = np.random.default_rng(0)
    shapes = [(3, 5), (5, 4), (batch_size, 3), (directions, batch_size, 3)]
    w1, w2, alpha, other = (
        jnp.asarray(generator.normal(size=s), dtype) for s in shapes
    )
    return {"w1": w1, "w2": w2}, alpha, other


def encode(weights: Any, alpha: Any) -> jax.Array:
    """Representations [B, 4]; differences between examples come from alpha alone."""
    return (jnp.tanh(alpha @ weights["w1"]) + 0.3) @ weights["w2"]


@partial(jax.jit, static_argnames=["normalization", "example_limit"])
def jitted_penalty(
    weights: Any, alpha: jax.Array, alpha_other: jax.Array, **settings: Any
) -> tuple[jax.Array, ...]:
    return invariance_penalty(partial(encode, weights), alpha, alpha_other, **settings)


def mean_penalty(
    weights: Any, alpha: jax.Array, alpha_other: jax.Array, **settings: Any
) -> jax.Array:
    represent = partial(encode, weights)
    return jnp.mean(invariance_penalty(represent, alpha, alpha_other, **settings)[0])


def reference_encoder(
    reference: dict[str, np.ndarray], dtype: Any
) -> tuple[Callable, list[jax.Array], jax.Array, jax.Array]:
    """(weights, alpha) -> h on Spirograph images; the weights, alpha and others."""
    x, alpha, other = (
        jnp.asarray(reference["penalty_" + name], dtype)
        for name in ("x", "alpha", "alpha_other")
    )
    apply = make_transformation().apply

    def represent(weights: list[jax.Array], alpha: jax.Array) -> jax.Array:
        images = apply(x, View(alpha))
        return jnp.tanh(images.reshape(len(x), -1) @ weights[0]) @ weights[1]

    weights = [jnp.asarray(weight, dtype) for weight in encoder_weights()]
    return represent, weights, alpha, other


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    atol = tolerance * float(np.max(np.abs(expected)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("normalization", ["l2", "none"])
@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_reference_penalties(
    normalization: str,
    dtype: type,
    tolerance: float,
    reference: dict[str, np.ndarray],
    x64: None,
) -> None:
    represent, weights, alpha, others = reference_encoder(reference, dtype)

    @jax.jit
    def penalty(alpha_other: jax.Array) -> tuple[jax.Array, ...]:
        return invariance_penalty(
            partial(represent, weights),
            alpha,
            alpha_other,
            normalization=normalization,
        )

    expected = reference["penalty_sq_" + normalization]
    for k, other in enumerate(others):
        found, h = penalty(other)
        assert found.dtype == h.dtype == dtype
        assert_close(found, expected[k], tolerance)
    assert_close(h, reference["penalty_representation"], tolerance)
    together, h = penalty(others)
    assert_close(together, expected.mean(axis=0), tolerance)
    assert_close(h, reference["penalty_representation"], tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_reference_gradient_in_the_weights(
    dtype: type, tolerance: float, reference: dict[str, np.ndarray], x64: None
) -> None:
    represent, weights, alpha, others = reference_encoder(reference, dtype)

    @jax.jit
    @jax.grad
    def gradient(weights: list[jax.Array]) -> jax.Array:
        return jnp.mean(
            invariance_penalty(partial(represent, weights), alpha, others[0])[0]
        )

    for i, found in enumerate(gradient(weights), start=1):
        assert_close(found, reference[f"penalty_grad_w{i}_l2"], tolerance)


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_reference_penalties_with_signs(
    dtype: type, tolerance: float, reference: dict[str, np.ndarray], x64: None
) -> None:
    represent, weights, alpha, others = reference_encoder(reference, dtype)
    signs = jnp.asarray(reference["penalty_sign"], dtype)

    @jax.jit
    def penalty(alpha_other: jax.Array, signs: jax.Array) -> jax.Array:
        return invariance_penalty(
            partial(represent, weights), alpha, alpha_other, signs=signs
        )[0]

    expected = reference["penalty_rademacher_l2"]
    for k, other in enumerate(others):
        assert_close(penalty(other, signs), expected[k], tolerance)
    of_each = jnp.stack([signs] * len(others))
    for given in (signs, of_each):
        assert_close(penalty(others, given), expected.mean(axis=0), tolerance)


@partial(jax.jit, static_argnums=0)
def sign_estimator(
    representation: Callable[[jax.Array], jax.Array],
    alpha: jax.Array,
    direction: jax.Array,
    signs: jax.Array,
) -> jax.Array:
    """The paper's estimator, reverse mode from random signs on one direction.

    `[N, B]`: (e . dh/d alpha_i . direction_i)^2 for each e of signs `[N, B, D]`.
    """
    _, pull_back = jax.vjp(representation, alpha)
    gradients = jax.vmap(lambda sign: pull_back(sign)[0])(signs)
    return jnp.sum(gradients * direction[None], axis=-1) ** 2


def random_signs(*shape: int) -> jax.Array:
    return jax.random.rademacher(jax.random.key(0), shape, jnp.float64)


def assert_within_standard_errors(
    expected: jax.Array, samples: jax.Array, number: float = 4
) -> None:
    """The mean of samples [N, ...] is the expected value up to its standard error."""
    error = samples.std(axis=0, ddof=1) / len(samples) ** 0.5
    assert np.all(np.abs(samples.mean(axis=0) - expected) < number * error)


def test_sign_estimator_has_the_reference_values(
    reference: dict[str, np.ndarray], x64: None
) -> None:
    represent, weights, alpha, others = reference_encoder(reference, np.float64)
    signs = jnp.asarray(reference["penalty_sign"])[None]

    def representation(alpha: jax.Array) -> jax.Array:
        return l2_normalize(represent(weights, alpha))

    for k, other in enumerate(others):
        found = sign_estimator(representation, alpha, other - alpha, signs)
        assert_close(found[0], reference["penalty_rademacher_l2"][k], 1e-6)


def test_penalty_is_the_mean_of_the_sign_estimator(x64: None) -> None:
    weights, alpha, others = make_problem(dtype=np.float64)
    represent = partial(encode, weights)
    penalty, h = invariance_penalty(represent, alpha, others[0])
    estimates = sign_estimator(
        lambda alpha: l2_normalize(represent(alpha)),
        alpha,
        others[0] - alpha,
        random_signs(4000, *h.shape),
    )
    assert_within_standard_errors(penalty, estimates)
    assert jnp.max(penalty / estimates.std(axis=0)) > 0.5  # the test has power


def test_penalty_is_the_mean_over_its_signs(x64: None) -> None:
    weights, alpha, others = make_problem(dtype=np.float64)
    represent = partial(encode, weights)
    penalty, h = invariance_penalty(represent, alpha, others)
    signs = random_signs(1000, len(others), *h.shape)

    @jax.jit
    @jax.vmap
    def with_signs(signs: jax.Array) -> jax.Array:
        return invariance_penalty(represent, alpha, others, signs=signs)[0]

    assert_within_standard_errors(penalty, with_signs(signs))


def every_sign(batch_size: int) -> jax.Array:
    """All [2^B, B, 1] choices of a sign per example."""
    bits = np.arange(2**batch_size)[:, None] >> np.arange(batch_size)[None] & 1
    return jnp.asarray(2.0 * bits - 1)[:, :, None]


def normalized_by_batch(h: jax.Array) -> jax.Array:
    """Training-mode normalization without scale and bias, epsilon 1e-5."""
    return BatchNorm(use_scale=False, use_bias=False).apply(
        {"batch_stats": {"mean": jnp.zeros(h.shape[1]), "var": jnp.ones(h.shape[1])}},
        h,
        train=True,
        mutable=["batch_stats"],
    )[0]


def test_reference_penalties_with_batch_normalization(
    reference: dict[str, np.ndarray], x64: None
) -> None:
    represent, weights, alpha, others = reference_encoder(reference, np.float64)

    @jax.jit
    def penalty(alpha_other: jax.Array) -> jax.Array:
        return invariance_penalty(
            lambda alpha: normalized_by_batch(represent(weights, alpha)),
            alpha,
            alpha_other,
            normalization="none",
        )[0]

    for k, other in enumerate(others):
        sign = jnp.asarray(reference["penalty_bn_example_sign"][k])[:, None]
        reflected = alpha + sign * (other - alpha)
        assert_close(penalty(reflected), reference["penalty_bn_sq"][k], 1e-6)
        unsigned = jnp.sum(penalty(other))
        np.testing.assert_allclose(
            unsigned, reference["penalty_bn_unsigned_sum"][k], rtol=1e-6
        )
        everywhere = alpha[None] + every_sign(len(alpha)) * (other - alpha)[None]
        expected = jnp.sum(penalty(everywhere))
        np.testing.assert_allclose(
            expected, reference["penalty_bn_expected_sum"][k], rtol=1e-6
        )
        assert abs(unsigned / expected - 1) > 0.05


def test_only_signed_directions_agree_with_the_sign_estimator_under_batch_normalization(
    x64: None,
) -> None:
    weights, alpha, others = make_problem(dtype=np.float64)
    direction = others[0] - alpha

    def represent(alpha: jax.Array) -> jax.Array:
        return normalized_by_batch(encode(weights, alpha))

    @jax.jit
    def penalty(alpha_other: jax.Array) -> jax.Array:
        return jnp.sum(
            invariance_penalty(represent, alpha, alpha_other, normalization="none")[0]
        )

    signs = random_signs(20_000, *represent(alpha).shape)
    estimates = jnp.sum(sign_estimator(represent, alpha, direction, signs), axis=1)
    signed = penalty(alpha[None] + every_sign(len(alpha)) * direction[None])
    assert_within_standard_errors(signed, estimates)
    with pytest.raises(AssertionError):
        assert_within_standard_errors(penalty(others[0]), estimates, number=8)


@normalizations
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "limit",
    [
        {},
        {"example_limit": 0.4},
        {"example_limit": 0.4, "limit_shape": "log"},
    ],
    ids=str,
)
def test_penalty_equals_the_oracle(
    normalization: str, signed: bool, limit: dict[str, Any], x64: None
) -> None:
    weights, alpha, others = make_problem(dtype=np.float64)
    settings: dict[str, Any] = {"normalization": normalization, **limit}
    if signed:
        settings["signs"] = random_signs(len(others), len(alpha), 4)
    represent = partial(encode, weights)
    penalty, h = invariance_penalty(represent, alpha, others, **settings)
    expected = oracle_penalty(represent, np.asarray(alpha), others, **settings)
    np.testing.assert_allclose(penalty, expected, rtol=1e-6)
    np.testing.assert_array_equal(h, represent(alpha))


@normalizations
def test_directions_give_the_mean_of_single_ones(normalization: str) -> None:
    weights, alpha, others = make_problem()
    penalty = partial(
        jitted_penalty, weights, normalization=normalization, example_limit=0.7
    )
    single = jnp.stack([penalty(alpha, other)[0] for other in others])
    np.testing.assert_allclose(
        penalty(alpha, others)[0], jnp.mean(single, axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(penalty(alpha, others[:1])[0], single[0], rtol=1e-5)


def test_limit_applies_to_each_direction_before_the_mean() -> None:
    weights, alpha, others = make_problem()
    single = jnp.stack([jitted_penalty(weights, alpha, other)[0] for other in others])
    limit = float(jnp.median(single))
    limited = jnp.minimum(single, limit)
    found = jitted_penalty(weights, alpha, others, example_limit=limit)[0]
    np.testing.assert_allclose(found, jnp.mean(limited, axis=0), rtol=1e-5)
    late = jnp.minimum(jnp.mean(single, axis=0), limit)
    assert np.max(np.abs(found - late)) > 0.05 * limit


def test_gradient_above_the_limit_is_zero() -> None:
    weights, alpha, others = make_problem()
    each = jnp.stack([jitted_penalty(weights, alpha, other)[0] for other in others])
    # between two values, so that a third of the directions stays below the limit
    middle = each.size // 3
    limit = float(jnp.sort(each.ravel())[middle - 1 : middle + 1].mean())
    gradient = jax.jit(jax.grad(mean_penalty, argnums=2))(
        weights, alpha, others, example_limit=limit
    )
    moved = jnp.any(gradient != 0, axis=-1)
    np.testing.assert_array_equal(moved, each < limit)
    above = jax.jit(jax.grad(mean_penalty))(
        weights, alpha, others, example_limit=float(each.min()) / 2
    )
    for gradient in jax.tree.leaves(above):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("shape", ["hard", "log"])
def test_traced_limit_equals_the_static_one(shape: str) -> None:
    weights, alpha, others = make_problem()
    penalty = partial(mean_penalty, weights, alpha, others, limit_shape=shape)
    traced = jax.jit(lambda limit: penalty(example_limit=limit))
    np.testing.assert_allclose(traced(0.4), penalty(example_limit=0.4), rtol=1e-6)


def test_logarithmic_limit_has_the_slope_of_its_definition(x64: None) -> None:
    # q is the square of the scale; below, at and far above the limit
    scales, limit = jnp.array([0.0, 0.5, 3.0, 1e3, 1e100])[:, None], 9.0

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def penalty(scales: jax.Array) -> tuple[jax.Array, jax.Array]:
        found, _ = invariance_penalty(
            lambda alpha: scales * alpha,
            jnp.zeros((5, 1)),
            jnp.ones((5, 1)),
            normalization="none",
            example_limit=limit,
            limit_shape="log",
        )
        return jnp.sum(found), found

    (_, found), gradient = penalty(scales)
    q = np.array(scales[:, 0]) ** 2
    np.testing.assert_allclose(found, limit * np.log1p(q / limit), rtol=1e-12)
    slope = 2 * np.array(scales[:, 0]) / (1 + q / limit)
    np.testing.assert_allclose(gradient[:, 0], slope, rtol=1e-12)


@normalizations
@pytest.mark.parametrize(
    "limit",
    [
        {},
        {"example_limit": 0.5},
        {"example_limit": 0.5, "limit_shape": "log"},
    ],
    ids=str,
)
def test_consistency_equals_the_oracle(
    normalization: str, limit: dict[str, Any], x64: None
) -> None:
    weights, alpha, others = make_problem(dtype=np.float64)
    h1, h2 = encode(weights, alpha), encode(weights, others[0])
    settings = {"normalization": normalization, **limit}
    found = jax.jit(partial(consistency, **settings))(h1, h2)
    np.testing.assert_allclose(found, oracle_consistency(h1, h2, **settings), rtol=1e-9)
    np.testing.assert_array_equal(consistency(h1, h1, **settings), 0)
    np.testing.assert_allclose(consistency(h2, h1, **settings), found, rtol=1e-12)


@normalizations
def test_consistency_of_near_views_is_the_penalty(
    normalization: str, x64: None
) -> None:
    weights, alpha, others = make_problem(dtype=np.float64)
    near = alpha + 1e-4 * (others[0] - alpha)
    penalty, h1 = invariance_penalty(
        partial(encode, weights), alpha, near, normalization=normalization
    )
    found = consistency(h1, encode(weights, near), normalization=normalization)
    np.testing.assert_allclose(found, penalty, rtol=2e-3)


@pytest.mark.parametrize(("normalization", "shape"), [("l2", "log"), ("batch", "hard")])
def test_consistency_has_derivatives(normalization: str, shape: str, x64: None) -> None:
    weights, alpha, others = make_problem(dtype=np.float64)
    settings = {"normalization": normalization, "limit_shape": shape}
    function = jax.jit(partial(consistency, example_limit=0.7, **settings))
    views = encode(weights, alpha), encode(weights, others[0])
    check_grads(function, views, order=2, modes=["fwd", "rev"], rtol=1e-5, eps=1e-6)
    # a zero representation, and two that are the same
    zero = jnp.zeros_like(views[0])
    for pair in ((zero, zero), (zero, views[1]), (views[0], views[0])):
        gradient = jax.grad(lambda *pair: jnp.sum(function(*pair)), (0, 1))(*pair)
        assert all(jnp.isfinite(leaf).all() for leaf in gradient)


def test_consistency_over_replicas_is_that_of_the_joined_batch(x64: None) -> None:
    weights, alpha, others = make_problem(8, 1, np.float64)
    h1, h2 = encode(weights, alpha), encode(weights, others[0])
    function = partial(consistency, normalization="batch")
    mapped = over_vmap(partial(function, axis_name=AXIS), 4, 0)
    found = mapped(h1.reshape(4, 2, -1), h2.reshape(4, 2, -1))
    np.testing.assert_allclose(found.ravel(), function(h1, h2), rtol=1e-9)


def test_batch_normalization_has_the_gradient_of_its_definition(x64: None) -> None:
    # constant along alpha, not in the parameters
    weights, alpha, others = make_problem(dtype=np.float64)

    def definition(weights: Any) -> jax.Array:
        represent = partial(encode, weights)
        h, change = jax.jvp(represent, (alpha,), (others[0] - alpha,))
        return jnp.mean(jnp.sum(change**2, axis=1)) / jnp.sum(jnp.var(h, axis=0))

    def held(weights: Any) -> jax.Array:
        return mean_penalty(weights, alpha, others[0], normalization="batch")

    value, gradient = jax.jit(jax.value_and_grad(held))(weights)
    expected_value, expected = jax.jit(jax.value_and_grad(definition))(weights)
    np.testing.assert_allclose(value, expected_value, rtol=1e-9)
    for name in weights:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-9)
    # the gradient is that of a ratio: along the scale of h it vanishes
    along_scale = jnp.sum(gradient["w2"] * weights["w2"])
    assert abs(along_scale) < 1e-9 * jnp.sum(jnp.abs(gradient["w2"] * weights["w2"]))


@normalizations
def test_constant_encoder_has_no_penalty(normalization: str) -> None:
    _, alpha, others = make_problem()
    h = jnp.arange(1.0, 25.0).reshape(6, 4)

    def constant(alpha: jax.Array) -> jax.Array:
        return h

    for other in (others, others[0]):
        penalty, found = invariance_penalty(
            constant, alpha, other, normalization=normalization
        )
        np.testing.assert_array_equal(penalty, 0)
        np.testing.assert_array_equal(found, h)


@pytest.mark.parametrize("normalization, power", [("l2", 0), ("batch", 0), ("none", 2)])
def test_scale_of_the_representation(normalization: str, power: int) -> None:
    weights, alpha, others = make_problem()
    penalties = [
        invariance_penalty(
            lambda alpha, scale=scale: scale * encode(weights, alpha),
            alpha,
            others,
            normalization=normalization,
        )[0]
        for scale in (1.0, 30.0)
    ]
    np.testing.assert_allclose(penalties[1], 30.0**power * penalties[0], rtol=1e-4)


@normalizations
@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_penalty_is_quadratic_in_the_direction(
    normalization: str, factor: float
) -> None:
    weights, alpha, others = make_problem()
    penalty = partial(jitted_penalty, weights, normalization=normalization)
    scaled = alpha[None] + factor * (others - alpha[None])
    np.testing.assert_allclose(
        penalty(alpha, scaled)[0], factor**2 * penalty(alpha, others)[0], rtol=1e-4
    )


@normalizations
def test_permuted_examples_have_permuted_penalties(normalization: str) -> None:
    weights, alpha, others = make_problem()
    order = np.random.default_rng(1).permutation(len(alpha))
    penalty = partial(jitted_penalty, weights, normalization=normalization)
    np.testing.assert_allclose(
        penalty(alpha[order], others[:, order])[0],
        penalty(alpha, others)[0][order],
        rtol=1e-5,
    )


def test_h_is_as_represent_gave_it() -> None:
    weights, alpha, others = make_problem()
    h = invariance_penalty(partial(encode, weights), alpha, others)[1]
    np.testing.assert_array_equal(h, encode(weights, alpha))


def test_contrastive_gradient_flows_through_h() -> None:
    weights, alpha, others = make_problem()
    for other in (others, others[0]):
        gradient = jax.grad(
            lambda weights, other=other: jnp.sum(
                jitted_penalty(weights, alpha, other)[1]
            )
        )(weights)
        expected = jax.grad(lambda weights: jnp.sum(encode(weights, alpha)))(weights)
        for name in weights:
            np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("directions", [1, 3])
def test_aux_is_handed_on(directions: int) -> None:
    weights, alpha, others = make_problem(directions=directions)
    others = others[0] if directions == 1 else others

    def represent(alpha: jax.Array) -> tuple[jax.Array, Any]:
        h = encode(weights, alpha)
        return h, {"mean": h.mean(axis=0), "count": jnp.array(len(h)), "none": None}

    penalty, h, aux = invariance_penalty(represent, alpha, others, has_aux=True)
    plain = invariance_penalty(partial(encode, weights), alpha, others)
    np.testing.assert_array_equal(penalty, plain[0])
    np.testing.assert_array_equal(h, plain[1])
    np.testing.assert_allclose(aux["mean"], h.mean(axis=0), rtol=1e-6)
    assert aux["count"] == 6 and aux["count"].dtype == jnp.int32
    assert aux["none"] is None


class Callable3:
    """An object with weights and a call, as equinox has them."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def __call__(self, alpha: jax.Array) -> jax.Array:
        return encode(self.weights, alpha)


def test_any_callable_is_a_representation() -> None:
    weights, alpha, others = make_problem()
    expected = invariance_penalty(partial(encode, weights), alpha, others)[0]
    for represent in (
        lambda alpha: encode(weights, alpha),
        jax.jit(partial(encode, weights)),
        jax.checkpoint(partial(encode, weights)),
        Callable3(weights),
        Callable3(weights).__call__,
    ):
        found = invariance_penalty(represent, alpha, others)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_flax_module_is_a_representation() -> None:
    weights, alpha, others = make_problem()
    module = nn.Dense(4, use_bias=False)
    variables = {"params": {"kernel": weights["w1"][:, :4]}}
    expected = invariance_penalty(
        lambda alpha: alpha @ weights["w1"][:, :4], alpha, others
    )
    for represent in (partial(module.apply, variables), module.bind(variables)):
        found = invariance_penalty(represent, alpha, others)[0]
        np.testing.assert_allclose(found, expected[0], rtol=1e-5)


@pytest.mark.parametrize(
    "normalization, directions", [("l2", 0), ("none", 0), ("batch", 0), ("batch", 2)]
)
def test_derivatives_in_weights_and_both_ends(
    normalization: str, directions: int, x64: None
) -> None:
    weights, alpha, others = make_problem(4, max(directions, 1), np.float64)
    function = jax.jit(partial(mean_penalty, normalization=normalization))
    arguments = (weights, alpha, others if directions else others[0])
    check_grads(function, arguments, order=2, modes=["fwd", "rev"], rtol=1e-5, eps=1e-6)


@normalizations
@pytest.mark.parametrize("directions", [0, 2])
def test_zero_representation_is_finite(normalization: str, directions: int) -> None:
    weights, alpha, others = make_problem(directions=max(directions, 1))
    others = others if directions else others[0]
    gate = jnp.ones((len(alpha), 1)).at[2].set(0)

    @jax.jit
    @jax.value_and_grad
    def loss(weights: Any, gate: jax.Array) -> jax.Array:
        return jnp.mean(
            invariance_penalty(
                lambda alpha: gate * jax.nn.relu(encode(weights, alpha)),
                alpha,
                others,
                normalization=normalization,
            )[0]
        )

    for zero in (gate, jnp.zeros_like(gate)):
        value, gradient = loss(weights, zero)
        assert jnp.isfinite(value)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert value == 0


@normalizations
def test_zero_image_is_finite(normalization: str) -> None:
    # black: no pixel near the curve, and a black background, so that h is zero
    black = jnp.array([3.0, 0.5, 1.0, 0.5, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    alpha = jnp.stack([black, black, 0.9 * black + 0.05])
    kernel = jnp.sin(jnp.arange(48.0 * 4)).reshape(48, 4)

    def loss(kernel: jax.Array) -> jax.Array:
        def represent(alpha: jax.Array) -> jax.Array:
            images = render(alpha, image_size=4, num_points=5, extent=1000.0)
            return images.reshape(len(alpha), -1) @ kernel

        return jnp.mean(
            invariance_penalty(
                represent, alpha, alpha[::-1], normalization=normalization
            )[0]
        )

    value, gradient = jax.jit(jax.value_and_grad(loss))(kernel)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


@normalizations
@pytest.mark.parametrize("directions", [0, 3])
def test_eager_jit_and_vmap_agree(normalization: str, directions: int) -> None:
    weights, alpha, others = make_problem(directions=max(directions, 1))
    others = others if directions else others[0]
    penalty = partial(
        invariance_penalty, partial(encode, weights), normalization=normalization
    )
    alphas, all_others = jnp.stack([alpha, alpha + 1]), jnp.stack([others, others])
    eager = jnp.stack([penalty(a, others)[0] for a in alphas])
    jitted = jnp.stack([jax.jit(penalty)(a, others)[0] for a in alphas])
    np.testing.assert_allclose(jitted, eager, rtol=1e-5)
    np.testing.assert_allclose(
        jax.vmap(penalty)(alphas, all_others)[0], eager, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(dtype: type, x64: None) -> None:
    weights, alpha, others = make_problem(dtype=dtype)
    for normalization in NORMALIZATIONS:
        penalty, h = jitted_penalty(
            weights, alpha, others, normalization=normalization, example_limit=0.5
        )
        assert penalty.dtype == h.dtype == dtype


def over_devices(step: Callable, replicas: int, in_axes: Any) -> Callable:
    devices = jax.devices()[:replicas]
    return jax.pmap(step, AXIS, in_axes=in_axes, devices=devices)


def over_vmap(step: Callable, replicas: int, in_axes: Any) -> Callable:
    return jax.jit(jax.vmap(step, in_axes=in_axes, axis_name=AXIS))


@pytest.mark.parametrize("normalization", ["l2", "batch"])
@pytest.mark.parametrize("mapping", [over_devices, over_vmap])
@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_give_the_joined_penalties_and_gradient(
    normalization: str, mapping: Callable, replicas: int, x64: None
) -> None:
    weights, alpha, others = make_problem(8, 2, np.float64)

    def objective(
        weights: Any, alpha: jax.Array, others: jax.Array, axis_name: str | None = None
    ) -> tuple[jax.Array, jax.Array]:
        penalty = invariance_penalty(
            partial(encode, weights),
            alpha,
            others,
            normalization=normalization,
            axis_name=axis_name,
        )[0]
        return jnp.mean(penalty), penalty

    def step(weights: Any, alpha: jax.Array, others: jax.Array) -> tuple:
        gradient, penalty = jax.grad(partial(objective, axis_name=AXIS), has_aux=True)(
            weights, alpha, others
        )
        return jax.lax.pmean(gradient, AXIS), penalty

    joined = jax.jit(jax.grad(objective, has_aux=True))
    expected, penalty = joined(weights, alpha, others)
    gradients, found = mapping(step, replicas, (None, 0, 1))(
        weights,
        alpha.reshape(replicas, -1, 3),
        others.reshape(2, replicas, -1, 3),
    )
    np.testing.assert_allclose(found.reshape(-1), penalty, rtol=1e-9)
    for name in weights:
        for gradient in gradients[name]:
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"alpha": (6,)}, r"alpha must be \[B, P\]; found shape \(6,\)"),
        ({"alpha_other": (6, 2)}, r"alpha_other must be .* found shape \(6, 2\)"),
        ({"alpha_other": (5, 3)}, r"alpha_other must be .* found shape \(5, 3\)"),
        ({"alpha_other": (3,)}, r"alpha_other must be .* found shape \(3,\)"),
        ({"alpha_other": (1, 2, 6, 3)}, "alpha_other must be .* found shape"),
        ({"alpha_other": (0, 6, 3)}, "must hold K >= 1 directions; found 0"),
        ({"normalization": "L2"}, "normalization must be one of .* found 'L2'"),
        ({"example_limit": 0}, "example_limit must be positive or None; found 0"),
        ({"example_limit": -1.0}, "example_limit must be positive .* found -1.0"),
        ({"limit_shape": "soft"}, "limit_shape must be one of .* found 'soft'"),
        ({"signs": (6, 2)}, r"signs must be .* \(1, 6, 3\); found shape \(6, 2\)"),
        ({"signs": (2, 6, 3)}, r"signs must be .* found shape \(2, 6, 3\)"),
        ({"represent": jnp.sum}, r"represent must return h \[B, D\]"),
        ({"represent": lambda a: a[:-1]}, r"represent must return h \[B, D\]"),
        ({"represent": lambda a: a[:, None]}, r"represent must return h \[B, D\]"),
    ],
    # No text of a function, which holds an address: another one in each process.
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"alpha": (6, 3), "alpha_other": (6, 3), "represent": jnp.sin, **changes}
    alpha, other = (jnp.ones(settings.pop(name)) for name in ("alpha", "alpha_other"))
    if "signs" in settings:
        settings["signs"] = jnp.ones(settings["signs"])
    with pytest.raises(ValueError, match=message):
        invariance_penalty(settings.pop("represent"), alpha, other, **settings)


@pytest.mark.parametrize(
    "shapes, settings, message",
    [
        ([(6,), (6,)], {}, r"h1, h2 must be \[B, D\]"),
        ([(6, 3), (5, 3)], {}, "h1 and h2 must be of one shape"),
        ([(6, 3)] * 2, {"normalization": "L2"}, "normalization must be one of"),
        ([(6, 3)] * 2, {"example_limit": 0.0}, "example_limit must be positive"),
        ([(6, 3)] * 2, {"limit_shape": "soft"}, "limit_shape must be one of"),
    ],
    ids=str,
)
def test_bad_views_are_refused(
    shapes: list[tuple[int, ...]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        consistency(*map(jnp.ones, shapes), **settings)
