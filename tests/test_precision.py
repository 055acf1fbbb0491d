"""Every public function of the core, by the kind of numbers that it is given.

Halves, integers, zeros, tiny and huge entries, one example. The oracle is the function
itself in float64 on the same numbers, where none of these is hard; that its values
there are the right ones is tested beside each function.
"""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax import evaluation, losses
from invariance_jax.evaluation import Changes, LinearProbe
from invariance_jax.models import group_moments
from invariance_jax.numerics import l2_normalize, safe_norm
from invariance_jax.transforms import View, color, geometry, image, shifts, spirograph

pytestmark = pytest.mark.usefixtures("compiled_fast")

HALVES = (jnp.float16, jnp.bfloat16)
INTEGERS = (np.uint8, np.int64)


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


def normal(*shape: int) -> np.ndarray:
    """Entries of a few units, so that integers keep what they say."""
    return 5 * GENERATOR.normal(size=shape)


H, OTHER, Y, P = normal(B, D), normal(B, D), normal(B, T), normal(B, 3) / 5
LABELS = np.arange(B) % C
IMAGES = GENERATOR.uniform(0.2, 0.8, (B, 8, 7, 3))
FACTOR = GENERATOR.uniform(0.5, 1.5, B)
PARAMETERS = spirograph.BOUNDS.mean(axis=1) + 0.1 * GENERATOR.normal(size=(B, 10))
TRANSFORMATION = image.make_transformation(
    source_size=(8, 7),
    image_size=7,
    mean=(0.5,),
    std=(0.2,),
    strength=0.5,
    jitter_probability=1.0,
    gray_probability=0.0,
    crop=False,
    flip=False,
)
W1, W2 = np.sin(np.arange(21.0)).reshape(3, 7), normal(7, D)


def represent(weight: Any, alpha: Any) -> Any:
    """A smooth encoder."""
    return jnp.tanh(alpha @ jnp.asarray(W1, alpha.dtype)) @ weight


def penalize(alpha: Any, other: Any, weight: Any, normalization: str) -> Any:
    """The penalty alone."""
    return losses.invariance_penalty(
        partial(represent, weight), alpha, other, normalization=normalization
    )[0]


def fitted(fit: Callable[..., LinearProbe]) -> Callable[..., Any]:
    """The predictions of a probe, which do not depend on the scale of its features."""
    return lambda h, y: evaluation.predict(fit(h, y), h)


def linearized(alpha: Any, other: Any, weight: Any) -> Any:
    """The errors of the first-order change."""
    steps, function = jnp.array([0.1, 1.0]), partial(represent, weight)
    return evaluation.linearization_error(
        evaluation.linearize_changes(function, alpha, other, steps)
    )


def penalties() -> dict[str, Case]:
    """The losses whose unit is that of h, or none."""
    cases = {}
    for normalization in ("l2", "batch", "none"):
        scaled = () if normalization == "none" else ("h1", "h2")
        several = normalization != "batch"
        cases[f"losses.consistency {normalization}"] = Case(
            partial(losses.consistency, normalization=normalization),
            {"h1": H, "h2": OTHER},
            scaled,
            alone=several,
        )
        cases[f"losses.invariance_penalty {normalization}"] = Case(
            partial(penalize, normalization=normalization),
            {"alpha": P, "other": P[::-1], "weight": W2},
            scaled and ("weight",),
            alone=several,
        )
    return cases


CASES = {
    "numerics.l2_normalize": Case(l2_normalize, {"x": H}, ("x",)),
    "numerics.safe_norm": Case(safe_norm, {"x": H}, ("x",)),
    "losses.nt_xent": Case(
        partial(losses.nt_xent, temperature=0.5), {"z1": H, "z2": OTHER}, ("z1", "z2")
    ),
    "losses.dcl": Case(
        partial(losses.dcl, temperature=0.5),
        {"z1": H, "z2": OTHER},
        ("z1", "z2"),
        alone=False,
    ),
    "losses.barlow_twins": Case(
        partial(losses.barlow_twins, off_diagonal_weight=0.1),
        {"z1": H, "z2": OTHER},
        ("z1", "z2"),
        alone=False,
    ),
    "losses.vicreg": Case(
        partial(
            losses.vicreg,
            invariance_weight=25.0,
            variance_weight=25.0,
            covariance_weight=1.0,
        ),
        {"z1": H, "z2": OTHER},
        alone=False,
    ),
    "losses.negative_cosine": Case(
        losses.negative_cosine, {"p": H, "z": OTHER}, ("p", "z")
    ),
    **penalties(),
    "evaluation.invariance": Case(
        lambda h: evaluation.invariance(h).normalized,
        {"h": normal(3, B, D)},
        ("h",),
        alone=False,
    ),
    "evaluation.paired_change": Case(evaluation.paired_change, {"h": normal(4, B, D)}),
    "evaluation.linearize_changes": Case(
        linearized, {"alpha": P, "other": P[::-1], "weight": W2}
    ),
    "evaluation.linearization_error": Case(
        lambda *changes: evaluation.linearization_error(Changes(*changes)),
        {
            "true": H.T[:2] ** 2,
            "linear": H.T[:2] ** 2 + 1,
            "difference": H.T[2:4] ** 2,
        },
        ("true", "linear", "difference"),
    ),
    "evaluation.predict": Case(
        lambda h, kernel, bias: evaluation.predict(LinearProbe(kernel, bias), h),
        {"h": H, "kernel": normal(D, T), "bias": normal(T)},
        ("h", "bias"),
    ),
    "evaluation.average_probabilities": Case(
        evaluation.average_probabilities, {"logits": normal(2, B, C)}
    ),
    "evaluation.mean_squared_error": Case(
        evaluation.mean_squared_error, {"predictions": Y, "targets": Y[::-1] + 1}
    ),
    "evaluation.r_squared": Case(
        evaluation.r_squared,
        {"predictions": Y, "targets": Y[::-1] + 1},
        ("predictions", "targets"),
    ),
    "evaluation.accuracy": Case(
        evaluation.accuracy,
        {"logits": normal(B, C), "labels": LABELS},
        ("logits",),
        ("labels",),
    ),
    "evaluation.cross_entropy": Case(
        evaluation.cross_entropy,
        {"logits": normal(B, C), "labels": LABELS},
        fixed=("labels",),
    ),
    "evaluation.knn_accuracy": Case(
        lambda h, labels, h_test: evaluation.knn_accuracy(
            h, labels, h_test, labels, k=1, temperature=0.1
        ),
        {"h": H, "labels": LABELS, "h_test": H + 0.1 * OTHER},
        ("h", "h_test"),
        ("labels",),
    ),
    "evaluation.fit_ridge": Case(
        fitted(partial(evaluation.fit_ridge, l2=0.01)), {"h": H, "y": Y}, ("h", "y")
    ),
    "evaluation.fit_ridge_selected": Case(
        fitted(
            lambda h, y: evaluation.fit_ridge_selected(
                h, y, l2=(0.1, 1.0), num_held_out=2
            )[0]
        ),
        {"h": H, "y": Y},
        ("h", "y"),
        alone=False,
    ),
    "evaluation.fit_logistic": Case(
        fitted(partial(evaluation.fit_logistic, num_classes=C, l2=1e-2)),
        {"h": H / 5, "y": LABELS},
        fixed=("y",),
        tolerance=1e-3,
    ),
    "evaluation.fit_logistic_selected": Case(
        fitted(
            lambda h, y: evaluation.fit_logistic_selected(
                h, y, num_classes=C, l2=(0.1, 1.0), num_held_out=2
            )[0]
        ),
        {"h": H / 5, "y": LABELS},
        fixed=("y",),
        alone=False,
        tolerance=1e-3,
        compiled=False,
    ),
    "evaluation.logistic_objective": Case(
        lambda h, labels, kernel, bias: evaluation.logistic_objective(
            LinearProbe(kernel, bias), h, labels, l2=0.1
        ),
        {"h": H, "labels": LABELS, "kernel": normal(D, C), "bias": normal(C)},
        fixed=("labels",),
    ),
    **{
        f"color.{function.__name__}": Case(
            function, {"images": IMAGES, "factor": FACTOR}, fixed=("images",)
        )
        for function in (
            color.adjust_brightness,
            color.adjust_contrast,
            color.adjust_saturation,
            color.adjust_hue,
        )
    },
    "color.to_grayscale": Case(
        color.to_grayscale, {"images": IMAGES}, fixed=("images",)
    ),
    "color.jitter": Case(
        color.jitter,
        {"images": IMAGES, "alpha": np.tile([1.2, 1.0, 1.0, 0.0], (B, 1))},
        fixed=("images",),
    ),
    "color.colorize": Case(
        color.colorize,
        {"images": IMAGES, "alpha": np.tile([1.0, 0.0, 1, 0, 1, 0], (B, 1))},
        fixed=("images",),
    ),
    "geometry.crop_and_resize": Case(
        partial(geometry.crop_and_resize, size=4),
        {"images": IMAGES, "boxes": np.tile([1.0, 1.0, 5.0, 4.0], (B, 1))},
        fixed=("images",),
    ),
    "geometry.central_square": Case(
        partial(geometry.central_square, size=4), {"images": IMAGES}, fixed=("images",)
    ),
    "geometry.flip_horizontal": Case(
        geometry.flip_horizontal,
        {"images": IMAGES, "flip": np.arange(B) % 2 == 0},
        fixed=("images", "flip"),
    ),
    "geometry.affine": Case(
        geometry.affine,
        {"images": IMAGES, "alpha": np.tile([1.0, 1, 0, 0, 0], (B, 1))},
        fixed=("images",),
    ),
    "spirograph.render": Case(
        partial(spirograph.render, image_size=8), {"parameters": PARAMETERS + 1}
    ),
    "spirograph.make_transformation": Case(
        lambda x, alpha: spirograph.make_transformation(image_size=8).apply(
            x, View(alpha)
        ),
        {
            "x": PARAMETERS[:, [0, 1, 3, 4]] + 1,
            "alpha": PARAMETERS[:, [2, 5, 6, 7, 8, 9]],
        },
    ),
    "image.make_transformation": Case(
        lambda x, alpha: TRANSFORMATION.apply(
            x, View(alpha, {"jitter": jnp.ones(len(alpha), bool)})
        ),
        {"x": IMAGES, "alpha": np.tile([1.2, 1.0, 1.0, 0.0], (B, 1))},
        fixed=("x",),
    ),
    "models.group_moments": Case(
        partial(group_moments, group_size=0), {"x": H}, fixed=("x",)
    ),
}

# Those that return what they are given, or a transformation; averages of what an
# encoder gives are in test_averaging.py.
NOT_NUMBERS = {
    "evaluation.average_features",
    "evaluation.encode_views",
    "evaluation.sample_view",
    "shifts.find_columns",
    "shifts.redraw",
    "shifts.shift",
}

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_public_function_is_here() -> None:
    public = set()
    for name in ("losses", "evaluation"):
        room = importlib.import_module(f"invariance_jax.{name}")
        public |= {
            f"{name}.{function}"
            for function in room.__all__
            if inspect.isfunction(getattr(room, function))
        }
    for module in (color, geometry, spirograph, image, shifts):
        short = module.__name__.split(".")[-1]
        public |= {
            f"{short}.{name}"
            for name, value in vars(module).items()
            if inspect.isfunction(value)
            and value.__module__ == module.__name__
            and not name.startswith("_")
        }
    assert public <= {name.split(" ")[0] for name in CASES} | NOT_NUMBERS


def cast(case: Case, dtype: Any, factor: float = 1.0) -> dict[str, Any]:
    """The arguments in a dtype; those that are fixed only in a floating one."""
    found: dict[str, Any] = {}
    for name, array in case.arguments.items():
        array = array * factor if name in case.scaled else array
        if name in case.fixed and array.dtype != np.float64:
            found[name] = array
        elif name in case.fixed and not jnp.issubdtype(dtype, jnp.floating):
            found[name] = array.astype(np.float32)
        else:
            found[name] = (np.abs(array) if dtype == np.uint8 else array).astype(dtype)
    return found


def compare(case: Case, arguments: dict[str, Any], dtype: Any) -> None:
    """What comes of the arguments is what comes of the same numbers in float64."""
    exact = {
        name: array.astype(case.arguments[name].dtype)
        for name, array in arguments.items()
    }
    function = jax.jit(case.function) if case.compiled else case.function
    found, expected = (
        jax.tree.leaves(function(*given.values())) for given in (arguments, exact)
    )
    for one, two in zip(found, expected, strict=True):
        assert one.dtype == dtype
        tolerance = 1e-12 if dtype == np.float64 else case.tolerance
        atol = tolerance * np.max(np.abs(two), initial=0)
        assert np.isfinite(one).all()
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=atol)


@cases
@pytest.mark.parametrize(
    "dtype", [*HALVES, *INTEGERS, np.float64], ids=lambda dtype: dtype.__name__
)
def test_halves_and_integers_are_computed_in_float32(
    case: Case, dtype: Any, x64: None
) -> None:
    expected = np.float64 if dtype == np.float64 else np.float32
    compare(case, cast(case, dtype), expected)


@pytest.mark.parametrize("factor", [1e-20, 1e19])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.scaled])
def test_scale_does_not_leave_the_range_of_float32(
    name: str, factor: float, x64: None
) -> None:
    compare(CASES[name], cast(CASES[name], np.float32, factor), np.float32)


def gradient(case: Case, arguments: dict[str, Any]) -> dict[str, Any]:
    """The gradient of the sum of all results in what is not fixed."""
    free = {n: jnp.asarray(a) for n, a in arguments.items() if n not in case.fixed}

    def total(free: dict[str, Any]) -> Any:
        given = {**arguments, **free}
        leaves = jax.tree.leaves(case.function(*given.values()))
        return sum(jnp.sum(leaf) for leaf in leaves)

    return jax.jit(jax.grad(total))(free)


# Fits are not meant for derivatives, and no curve has width 0.
SMOOTH = [n for n in CASES if ".fit_" not in n and not n.startswith("spirograph")]


@pytest.mark.parametrize("name", SMOOTH)
def test_zeros_have_finite_values_and_gradients(name: str) -> None:
    case = CASES[name]
    zeros = {
        n: array if n in case.fixed else np.zeros_like(array)
        for n, array in cast(case, np.float32).items()
    }
    for found in (case.function(*zeros.values()), gradient(case, zeros)):
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@cases
def test_one_example_has_a_finite_value_or_is_refused(case: Case) -> None:
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
@pytest.mark.parametrize("dtype", [bool, np.complex64, object], ids=str)
def test_what_holds_no_real_numbers_is_refused(case: Case, dtype: Any) -> None:
    arguments = cast(case, np.float32)
    for name, array in arguments.items():
        if array.dtype == np.float32 and name != "weight":  # of an encoder
            with pytest.raises(ValueError, match="must hold real numbers|floating"):
                changed = {**arguments, name: array.astype(dtype)}
                case.function(*changed.values())


# What was found by trial, with the numbers that were.


def test_projections_of_float16_are_told_apart(x64: None) -> None:
    z1, noise = np.random.default_rng(0).normal(size=(2, 256, 128))
    for size in (20, 1e-4):
        pair = [jnp.asarray(size * z, jnp.float16) for z in (z1, z1 + noise)]

        def loss(*pair: Any) -> Any:
            return jnp.mean(losses.nt_xent(*pair, temperature=0.5))

        expected = loss(*(z.astype(jnp.float64) for z in pair))
        np.testing.assert_allclose(loss(*pair), expected, rtol=1e-5)  # not log 511
        found = jax.grad(loss)(*pair)
        assert jnp.isfinite(found).all() and found.any()


@pytest.mark.parametrize(
    "dtype, tolerance", [(jnp.bfloat16, 1e-2), (jnp.float32, 1e-5)]
)
def test_the_gradient_at_a_low_temperature_is_that_of_float64(
    dtype: Any, tolerance: float, x64: None
) -> None:
    z1, noise = np.random.default_rng(0).normal(size=(2, 256, 128))
    pair = [jnp.asarray(z, dtype) for z in (z1, z1 + 0.03 * noise)]

    def loss(*pair: Any) -> Any:
        return jnp.mean(losses.nt_xent(*pair, temperature=0.05))

    assert losses.nt_xent(*pair, temperature=0.05).min() > 0
    found = jax.grad(loss)(*pair)
    expected = jax.grad(loss)(*(z.astype(jnp.float64) for z in pair))
    error = jnp.linalg.norm(found.astype(jnp.float64) - expected)
    assert error < tolerance * jnp.linalg.norm(expected)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_no_loss_of_equal_views_is_negative(temperature: float) -> None:
    z = jnp.asarray(np.random.default_rng(0).normal(size=(256, 128)), jnp.float32)
    assert losses.nt_xent(z, z, temperature=temperature).min() >= 0


def test_pixels_of_8_bits_are_regressed_on() -> None:
    generator = np.random.default_rng(0)
    h = generator.integers(0, 256, (400, 6), np.uint8)
    y = (h.astype(np.float32) @ generator.normal(size=(6, 2))).astype(np.float32)
    probe, _ = evaluation.fit_ridge_selected(h, y, l2=(1e-8,), num_held_out=40)
    explained = evaluation.r_squared(evaluation.predict(probe, h), y)
    assert explained.min() > 0.9999


def test_r_squared_of_bytes_does_not_wrap() -> None:
    predictions, targets = np.array([[[250], [3]], [[3], [250]]], np.uint8)
    np.testing.assert_allclose(evaluation.r_squared(predictions, targets), -3)


def test_float16_features_of_deviation_1000_are_standardized() -> None:
    h = (1000 * np.random.default_rng(0).normal(size=(200, 3))).astype(np.float16)
    probe, _ = evaluation.fit_ridge_selected(h, h[:, :1], l2=(1e-6,), num_held_out=20)
    assert evaluation.r_squared(evaluation.predict(probe, h), h[:, :1])[0] > 0.9999


def test_integers_of_a_jitter_are_not_black() -> None:
    images = jnp.full((1, 2, 2, 3), 0.5)
    found = color.jitter(images, np.array([[1, 1, 1, 0]]))
    np.testing.assert_allclose(found, images, atol=3e-3)


def test_coordinates_beyond_256_pixels_are_exact() -> None:
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
        np.testing.assert_array_equal(found, expected)
        shown = half[0, :, last, 0].astype(jnp.float32)
        np.testing.assert_allclose(found[0, :, -1, 0], shown, rtol=1e-6)
