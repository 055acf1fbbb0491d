"""What experiments compute without a trained encoder, and what they may return."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import image_config, tiny_config

from invariance_jax import tasks
from invariance_jax.experiments import (
    EXPERIMENTS,
    Context,
    ExperimentResult,
    Row,
    measure,
    shift,
)
from invariance_jax.experiments.nuisance_prediction import expand, predict_nuisance
from invariance_jax.experiments.samples import principal_components
from invariance_jax.runtime.devices import all_devices
from invariance_jax.settings import resolve
from invariance_jax.training.build import build
from invariance_jax.training.frozen import FrozenEncoder
from invariance_jax.transforms import Transformation, View


def test_a_parameter_that_the_features_hold_is_predicted():
    generator = np.random.default_rng(0)
    h, h_test = (generator.normal(size=(n, 5)) for n in (400, 300))
    kernel = generator.normal(size=(5, 2))
    alpha, alpha_test = 3 + h @ kernel, 3 + h_test @ kernel
    found = predict_nuisance(h, alpha, h_test, alpha_test, l2=(1.0, 1e-8))
    np.testing.assert_allclose(found["r2"], 1, atol=1e-9)
    np.testing.assert_array_equal(found["l2"], 1e-8)
    constant = np.square(alpha_test - alpha.mean(axis=0)).mean(axis=0)
    np.testing.assert_allclose(found["constant"], constant)


def test_what_is_known_but_not_linearly_is_read_by_the_nonlinear_probe():
    h = np.random.default_rng(0).normal(size=(2, 1500, 3)).astype(np.float32)
    known = np.stack([h[..., 0], np.abs(h[..., 1])], axis=-1)
    for features, least, most in ((h, 0, 0.1), (expand(*h), 0.9, 1)):
        arrays = features[0], known[0], features[1], known[1]
        r2 = predict_nuisance(*arrays, l2=(1e-4, 1e-2))["r2"]
        assert r2[0] > 0.99 and least - 0.1 < r2[1] <= most


def test_principal_components_are_those_of_the_covariance():
    h = np.random.default_rng(0).normal(size=(50, 4)) * [3, 1, 0.1, 0.1] + 5
    points, shares = principal_components(h)
    values, vectors = np.linalg.eigh(np.cov(h.T))
    order = values.argsort()[::-1][:2]
    expected = (h - h.mean(axis=0)) @ vectors[:, order]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(shares, values[order] / values.sum())
    # One feature, or features that are all the same, have no second component.
    points, shares = principal_components(h[:, :1])
    assert points.shape == (50, 2) and shares.tolist() == [1, 0]
    points, shares = principal_components(h[:1])
    assert points.shape == (1, 2) and shares.tolist() == [0, 0]
    assert principal_components(np.ones((5, 3)))[1].tolist() == [0, 0]


@pytest.mark.parametrize(
    "found",
    [
        None,
        {"mse": 1.0},
        ExperimentResult([("mse", 1.0)]),
        ExperimentResult([Row("", 1.0)]),
        *(ExperimentResult([Row("mse", x)]) for x in ("large", "3.5", None, 1j)),
        ExperimentResult([Row("mse", np.zeros(2))]),
        ExperimentResult([Row("mse", 1.0, {"views": (1, 2)})]),
        ExperimentResult([Row("mse", 1.0, {1: "views"})]),
        ExperimentResult([Row("mse", x, {"views": 1}) for x in (1.0, 2.0)]),
    ],
    ids=repr,
)
def test_what_is_no_result_is_refused(found):
    expected = r"evaluation\.experiments has 'mine:run', which returned .*expected"
    with pytest.raises(ValueError, match=expected):
        measure("mine:run", lambda context: found, None)


def test_numbers_of_arrays_become_those_of_python():
    row = Row("mse", jnp.float32(0.5), {"views": np.int64(3)})
    found = measure("mine:run", lambda context: ExperimentResult([row]), None)
    assert found.rows == [Row("mse", 0.5, {"views": 3})]
    assert type(found.rows[0].at["views"]) is int


def test_a_built_in_experiment_may_measure_a_point_twice():
    """Each row of `evaluation.shifts` has the unshifted point."""
    twice = ExperimentResult([Row("mse", 1.0, {"shift": 0.0})] * 2)
    assert measure("shift", lambda context: twice, None) == twice


class Turn(nn.Module):
    """A point on the circle at the angle that an image says."""

    @nn.compact
    def __call__(self, images, *, train):
        angle = images[:, 0, 0, 0]
        return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def test_poincare_ratio_of_a_known_total_effect(tmp_path):
    """Var(exp(iwu)) is 1 - sinc^2(w / 2), u uniform of range 1; the derivative is w."""
    speeds = np.array([0.5, 3.0, 12.0, 0.0])

    def apply(x, view):
        angle = x[:, 0] + view.alpha @ jnp.asarray(speeds, jnp.float32)
        return jnp.broadcast_to(angle[:, None, None, None], (len(x), 1, 1, 3))

    def sample(key, count):
        return View(jax.random.uniform(key, (count, 4)))

    known = Transformation((*"abcd",), np.tile([0.0, 1.0], (4, 1)), sample, apply)
    changes = {"data.test_examples": 200, "evaluation.variance_examples": 200}
    config = tiny_config({**changes, "evaluation.variance_views": 60})
    parts = build(resolve(config))._replace(encoder=Turn(), transformation=known)
    frozen = FrozenEncoder(parts, all_devices())
    context = Context(parts, tmp_path, frozen, {}, num_views=(1,))
    found = {name: {} for name in "abcd"}
    for metric, value, at in EXPERIMENTS["poincare_ratio"](context).rows:
        found[at["parameter"]][metric] = value
    effects = 1 - np.sinc(speeds / 2 / np.pi) ** 2
    for values, speed, effect in zip(found.values(), speeds, effects, strict=True):
        assert values["bound"] == pytest.approx((speed / np.pi) ** 2, rel=1e-5)
        assert values["effect"] == pytest.approx(effect, rel=0.05)
        ratio = values["bound"] / values["effect"] if speed else 0
        assert values["ratio"] == pytest.approx(ratio)
    # The chord grows with the step as long as the turn is below a half.
    assert found["b"]["rank_correlation"] > 0.999
    assert found["c"]["rank_correlation"] < 0.5


def test_without_jitter_the_unshifted_strength_is_0():
    config = tiny_config({"augmentation.strength": 0.5})
    assert shift.unshifted_values(config)["strength"] == 0.5
    config.augmentation.jitter_probability = 0.0
    assert shift.unshifted_values(config)["strength"] == 0.0


def test_shifted_jitter_has_the_ranges_of_the_training(tmp_path):
    ranges = {"augmentation.jitter_ranges": (0.8, 0.8, 0.4, 0.3)}
    task = tasks.make_task(resolve(image_config(tmp_path, ranges)))
    bounds = task.shiftable().bounds
    expected = [(0.2, 1.8), (0.2, 1.8), (0.6, 1.4), (-0.3, 0.3)]
    np.testing.assert_allclose(bounds, expected)
