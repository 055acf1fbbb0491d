"""Every public function of the core, by the kind of numbers that it is given.

Halves, integers, zeros, tiny and huge entries, one example. The oracle is the function
itself in float64 on the same numbers, where none of these is hard; that its values
there are the right ones is tested beside each function.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_api import FUNCTIONS

from invariance_jax import evaluation, losses
from invariance_jax.arguments import promote
from invariance_jax.evaluation import Changes, LinearProbe
from invariance_jax.models import group_moments
from invariance_jax.numerics import l2_normalize, safe_norm
from invariance_jax.transforms import View, blur, color, geometry, image, spirograph


class Case(NamedTuple):
    """A function of arrays that are drawn in float64.

    Attributes:
      function: returns an array or a tree of them.
      arguments: name -> array.
      scaled: arguments that may be tiny or huge, all by one factor.
      fixed: arguments whose dtype is what it must be (labels, images in [0, 1]).
      alone: whether one example has a value; else it is refused.
      tolerance: of float32, relative to the largest entry.
      compiled: whether it can be.
    """

    function: Callable[..., Any]
    arguments: dict[str, np.ndarray]
    scaled: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    alone: bool = True
    tolerance: float = 1e-4
    compiled: bool = True


GENERATOR = np.random.default_rng(0)
B, D, T, C = 12, 5, 2, 3


def normal(*shape):
    """Entries of a few units, so that integers keep what they say."""
    return 5 * GENERATOR.normal(size=shape)


H, OTHER, Y, P = normal(B, D), normal(B, D), normal(B, T), normal(B, 3) / 5
LABELS = np.arange(B) % C
IMAGES = GENERATOR.uniform(0.2, 0.8, (B, 8, 7, 3))
FACTOR = GENERATOR.uniform(0.5, 1.5, B)
PARAMETERS = spirograph.BOUNDS.mean(axis=1) + 0.1 * GENERATOR.normal(size=(B, 10))
SETTINGS = {"source_size": (8, 7), "image_size": 7, "mean": (0.5,), "std": (0.2,)}
SETTINGS |= {"strength": 0.5, "jitter_probability": 1.0, "gray_probability": 0.0}
TRANSFORMATION = image.make_transformation(**SETTINGS, crop=False, flip=False)
W1, W2 = np.sin(np.arange(21.0)).reshape(3, 7), normal(7, D)


def represent(weight, alpha):
    """A smooth encoder."""
    return jnp.tanh(alpha @ jnp.asarray(W1, alpha.dtype)) @ weight


def penalty_of(name):
    """The penalty alone, of a loss that returns more."""
    loss = getattr(losses, name)
    return lambda alpha, other, weight, **unit: loss(
        partial(represent, weight), alpha, other, **unit
    )[0]


def fitted(fit):
    """The predictions of a probe, which do not depend on the scale of its features."""
    return lambda h, y: evaluation.predict(fit(h, y), h)


def linearized(alpha, other, weight):
    """The errors of the first-order change."""
    steps, function = jnp.array([0.1, 1.0]), partial(represent, weight)
    return evaluation.linearization_error(
        evaluation.linearize_changes(function, alpha, other, steps)
    )


def rows(*values):
    """One row of alpha for each image."""
    return np.tile(np.asarray(values, float), (B, 1))


PAIR, PREDICTED = {"z1": H, "z2": OTHER}, {"predictions": Y, "targets": Y[::-1] + 1}
ENDS = {"alpha": P, "other": P[::-1], "weight": W2}
FEATURES, CLASSES = {"h": H, "y": Y}, {"h": H / 5, "y": LABELS}
LOGITS = {"logits": normal(B, C), "labels": LABELS}
VICREG = ("invariance", "variance", "covariance")
CHANGES = {"true": H.T[:2] ** 2, "linear": H.T[:2] ** 2 + 1}
CHANGES["difference"] = H.T[2:4] ** 2
SELECTED = {"l2": (0.1, 1.0), "num_held_out": 2}
NEIGHBOURS = {"h": H, "labels": LABELS, "h_test": H + 0.1 * OTHER}
PROBE = {"kernel": normal(D, C), "bias": normal(C)}
SPIROGRAPH = {"x": PARAMETERS[:, [0, 1, 3, 4]] + 1}
SPIROGRAPH["alpha"] = PARAMETERS[:, [2, *range(5, 10)]]

CASES = {
    "numerics.l2_normalize": Case(l2_normalize, {"x": H}, ("x",)),
    "numerics.safe_norm": Case(safe_norm, {"x": H}, ("x",)),
    **{
        f"losses.{function.__name__}": Case(
            partial(function, **settings), PAIR, (*PAIR,), alone=alone
        )
        for function, settings, alone in (
            (losses.nt_xent, {"temperature": 0.5}, True),
            (losses.info_nce, {"temperature": 0.5}, True),
            (losses.dcl, {"temperature": 0.5}, False),
            (losses.barlow_twins, {"off_diagonal_weight": 0.1}, False),
            (losses.negative_cosine, {}, True),
        )
    },
    "losses.vicreg": Case(
        partial(losses.vicreg, **{f"{name}_weight": 9.0 for name in VICREG}),
        PAIR,
        alone=False,
    ),
    "losses.emp_ssl": Case(
        partial(losses.emp_ssl, invariance_weight=9.0, distortion=0.2),
        {"z": np.stack([H, OTHER])},
        ("z",),
    ),
    **{
        f"losses.{name} {unit}": Case(
            partial(function, normalization=unit),
            arguments,
            () if unit == "none" else scaled,
            alone=unit != "batch",
        )
        for name, function, arguments, scaled in (
            ("consistency", losses.consistency, PAIR, (*PAIR,)),
            ("invariance_penalty", penalty_of("invariance_penalty"), ENDS, ("weight",)),
            ("total_effect", penalty_of("total_effect"), ENDS, ("weight",)),
        )
        for unit in ("l2", "batch", "none")
    },
    "losses.invariance_penalty redrawn": Case(
        lambda alpha, other, weight: losses.invariance_penalty(
            partial(represent, weight), alpha, alpha, alpha_redrawn=other
        )[0],
        ENDS,
        ("weight",),
    ),
    "evaluation.total_effects": Case(
        lambda alpha, other, weight: evaluation.total_effects(
            partial(represent, weight),
            alpha,
            other,
            jnp.zeros(len(alpha), int),
            jnp.ones(alpha.shape[1], jnp.float32),
        ),
        ENDS,
    ),
    "evaluation.invariance": Case(
        lambda h: evaluation.invariance(h).normalized,
        {"h": normal(3, B, D)},
        ("h",),
        alone=False,
    ),
    "evaluation.paired_change": Case(evaluation.paired_change, {"h": normal(4, B, D)}),
    "evaluation.linearize_changes": Case(linearized, ENDS),
    "evaluation.linearization_error": Case(
        lambda *changes: evaluation.linearization_error(Changes(*changes)),
        CHANGES,
        (*CHANGES,),
    ),
    "evaluation.predict": Case(
        lambda h, *probe: evaluation.predict(LinearProbe(*probe), h),
        {"h": H, **PROBE},
        ("h", "bias"),
    ),
    "evaluation.mean_squared_error": Case(evaluation.mean_squared_error, PREDICTED),
    "evaluation.r_squared": Case(evaluation.r_squared, PREDICTED, (*PREDICTED,)),
    "evaluation.accuracy": Case(evaluation.accuracy, LOGITS, ("logits",), ("labels",)),
    "evaluation.cross_entropy": Case(
        evaluation.cross_entropy, LOGITS, fixed=("labels",)
    ),
    "evaluation.knn_accuracy": Case(
        lambda h, labels, h_test: evaluation.knn_accuracy(
            h, labels, h_test, labels, k=1, temperature=0.1
        ),
        NEIGHBOURS,
        ("h", "h_test"),
        ("labels",),
    ),
    "evaluation.fit_ridge": Case(
        fitted(partial(evaluation.fit_ridge, l2=0.01)), FEATURES, (*FEATURES,)
    ),
    "evaluation.fit_ridge_selected": Case(
        fitted(lambda h, y: evaluation.fit_ridge_selected(h, y, **SELECTED)[0]),
        FEATURES,
        (*FEATURES,),
        alone=False,
    ),
    "evaluation.fit_logistic": Case(
        fitted(partial(evaluation.fit_logistic, num_classes=C, l2=1e-2)),
        CLASSES,
        fixed=("y",),
        tolerance=1e-3,
    ),
    "evaluation.fit_logistic_selected": Case(
        fitted(
            lambda h, y: evaluation.fit_logistic_selected(
                h, y, num_classes=C, **SELECTED
            )[0]
        ),
        CLASSES,
        fixed=("y",),
        alone=False,
        tolerance=1e-3,
        compiled=False,
    ),
    "evaluation.logistic_objective": Case(
        lambda h, labels, *probe: evaluation.logistic_objective(
            LinearProbe(*probe), h, labels, l2=0.1
        ),
        {"h": H, "labels": LABELS, **PROBE},
        fixed=("labels",),
    ),
    "models.group_moments": Case(
        partial(group_moments, group_size=0), {"x": H}, fixed=("x",)
    ),
    "spirograph.render": Case(
        partial(spirograph.render, image_size=8), {"parameters": PARAMETERS + 1}
    ),
    "spirograph.make_transformation": Case(
        lambda x, alpha: spirograph.make_transformation(image_size=8).apply(
            x, View(alpha)
        ),
        SPIROGRAPH,
    ),
    "image.make_transformation": Case(
        lambda x, alpha: TRANSFORMATION.apply(
            x, View(alpha, {"acts": {"color": jnp.ones(len(alpha), bool)}})
        ),
        {"x": IMAGES, "alpha": rows(1.2, 1, 1, 0)},
        fixed=("x",),
    ),
    **{
        f"{function.__module__.split('.')[-1]}.{function.__name__}": Case(
            partial(function, **settings),
            {"images": IMAGES, **arguments},
            fixed=("images", "flip"),
        )
        for function, arguments, settings in (
            (color.adjust_brightness, {"factor": FACTOR}, {}),
            (color.adjust_contrast, {"factor": FACTOR}, {}),
            (color.adjust_saturation, {"factor": FACTOR}, {}),
            (color.adjust_hue, {"factor": FACTOR}, {}),
            (color.to_grayscale, {}, {}),
            (color.solarize, {"threshold": FACTOR}, {}),
            (color.jitter, {"alpha": rows(1.2, 1, 1, 0)}, {}),
            (color.colorize, {"alpha": rows(1, 0, 1, 0, 1, 0)}, {}),
            (blur.gaussian_blur, {"sigma": FACTOR}, {}),
            (geometry.crop_and_resize, {"boxes": rows(1, 1, 5, 4)}, {"size": 4}),
            (geometry.central_square, {}, {"size": 4}),
            (geometry.erase, {"boxes": rows(1, 1, 5, 4)}, {"value": (0.5,)}),
            (geometry.affine, {"alpha": rows(1, 1, 0, 0, 0)}, {}),
        )
    },
}

# Those that return what they are given, or a transformation; averages of what an
# encoder gives are in test_averaging.py; what takes arrays of the host alone is in
# test_logistic.py.
NOT_NUMBERS = {
    "base.sizes_of",
    "crops.crop_family",
    "evaluation.average_features",
    "evaluation.encode_views",
    "evaluation.fit_logistic_in_blocks",
    "evaluation.sample_view",
    "shifts.find_columns",
    "shifts.redraw",
    "shifts.shift",
    "transforms.check_transformation",
    "transforms.compose",
    "transforms.uniform_family",
}

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_public_function_is_here():
    public = {
        ".".join(name.split(".")[-2:])
        for name in FUNCTIONS
        if name.split(".")[1] in ("losses", "evaluation", "transforms")
    }
    assert public <= {name.split(" ")[0] for name in CASES} | NOT_NUMBERS


def cast(case, dtype, factor=1.0):
    """The arguments in a dtype; those that are fixed only in a floating one."""
    found = {}
    for name, array in case.arguments.items():
        array = array * factor if name in case.scaled else array
        if name in case.fixed and array.dtype != np.float64:
            found[name] = array
        elif name in case.fixed and not jnp.issubdtype(dtype, jnp.floating):
            found[name] = array.astype(np.float32)
        else:
            found[name] = (np.abs(array) if dtype == np.uint8 else array).astype(dtype)
    return found


def assert_all_close(found, expected, tolerance):
    """The tolerance is relative to the largest entry of each leaf."""
    for one, two in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert np.isfinite(one).all()
        atol = tolerance * np.max(np.abs(two), initial=0)
        assert_allclose(one, two, rtol=tolerance, atol=atol)


def compare(case, arguments, dtype):
    """What comes of the arguments is what comes of the same numbers in float64."""
    exact = {n: a.astype(case.arguments[n].dtype) for n, a in arguments.items()}
    function = jax.jit(case.function) if case.compiled else case.function
    found, expected = (function(*given.values()) for given in (arguments, exact))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(dtype)}
    tolerance = 1e-12 if dtype == np.float64 else case.tolerance
    assert_all_close(found, expected, tolerance)


@pytest.mark.parametrize(
    "dtype", [jnp.float16, np.uint8, np.float64], ids=lambda dtype: dtype.__name__
)
@cases
def test_halves_and_integers_are_computed_in_float32(case, dtype, x64):
    expected = np.float64 if dtype == np.float64 else np.float32
    compare(case, cast(case, dtype), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.int8, np.int64, np.uint64])
def test_promotion_is_to_the_wider_of_float32_and_float64(dtype):
    number = 2**40 if dtype in (np.int64, np.uint64) else 3
    one, two = promote(a=np.full(2, number, dtype), b=jnp.ones(3, jnp.float16))
    assert one.dtype == two.dtype == jnp.float32
    assert_array_equal(one, number)
    with jax.enable_x64(True):
        (one, _) = promote(a=np.full(2, number, dtype), b=jnp.ones(3, jnp.float64))
    assert one.dtype == jnp.float64


@cases
def test_eager_jit_and_vmap_agree(case):
    if not case.compiled:
        pytest.skip("it chooses by values")
    arguments = cast(case, np.float32).values()
    eager = case.function(*arguments)
    assert_all_close(jax.jit(case.function)(*arguments), eager, case.tolerance)
    two = (
        jnp.stack([a[::-1] if a.ndim else a, a]) for a in map(jnp.asarray, arguments)
    )
    mapped = jax.jit(jax.vmap(case.function))(*two)
    assert_all_close(jax.tree.map(lambda a: a[1], mapped), eager, case.tolerance)


@pytest.mark.parametrize("factor", [1e-20, 1e19])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scaled])
def test_scale_does_not_leave_the_range_of_float32(name, factor, x64):
    compare(CASES[name], cast(CASES[name], np.float32, factor), np.float32)


def gradient(case, arguments):
    """The gradient of the sum of all results in what is not fixed."""
    free = {n: jnp.asarray(a) for n, a in arguments.items() if n not in case.fixed}

    def total(free):
        leaves = jax.tree.leaves(case.function(*{**arguments, **free}.values()))
        return sum(jnp.sum(leaf) for leaf in leaves)

    return jax.jit(jax.grad(total))(free)


# Fits are not meant for derivatives, and no curve has width 0.
SMOOTH = [n for n in CASES if ".fit_" not in n and not n.startswith("spirograph")]


@pytest.mark.parametrize("name", SMOOTH)
def test_zeros_have_finite_values_and_gradients(name):
    case = CASES[name]
    zeros = {
        n: array if n in case.fixed else np.zeros_like(array)
        for n, array in cast(case, np.float32).items()
    }
    for found in (case.function(*zeros.values()), gradient(case, zeros)):
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@cases
def test_one_example_has_a_finite_value_or_is_refused(case):
    arguments = {
        name: array.take([0], array.shape.index(B)) if B in array.shape else array
        for name, array in cast(case, np.float32).items()
    }
    if not case.alone:
        with pytest.raises(ValueError, match="found"):
            case.function(*arguments.values())
        return
    for leaf in jax.tree.leaves(case.function(*arguments.values())):
        assert jnp.isfinite(leaf).all()


@cases
def test_what_holds_no_real_numbers_is_refused(case):
    arguments = cast(case, np.float32)
    for name, array in arguments.items():
        for dtype in (bool, np.complex64, object):
            if array.dtype == np.float32 and name != "weight":  # of an encoder
                changed = {**arguments, name: array.astype(dtype)}
                with pytest.raises(ValueError, match="must hold real numbers|floating"):
                    case.function(*changed.values())


# What was found by trial, with the numbers that were.


@pytest.mark.parametrize(
    "dtype, tolerance", [(jnp.bfloat16, 1e-2), (jnp.float32, 1e-5)]
)
def test_the_gradient_at_a_low_temperature_is_that_of_float64(dtype, tolerance, x64):
    z1, noise = np.random.default_rng(0).normal(size=(2, 256, 128))
    pair = [jnp.asarray(z, dtype) for z in (z1, z1 + 0.03 * noise)]

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(*pair):
        each = losses.nt_xent(*pair, temperature=0.05)
        return jnp.mean(each), each

    found, each = gradient(*pair)
    assert each.min() > 0
    expected, _ = gradient(*(z.astype(jnp.float64) for z in pair))
    error = jnp.linalg.norm(found.astype(jnp.float64) - expected)
    assert error < tolerance * jnp.linalg.norm(expected)


def test_no_loss_of_equal_views_is_negative():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(256, 128)), jnp.float32)
    assert losses.nt_xent(z, z, temperature=0.05).min() >= 0


def test_coordinates_beyond_256_pixels_are_exact():
    images = jnp.broadcast_to(jnp.arange(300.0)[None, None, :, None], (1, 4, 300, 1))
    half, box = (images / 300).astype(jnp.bfloat16), jnp.array([[0.0, 257, 4, 41]])
    still = jnp.array([[0.0, 1.0, 0.0, 0.0, 0.0]])
    for function, alpha, last in [
        (partial(geometry.crop_and_resize, size=(4, 41)), box, 297),
        (geometry.affine, still, 299),
    ]:
        # 257 and 299 are no numbers of bfloat16.
        found = function(half, alpha.astype(jnp.int32))
        expected = function(half.astype(jnp.float32), alpha)
        assert_array_equal(found, expected)
        shown = half[0, :, last, 0].astype(jnp.float32)
        assert_allclose(found[0, :, -1, 0], shown, rtol=1e-6)
