"""What experiments compute without an encoder, and what they may return."""

import jax.numpy as jnp
import numpy as np
import pytest

from invariance_jax.experiments import ExperimentResult, Row, measure
from invariance_jax.experiments.nuisance_prediction import expand, predict_nuisance
from invariance_jax.experiments.samples import principal_components


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
