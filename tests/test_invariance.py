"""The invariance penalty: values, derivatives, limits, batch statistics, replicas."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal
from reference import (
    assert_close,
    encoder_weights,
    oracle_consistency,
    oracle_limit,
    oracle_penalty,
)
from replicas import AXIS, over_devices, over_vmap

from invariance_jax.losses import consistency, invariance_penalty, total_effect
from invariance_jax.models import BatchNorm
from invariance_jax.numerics import l2_normalize
from invariance_jax.transforms import View
from invariance_jax.transforms.spirograph import make_transformation

NORMALIZATIONS = ["l2", "none", "batch"]
normalizations = pytest.mark.parametrize("normalization", NORMALIZATIONS)


def make_problem(batch_size=6, directions=3, dtype=np.float32):
    """Weights of a smooth encoder of 3 parameters, alpha and alpha_other."""
    generator = np.random.default_rng(0)
    shapes = [(3, 5), (5, 4), (batch_size, 3), (directions, batch_size, 3)]
    w1, w2, alpha, other = (jnp.array(generator.normal(size=s), dtype) for s in shapes)
    return {"w1": w1, "w2": w2}, alpha, other


def encode(weights, alpha):
    """Representations [B, 4]; differences between examples come from alpha alone."""
    return (jnp.tanh(alpha @ weights["w1"]) + 0.3) @ weights["w2"]


@partial(jax.jit, static_argnames=["normalization", "example_limit"])
def jitted_penalty(weights, alpha, alpha_other, **settings):
    return invariance_penalty(partial(encode, weights), alpha, alpha_other, **settings)


def mean_penalty(weights, alpha, alpha_other, **settings):
    represent = partial(encode, weights)
    return jnp.mean(invariance_penalty(represent, alpha, alpha_other, **settings)[0])


def reference_encoder(reference, dtype):
    """(weights, alpha) -> h on Spirograph images; the weights, alpha and others."""
    x, alpha, other = (
        jnp.asarray(reference["penalty_" + name], dtype)
        for name in ("x", "alpha", "alpha_other")
    )
    apply = make_transformation().apply

    def represent(weights, alpha):
        images = apply(x, View(alpha))
        return jnp.tanh(images.reshape(len(x), -1) @ weights[0]) @ weights[1]

    weights = [jnp.asarray(weight, dtype) for weight in encoder_weights()]
    return represent, weights, alpha, other


dtypes = pytest.mark.parametrize(
    "dtype, tolerance", [(np.float64, 1e-6), (np.float32, 1e-4)]
)


@dtypes
@pytest.mark.parametrize("kind", ["sq_l2", "sq_none", "rademacher_l2"])
def test_reference_penalties(kind, dtype, tolerance, reference, x64):
    represent, weights, alpha, others = reference_encoder(reference, dtype)
    settings = {"normalization": kind.split("_")[1]}
    if kind == "rademacher_l2":
        settings["signs"] = jnp.asarray(reference["penalty_sign"], dtype)
    penalty = jax.jit(
        partial(invariance_penalty, partial(represent, weights), alpha, **settings)
    )
    expected = reference["penalty_" + kind]
    for k, other in enumerate(others):
        found, h = penalty(other)
        assert found.dtype == h.dtype == dtype
        assert_close(found, expected[k], tolerance)
    assert_close(h, reference["penalty_representation"], tolerance)
    together, h = penalty(others)
    assert_close(together, expected.mean(axis=0), tolerance)
    assert_close(h, reference["penalty_representation"], tolerance)


@dtypes
def test_reference_gradient_in_the_weights(dtype, tolerance, reference, x64):
    represent, weights, alpha, others = reference_encoder(reference, dtype)

    @jax.jit
    @jax.grad
    def gradient(weights):
        penalty = invariance_penalty(partial(represent, weights), alpha, others[0])
        return jnp.mean(penalty[0])

    for i, found in enumerate(gradient(weights), start=1):
        assert_close(found, reference[f"penalty_grad_w{i}_l2"], tolerance)


def random_signs(*shape):
    return jax.random.rademacher(jax.random.key(0), shape, jnp.float64)


def test_penalty_is_the_mean_of_the_sign_estimator(x64):
    """The paper's, in reverse mode from signs e: (e . d n(h)/d alpha . direction)^2."""
    weights, alpha, others = make_problem(dtype=np.float64)
    represent = partial(encode, weights)
    penalty, h = invariance_penalty(represent, alpha, others[0])
    _, pull_back = jax.vjp(lambda alpha: l2_normalize(represent(alpha)), alpha)
    gradients = jax.jit(jax.vmap(pull_back))(random_signs(4000, *h.shape))[0]
    estimates = jnp.sum(gradients * (others[0] - alpha)[None], axis=-1) ** 2
    error = estimates.std(axis=0, ddof=1) / len(estimates) ** 0.5
    assert np.all(np.abs(estimates.mean(axis=0) - penalty) < 4 * error)
    assert jnp.max(penalty / estimates.std(axis=0)) > 0.5  # the test has power


def test_reference_penalties_with_batch_normalization(reference, x64):
    represent, weights, alpha, others = reference_encoder(reference, np.float64)
    norm = BatchNorm(use_scale=False, use_bias=False)
    variables = norm.init(jax.random.key(0), represent(weights, alpha), train=False)

    @jax.jit
    def penalty(alpha_other):
        def normalized(alpha):
            return norm.apply(variables, represent(weights, alpha), train=True)

        ends = alpha, alpha_other
        return invariance_penalty(normalized, *ends, normalization="none")[0]

    def expected(name, k):
        return reference["penalty_bn_" + name][k]

    every_sign = jnp.array([*itertools.product([-1.0, 1.0], repeat=len(alpha))])
    for k, other in enumerate(others):
        sign = jnp.asarray(expected("example_sign", k))[:, None]
        assert_close(penalty(alpha + sign * (other - alpha)), expected("sq", k), 1e-6)
        unsigned = jnp.sum(penalty(other))
        assert_allclose(unsigned, expected("unsigned_sum", k), rtol=1e-6)
        everywhere = alpha[None] + every_sign[:, :, None] * (other - alpha)[None]
        mean = jnp.sum(penalty(everywhere))
        assert_allclose(mean, expected("expected_sum", k), rtol=1e-6)
        assert abs(unsigned / mean - 1) > 0.05


HARD, LOG = {"example_limit": 0.4}, {"example_limit": 0.4, "limit_shape": "log"}


@normalizations
@pytest.mark.parametrize(
    "signed, limit", [(False, {}), (False, HARD), (True, HARD), (True, LOG)], ids=str
)
def test_penalty_equals_the_oracle(normalization, signed, limit, x64):
    weights, alpha, others = make_problem(dtype=np.float64)
    settings = {"normalization": normalization, **limit}
    if signed:
        settings["signs"] = random_signs(len(others), len(alpha), 4)
    represent = partial(encode, weights)
    penalty, h = invariance_penalty(represent, alpha, others, **settings)
    expected = oracle_penalty(represent, np.asarray(alpha), others, **settings)
    assert_allclose(penalty, expected, rtol=1e-6)
    assert_array_equal(h, represent(alpha))


def test_gradient_above_the_limit_is_zero():
    weights, alpha, others = make_problem()
    each = jnp.stack([jitted_penalty(weights, alpha, other)[0] for other in others])
    # between two values, so that a third of the directions stays below the limit
    middle = each.size // 3
    limit = jnp.sort(each.ravel())[middle - 1 : middle + 1].mean()
    gradient = jax.jit(jax.grad(mean_penalty, argnums=(0, 2)))
    _, along = gradient(weights, alpha, others, example_limit=limit)
    assert_array_equal(jnp.any(along != 0, axis=-1), each < limit)
    above, _ = gradient(weights, alpha, others, example_limit=each.min() / 2)
    assert not any(leaf.any() for leaf in jax.tree.leaves(above))


def test_logarithmic_limit_has_the_slope_of_its_definition(x64):
    # q is the square of the scale; below, at and far above the limit
    scales, limit = jnp.array([0.0, 0.5, 3.0, 1e3, 1e100])[:, None], 9.0
    settings = {"example_limit": limit, "limit_shape": "log", "normalization": "none"}

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def penalty(scales):
        ends = jnp.zeros((5, 1)), jnp.ones((5, 1))
        found, _ = invariance_penalty(lambda alpha: scales * alpha, *ends, **settings)
        return jnp.sum(found), found

    (_, found), gradient = penalty(scales)
    q = np.array(scales[:, 0]) ** 2
    assert_allclose(found, limit * np.log1p(q / limit), rtol=1e-12)
    assert_allclose(gradient[:, 0], 2 * scales[:, 0] / (1 + q / limit), rtol=1e-12)


units_and_limits = pytest.mark.parametrize(
    "normalization, limit", [("l2", {}), ("none", HARD), ("batch", LOG), ("batch", {})]
)


@units_and_limits
def test_total_effect_is_half_the_distance_to_each_end(normalization, limit, x64):
    weights, alpha, others = make_problem(dtype=np.float64)
    represent = partial(encode, weights)
    settings = {"normalization": normalization, **limit}
    found, h = jax.jit(partial(total_effect, represent, **settings))(alpha, others)
    assert_allclose(h, represent(alpha), rtol=1e-12, atol=1e-14)
    expected = np.zeros(len(alpha))
    for other in others:
        ends, scale = (represent(alpha), represent(other)), 1.0
        if normalization == "batch":
            scale = np.var(ends[0], axis=0).sum()
        if normalization == "l2":
            ends = map(l2_normalize, ends)
        squared = np.sum(np.square(np.subtract(*ends)), axis=1) / scale / 2
        limits = limit.get("example_limit", np.inf), limit.get("limit_shape", "hard")
        expected += [oracle_limit(q, *limits) for q in squared]
    assert_allclose(found, expected / len(others), rtol=1e-9)
    one, _, aux = total_effect(lambda a: (represent(a), 3), alpha, alpha, has_aux=True)
    assert_array_equal(one, 0)
    assert aux == 3


@normalizations
def test_a_full_step_along_other_parameters_is_added(normalization, x64):
    weights, alpha, others = make_problem(dtype=np.float64)
    represent, settings = partial(encode, weights), {"normalization": normalization}
    apart = jnp.array([True, False, False])[None, None]
    along = jnp.where(apart, others, alpha[None])
    redrawn = jnp.where(apart, alpha[None], others)
    found, _ = invariance_penalty(
        represent, alpha, along, alpha_redrawn=redrawn, **settings
    )
    expected, _ = invariance_penalty(represent, alpha, along, **settings)
    full, _ = total_effect(represent, alpha, redrawn, **settings)
    assert_allclose(found, expected + 2 * full, rtol=1e-9)


@units_and_limits
def test_consistency_equals_the_oracle(normalization, limit, x64):
    weights, alpha, others = make_problem(dtype=np.float64)
    h1, h2 = encode(weights, alpha), encode(weights, others[0])
    settings = {"normalization": normalization, **limit}
    found = jax.jit(partial(consistency, **settings))(h1, h2)
    assert_allclose(found, oracle_consistency(h1, h2, **settings), rtol=1e-9)
    assert_array_equal(consistency(h1, h1, **settings), 0)
    assert_allclose(consistency(h2, h1, **settings), found, rtol=1e-12)


@pytest.mark.parametrize(("normalization", "shape"), [("l2", "log"), ("batch", "hard")])
def test_consistency_has_derivatives(normalization, shape, x64):
    weights, alpha, others = make_problem(dtype=np.float64)
    settings = {"normalization": normalization, "limit_shape": shape}
    function = jax.jit(partial(consistency, example_limit=0.7, **settings))
    views = encode(weights, alpha), encode(weights, others[0])
    check_grads(function, views, order=2, rtol=1e-5, eps=1e-6)
    # a zero representation, and two that are the same
    zero = jnp.zeros_like(views[0])
    for pair in ((zero, zero), (zero, views[1]), (views[0], views[0])):
        gradient = jax.grad(lambda *pair: jnp.sum(function(*pair)), (0, 1))(*pair)
        assert all(jnp.isfinite(leaf).all() for leaf in gradient)


@normalizations
def test_constant_encoder_has_no_penalty(normalization):
    _, alpha, others = make_problem()
    h = jnp.arange(1.0, 25.0).reshape(6, 4)
    for other in (others, others[0]):
        penalty, _ = invariance_penalty(
            lambda alpha: h, alpha, other, normalization=normalization
        )
        assert_array_equal(penalty, 0)


@pytest.mark.parametrize("normalization, power", [("l2", 0), ("batch", 0), ("none", 2)])
def test_scale_of_the_representation(normalization, power):
    weights, alpha, others = make_problem()
    penalty = partial(jitted_penalty, normalization=normalization)
    scaled = penalty({**weights, "w2": 30 * weights["w2"]}, alpha, others)[0]
    expected = 30.0**power * penalty(weights, alpha, others)[0]
    assert_allclose(scaled, expected, rtol=1e-4)


def test_contrastive_gradient_flows_through_h():
    weights, alpha, others = make_problem()
    expected = jax.grad(lambda weights: jnp.sum(encode(weights, alpha)))(weights)
    for other in (others, others[0]):
        found = jax.grad(lambda w, o=other: jnp.sum(jitted_penalty(w, alpha, o)[1]))
        for name, gradient in found(weights).items():
            assert_allclose(gradient, expected[name], rtol=1e-5)


@pytest.mark.parametrize("other", [0, slice(None)], ids=["one", "several"])
def test_aux_is_handed_on(other):
    weights, alpha, others = make_problem()

    def represent(alpha):
        h = encode(weights, alpha)
        return h, {"mean": h.mean(axis=0), "count": jnp.array(len(h)), "none": None}

    penalty, h, aux = invariance_penalty(represent, alpha, others[other], has_aux=True)
    plain = invariance_penalty(partial(encode, weights), alpha, others[other])
    assert_array_equal(penalty, plain[0])
    assert_array_equal(h, plain[1])
    assert_allclose(aux["mean"], h.mean(axis=0), rtol=1e-6)
    assert aux["count"] == 6 and aux["count"].dtype == jnp.int32
    assert aux["none"] is None


@pytest.mark.parametrize("normalization, directions", [("l2", 2), ("batch", 0)])
def test_derivatives_in_weights_and_both_ends(normalization, directions, x64):
    weights, alpha, others = make_problem(3, max(directions, 1), np.float64)
    function = jax.jit(partial(mean_penalty, normalization=normalization))
    arguments = (weights, alpha, others if directions else others[0])
    check_grads(function, arguments, order=2, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("normalization", ["l2", "batch"])
@pytest.mark.parametrize("mapping, replicas", [(over_devices, 4), (over_vmap, 2)])
def test_replicas_give_the_joined_penalties_and_gradient(
    normalization, mapping, replicas, x64
):
    weights, alpha, others = make_problem(8, 2, np.float64)

    def objective(weights, alpha, others, axis_name=None):
        settings = {"normalization": normalization, "axis_name": axis_name}
        represent = partial(encode, weights)
        penalty, _ = invariance_penalty(represent, alpha, others, **settings)
        return jnp.mean(penalty), penalty

    def step(*arguments):
        local = jax.grad(partial(objective, axis_name=AXIS), has_aux=True)
        gradient, penalty = local(*arguments)
        return jax.lax.pmean(gradient, AXIS), penalty

    joined = jax.jit(jax.grad(objective, has_aux=True))
    expected, penalty = joined(weights, alpha, others)
    gradients, found = mapping(step, replicas, (None, 0, 1))(
        weights, alpha.reshape(replicas, -1, 3), others.reshape(2, replicas, -1, 3)
    )
    assert_allclose(found.reshape(-1), penalty, rtol=1e-9)
    for name in weights:
        for gradient in gradients[name]:
            assert_allclose(gradient, expected[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"alpha": (6,)}, r"alpha must be \[B, P\]; found \[6\]"),
        ({"alpha_other": (6, 2)}, r"alpha_other must be .* found shape \(6, 2\)"),
        ({"alpha_other": (3,)}, r"alpha_other must be .* found shape \(3,\)"),
        ({"alpha_other": (1, 2, 6, 3)}, "alpha_other must be .* found shape"),
        ({"alpha_other": (0, 6, 3)}, "must hold K >= 1 directions; found 0"),
        ({"normalization": "L2"}, "normalization must be one of .* found 'L2'"),
        ({"example_limit": -1.0}, "example_limit must be above 0; found -1.0"),
        ({"limit_shape": "soft"}, "limit_shape must be one of .* found 'soft'"),
        ({"signs": (6, 2)}, r"signs must be .* \(1, 6, 3\); found shape \(6, 2\)"),
        ({"signs": (2, 6, 3)}, r"signs must be .* found shape \(2, 6, 3\)"),
        ({"represent": jnp.sum}, r"h of represent must be \[B, D\]"),
        ({"represent": lambda a: a[:-1]}, r"h of represent must be \[B, D\]"),
        ({"represent": lambda a: [a, a]}, r"h of represent .* found a list"),
        ({"represent": lambda a: (a, {})}, r"found a tuple: set has_aux=True"),
    ],
    # No text of a function, which holds an address: another one in each process.
    ids=lambda value: " ".join(value),
)
def test_bad_input_is_refused(changes, message):
    settings = {"alpha": (6, 3), "alpha_other": (6, 3), "represent": jnp.sin, **changes}
    alpha, other = (jnp.ones(settings.pop(name)) for name in ("alpha", "alpha_other"))
    if "signs" in settings:
        settings["signs"] = jnp.ones(settings["signs"])
    represent = settings.pop("represent")
    with pytest.raises(ValueError, match=message):
        invariance_penalty(represent, alpha, other, **settings)
    if "signs" not in settings:
        with pytest.raises(ValueError, match=message.replace("_other", "_redrawn")):
            total_effect(represent, alpha, other, **settings)


def test_a_list_is_no_array():
    alpha, rows = jnp.ones((2, 3)), [[1.0, 2.0, 3.0]] * 2
    for name, given in (("alpha", (rows, alpha)), ("alpha_other", (alpha, rows))):
        with pytest.raises(ValueError, match=f"{name} must be .*; found a list"):
            invariance_penalty(jnp.sin, *given)
    with pytest.raises(ValueError, match="h2 must be an array; found a list"):
        consistency(alpha, rows)


@pytest.mark.parametrize(
    "shapes, settings, message",
    [
        ([(6,), (6,)], {}, r"h1 must be \[B, D\]"),
        ([(6, 3), (5, 3)], {}, "h1 and h2 must be of one shape"),
        ([(6, 3)] * 2, {"normalization": "L2"}, "normalization must be one of"),
        ([(6, 3)] * 2, {"example_limit": np.float32(-1)}, "must be above 0; found -1"),
        ([(1, 3)] * 2, {"normalization": "batch"}, "2 or more examples; found 1"),
        ([(6, 3)] * 2, {"limit_shape": "soft"}, "limit_shape must be one of"),
    ],
    ids=str,
)
def test_bad_views_are_refused(shapes, settings, message):
    with pytest.raises(ValueError, match=message):
        consistency(*map(jnp.ones, shapes), **settings)
