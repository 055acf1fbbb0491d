"""The step against an objective written from the paper, and what a step must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_config

from invariance_jax.training.components import (
    make_examples,
    make_networks,
    make_transformation,
)
from invariance_jax.training.draws import make_draw
from invariance_jax.training.settings import resolve
from invariance_jax.training.steps import init_state, make_step
from invariance_jax.transforms import View

SMALL = {
    "batch_size": 6,
    "encoder.width": 7,
    "encoder.projection": 5,
    "data.image_size": 6,
    "data.num_points": 6,
    "penalty.example_limit": None,
}

# With plain gradient descent of rate 1 a step subtracts the gradient.
DESCENT = optax.sgd(1.0)


class Case:
    """A step with settings of its own, in the precision that is enabled."""

    def __init__(self, changes=None):
        self.settings = resolve(tiny_config(SMALL | (changes or {})))
        self.networks = make_networks(self.settings)
        self.transformation = make_transformation(self.settings)
        self.x = jnp.asarray(make_examples(self.settings, "train").x[:6]).astype(float)
        draw = make_draw(
            self.transformation,
            num_examples=6,
            batch_size=6,
            directions=self.settings.penalty.directions,
        )
        self.draws = jax.jit(draw)(jax.random.key(3), 0)
        self.state = self.start(0)
        self._step = jax.jit(
            make_step(self.settings, self.networks, self.transformation, DESCENT)
        )

    def start(self, seed):
        @jax.jit
        def init(key):
            state = init_state(
                key, self.networks, self.transformation, DESCENT, self.x[:2]
            )
            return jax.tree.map(lambda leaf: leaf.astype(kind(leaf)), state)

        return init(jax.random.key(seed))

    def step(self, state=None, x=None, draws=None):
        x = self.x if x is None else x
        return self._step(state or self.state, x, draws or self.draws)

    def gradient(self, **inputs):
        new, metrics = self.step(**inputs)
        gradient = jax.tree.map(jnp.subtract, self.state.params, new.params)
        return gradient, {
            name: float(total / n) for name, (total, n) in metrics.items()
        }


def kind(leaf):
    return float if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype


def moments(rows):
    mean = rows.sum(0, keepdims=True) / len(rows)
    return mean, ((rows - mean) ** 2).sum(0, keepdims=True) / len(rows)


def standardize(rows, mean, variance):
    return (rows - mean) / (variance + 1e-5) ** 0.5


def affine(rows, parameters):
    return rows * parameters["scale"][None] + parameters["bias"][None]


def encode(params, images, held=None):
    """The MLP of two layers; `held` are batch moments that are given."""
    rows = images.reshape(len(images), -1) @ params["dense1"]["kernel"]
    rows = affine(standardize(rows, *(held or moments(rows))), params["bn1"])
    last = params["dense2"]
    return jnp.maximum(rows, 0) @ last["kernel"] + last["bias"][None]


def project(params, h):
    rows = h @ params["dense1"]["kernel"]
    rows = jnp.maximum(affine(standardize(rows, *moments(rows)), params["bn1"]), 0)
    rows = rows @ params["dense2"]["kernel"]
    return standardize(rows, *moments(rows))


def unit(rows):
    return rows / (rows**2).sum(1, keepdims=True) ** 0.5


def contrastive_oracle(z1, z2, temperature):
    z = unit(jnp.concatenate([z1, z2]))
    similarity = jnp.exp(z @ z.T / temperature)
    others = (similarity * (1 - np.eye(len(z)))).sum(1)
    positive = jnp.diagonal(jnp.roll(similarity, len(z1), axis=1))
    return jnp.log(others / positive).sum() / len(z)


def penalty_oracle(params, case):
    """The mean over examples and directions, from the whole Jacobian `[B, D, B, P]`."""
    settings, (alpha, held) = case.settings.penalty, case.draws.first

    def images(alpha):
        return case.transformation.apply(case.x, View(alpha, held))

    rows = images(alpha).reshape(len(alpha), -1) @ params["dense1"]["kernel"]
    fixed = moments(rows) if settings.batch_statistics == "example" else None

    def represent(alpha):
        h = encode(params, images(alpha), fixed)
        return unit(h) if settings.normalization == "l2" else h

    jacobian = jax.jacfwd(represent)(alpha)
    scale = 1.0
    if settings.normalization == "batch":
        scale = moments(encode(params, images(alpha)))[1].sum()
    direction = jnp.moveaxis(case.draws.alpha_other, 1, 0) - alpha[None]
    change = jnp.einsum("idjp,kjp->kid", jacobian, direction)
    squared = (change**2).sum(2) / scale
    limit = settings.example_limit
    return (squared if limit is None else jnp.minimum(squared, limit)).mean()


def oracle(case):
    def objective(params):
        x, draws, settings = case.x, case.draws, case.settings
        h1 = encode(params["encoder"], case.transformation.apply(x, draws.first))
        h2 = encode(params["encoder"], case.transformation.apply(x, draws.second))
        z1, z2 = project(params["head"], h1), project(params["head"], h2)
        contrastive = contrastive_oracle(z1, z2, settings.temperature)
        penalty = penalty_oracle(params["encoder"], case)
        limit = settings.penalty.batch_limit
        limited = penalty if limit is None else jnp.minimum(penalty, limit)
        loss = contrastive + settings.penalty.weight * limited
        return loss, {"loss": loss, "contrastive": contrastive, "penalty": penalty}

    return jax.jit(jax.grad(objective, has_aux=True))(case.state.params)


def assert_close(found, expected, tolerance):
    def check(a, b):
        size = max(1e-3, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * size)

    jax.tree.map(check, found, expected)


CASES = {
    "paper": {"penalty.weight": 0.5},
    "two directions": {"penalty.directions": 2, "penalty.normalization": "none"},
    "ratio, held": {
        "penalty.normalization": "batch",
        "penalty.batch_statistics": "example",
        "penalty.weight": 0.5,
    },
    "limit per example, held": {
        "penalty.directions": 2,
        "penalty.example_limit": 0.4,
        "penalty.batch_statistics": "example",
        "penalty.weight": 2.0,
    },
    "limit of the batch": {"penalty.batch_limit": 0.01, "penalty.weight": 3.0},
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradient_are_those_of_the_objective(x64, name):
    case = Case(CASES[name])
    gradient, metrics = case.gradient()
    expected, terms = oracle(case)
    assert_close(metrics, terms, 1e-7)
    assert_close(gradient, expected, 1e-7)


@pytest.fixture(scope="module")
def case():
    return Case({"penalty.warmup_steps": 4, "penalty.weight": 2.0})


@pytest.fixture(scope="module")
def plain():
    return Case({"penalty.weight": 0.0})


def test_no_weight_leaves_the_contrastive_loss(plain):
    _, metrics = plain.gradient()
    assert metrics["penalty"] == 0
    assert metrics["loss"] == metrics["contrastive"]


@pytest.mark.parametrize("statistics", ["coupled", "example"])
def test_a_tiny_weight_leaves_the_contrastive_gradient(plain, statistics):
    """Statistics that are held along alpha are not held in the loss."""
    changes = {"penalty.batch_statistics": statistics, "penalty.weight": 1e-12}
    gradient, metrics = Case(changes).gradient()
    expected, terms = plain.gradient()
    assert_close(gradient, expected, 1e-4)
    assert metrics["contrastive"] == pytest.approx(terms["contrastive"], rel=1e-5)


def test_weight_rises_to_its_full_value(case):
    for step, share in [(0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)]:
        state = case.state._replace(step=jnp.int32(step))
        _, metrics = case.step(state)
        values = {name: float(total) for name, (total, _) in metrics.items()}
        expected = values["contrastive"] + 2.0 * share * values["penalty"]
        assert values["loss"] == pytest.approx(expected, rel=1e-6)


def test_running_statistics_take_both_views(case):
    new, _ = case.step()
    kernel = case.state.params["encoder"]["dense1"]["kernel"]
    mean, variance = np.zeros((1, 7)), np.ones((1, 7))
    for view in (case.draws.first, case.draws.second):
        images = case.transformation.apply(case.x, view)
        of_batch = moments(images.reshape(6, -1) @ kernel)
        mean = 0.9 * mean + 0.1 * of_batch[0]
        variance = 0.9 * variance + 0.1 * of_batch[1]
    found = new.batch_stats["encoder"]["bn1"]
    np.testing.assert_allclose(found["mean"], mean[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["var"], variance[0], rtol=1e-4)


def test_running_statistics_of_the_head_take_both_views(case):
    new, _ = case.step()
    before = case.state.batch_stats["head"]["bn1"]["var"]
    after = new.batch_stats["head"]["bn1"]["var"]
    assert after.shape == before.shape
    assert not np.allclose(after, before)


def test_a_step_counts(case):
    new, metrics = case.step()
    assert int(new.step) == 1
    assert {float(count) for _, count in metrics.values()} == {1.0}


def test_a_step_keeps_shapes_and_dtypes(case):
    new, _ = case.step()
    before, after = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
        for state in (case.state, new)
    )
    assert before == after


def test_a_step_is_pure(case):
    jax.tree.map(np.testing.assert_array_equal, case.step(), case.step())


def test_examples_may_stand_in_any_order(case):
    gradient, metrics = case.gradient()
    order = jnp.array([3, 1, 5, 0, 4, 2])
    draws = jax.tree.map(lambda leaf: leaf[order], case.draws)
    again, terms = case.gradient(x=case.x[order], draws=draws)
    assert_close(metrics, terms, 1e-5)
    assert_close(gradient, again, 1e-4)


def test_a_step_lowers_the_loss_of_its_batch(case):
    new, before = case.step()
    slower = jax.tree.map(
        lambda old, step: old + 0.01 * (step - old), case.state.params, new.params
    )
    _, after = case.step(case.state._replace(params=slower))
    assert after["loss"][0] < before["loss"][0]


def test_the_initial_state_depends_on_the_key_alone(case):
    jax.tree.map(np.testing.assert_array_equal, case.start(0), case.start(0))
    ours, theirs = case.start(0).params, case.start(1).params
    assert not np.allclose(
        ours["encoder"]["dense1"]["kernel"], theirs["encoder"]["dense1"]["kernel"]
    )


def test_the_initial_state_is_before_the_first_step(case):
    assert int(case.state.step) == 0
    stats = jax.tree.leaves(case.state.batch_stats)
    assert {float(value) for leaf in stats for value in leaf} == {0.0, 1.0}
